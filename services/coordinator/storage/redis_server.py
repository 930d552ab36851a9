"""The Redis server that a run is given: whether its version and its settings can hold a run, and its end."""

import asyncio

import structlog
from redis.exceptions import RedisError

from services.coordinator.storage.redis_access import RedisAccess
from sluice.errors import ConfigError, LaunchError

log = structlog.get_logger(__name__)

MINIMUM_VERSION = (6, 2)

MEMORY_A_PAYLOAD_BYTE = 1.25
"""Redis memory for a byte of payload. Measured: 1.04 at 2 kB a payload, 1.01 at 20 kB; the rest is for facts, rows and
connections."""

OPEN_TIMEOUT_S, OPEN_RETRIES = 15.0, 4
"""The patience with a Redis that may just be starting: 15 s for an answer, some seconds of refused connections."""


async def check_server(url: str, access: RedisAccess, *, most_queued_bytes: int = 0) -> None:
    """Changes nothing. Raises LaunchError or ConfigError with the fix.

    `most_queued_bytes` is the largest size of the queue, to compare with a server's memory limit.
    """
    access.check(url)
    try:
        async with (
            asyncio.timeout(OPEN_TIMEOUT_S),
            access.connect(url, retries=OPEN_RETRIES) as connection,
        ):
            info = await connection.info("server")
            memory = await connection.config_get("maxmemory*")
            persistence = await connection.config_get("append*")
    except (RedisError, OSError) as error:
        why = str(error) or f"no answer in {OPEN_TIMEOUT_S:.0f} s"
        raise LaunchError(
            f"redis: cannot use the server: {why} Is it running, does network.redis_url name it, and is the password "
            "(network.redis_password_file) its own?"
        ) from error
    version = tuple(int(part) for part in str(info["redis_version"]).split(".")[:2])
    if version < MINIMUM_VERSION:
        raise ConfigError(f"redis: version must be >= 6.2, got {info['redis_version']}; upgrade the server")
    limit = int(memory.get("maxmemory") or 0)
    if limit and memory.get("maxmemory-policy") != "noeviction":
        raise ConfigError(
            f"redis: maxmemory-policy must be noeviction, got {memory.get('maxmemory-policy')}; any other may evict "
            "accepted groups. Set it with `redis-cli config set maxmemory-policy noeviction`"
        )
    needed = int(most_queued_bytes * MEMORY_A_PAYLOAD_BYTE)
    if limit and limit < needed:
        raise ConfigError(
            f"redis: maxmemory must be >= {needed} bytes, got {limit}: so much may be queued. Raise it with "
            f"`redis-cli config set maxmemory {needed}`, or lower coordinator.queue_max_bytes or coordinator.max_staleness"
        )
    if persistence.get("appendonly") != "yes":
        log.warning(
            "redis_without_append_only_file",
            consequence="a Redis that dies comes back empty: what was accepted and not assigned is generated again",
            fix="redis-cli config set appendonly yes, and appendonly yes in its configuration file",
        )
    elif persistence.get("appendfsync") != "always":
        log.warning(
            "redis_syncs_late",
            appendfsync=persistence.get("appendfsync"),
            consequence="a Redis that dies may forget its last writes: what it forgot is generated again",
            fix="redis-cli config set appendfsync always, and appendfsync always in its configuration file",
        )


async def shut_down_server(url: str, access: RedisAccess) -> None:
    """Ends the server, which has everything on disk; does nothing when the server is away already."""
    try:
        async with access.connect(url, retries=0) as connection:
            await connection.shutdown(nosave=True)
    except RedisError as error:
        log.warning("redis_not_shut_down", reason=str(error))
