"""The coordinator's durable state in Redis: group states, the stream of accepted groups, batches, commits, counters.

Every transition is one Lua script: atomic, fenced, and without effect when repeated. A second coordinator raises the
fence, after which every script of the first answers FENCED. Nothing here knows of gRPC or decides anything about RL.

Keys, all under `sluice:{run}:`
  fence        integer, raised by each coordinator that takes over the run
  state        hash  group id -> open | queued | assigned            (only live groups)
  info         hash  group id -> JSON facts of a live group
  groups       stream of accepted payloads; `entry` hash: group id -> stream id
  batch        hash  step -> JSON {ids, digest}, written before a batch is handed out
  commit       hash  step -> JSON {lineage, number, digest}
  counter      hash  ledger term or token count -> integer
  rows         list  JSON ledger rows of ended groups, until they are in a Parquet file
  meta         hash  cursor, admissions, run state ...
"""

import asyncio
import json
from collections import deque
from collections.abc import Mapping, Sequence
from typing import Any

import redis.asyncio as aioredis
import structlog
from redis.asyncio.retry import Retry
from redis.backoff import ExponentialBackoff
from redis.exceptions import BusyLoadingError, RedisError, ResponseError
from redis.exceptions import ConnectionError as RedisConnectionError
from redis.exceptions import TimeoutError as RedisTimeoutError

from sluice.errors import ConfigError, Fenced, LaunchError, Overloaded, Unavailable

log = structlog.get_logger(__name__)

MINIMUM_VERSION = (6, 2)

_FENCE = "if redis.call('GET', KEYS[1]) ~= ARGV[1] then return redis.error_reply('FENCED') end\n"

# ARGV: fence, group, info JSON, next cursor, next admission
_ADMIT = (
    _FENCE
    + """
if redis.call('HEXISTS', KEYS[2], ARGV[2]) == 1 then return 0 end
redis.call('HSET', KEYS[2], ARGV[2], 'open')
redis.call('HSET', KEYS[3], ARGV[2], ARGV[3])
redis.call('HSET', KEYS[9], 'cursor', ARGV[4], 'admissions', ARGV[5])
redis.call('HINCRBY', KEYS[7], 'admitted', 1)
redis.call('HINCRBY', KEYS[7], 'open', 1)
return 1
"""
)

# ARGV: fence, group, info JSON, payload, generated tokens, lost tokens
_ACCEPT = (
    _FENCE
    + """
if redis.call('HGET', KEYS[2], ARGV[2]) ~= 'open' then return 0 end
local entry = redis.call('XADD', KEYS[4], '*', 'group', ARGV[2], 'payload', ARGV[4])
redis.call('HSET', KEYS[5], ARGV[2], entry)
redis.call('HSET', KEYS[2], ARGV[2], 'queued')
redis.call('HSET', KEYS[3], ARGV[2], ARGV[3])
redis.call('HINCRBY', KEYS[7], 'open', -1)
redis.call('HINCRBY', KEYS[7], 'queued', 1)
redis.call('HINCRBY', KEYS[7], 'generated_tokens', ARGV[5])
redis.call('HINCRBY', KEYS[7], 'lost_tokens', ARGV[6])
return 1
"""
)

# ARGV: fence, group, expected state, term, row JSON, generated tokens, lost tokens
_END = (
    _FENCE
    + """
if redis.call('HGET', KEYS[2], ARGV[2]) ~= ARGV[3] then return 0 end
local entry = redis.call('HGET', KEYS[5], ARGV[2])
if entry then redis.call('XDEL', KEYS[4], entry) redis.call('HDEL', KEYS[5], ARGV[2]) end
redis.call('HDEL', KEYS[2], ARGV[2])
redis.call('HDEL', KEYS[3], ARGV[2])
redis.call('HINCRBY', KEYS[7], ARGV[3], -1)
redis.call('HINCRBY', KEYS[7], ARGV[4], 1)
redis.call('HINCRBY', KEYS[7], 'generated_tokens', ARGV[6])
redis.call('HINCRBY', KEYS[7], 'lost_tokens', ARGV[7])
redis.call('RPUSH', KEYS[8], ARGV[5])
return 1
"""
)

# ARGV: fence, step, record JSON, group...
_ASSIGN = (
    _FENCE
    + """
local recorded = redis.call('HGET', KEYS[6], ARGV[2])
if recorded then return recorded end
for i = 4, #ARGV do
  if redis.call('HGET', KEYS[2], ARGV[i]) ~= 'queued' then return redis.error_reply('NOTQUEUED ' .. ARGV[i]) end
end
for i = 4, #ARGV do
  redis.call('HSET', KEYS[2], ARGV[i], 'assigned')
  redis.call('XDEL', KEYS[4], redis.call('HGET', KEYS[5], ARGV[i]))
  redis.call('HDEL', KEYS[5], ARGV[i])
end
redis.call('HINCRBY', KEYS[7], 'queued', 3 - #ARGV)
redis.call('HINCRBY', KEYS[7], 'assigned', #ARGV - 3)
redis.call('HSET', KEYS[6], ARGV[2], ARGV[3])
return ARGV[3]
"""
)

# KEYS[10] = commit; ARGV: fence, step, commit JSON, trained tokens, then (group, row JSON)...
_COMMIT = (
    _FENCE
    + """
local recorded = redis.call('HGET', KEYS[10], ARGV[2])
if recorded then return recorded end
for i = 5, #ARGV, 2 do
  redis.call('HDEL', KEYS[2], ARGV[i])
  redis.call('HDEL', KEYS[3], ARGV[i])
  redis.call('RPUSH', KEYS[8], ARGV[i + 1])
end
local groups = (#ARGV - 4) / 2
redis.call('HINCRBY', KEYS[7], 'assigned', -groups)
redis.call('HINCRBY', KEYS[7], 'trained', groups)
redis.call('HINCRBY', KEYS[7], 'trained_tokens', ARGV[4])
redis.call('HSET', KEYS[10], ARGV[2], ARGV[3])
return ARGV[3]
"""
)


# ARGV: fence, rows dropped before, rows to drop
_DROP_ROWS = (
    _FENCE
    + """
if (redis.call('HGET', KEYS[9], 'rows_in_files') or '0') ~= ARGV[2] then return 0 end
redis.call('LTRIM', KEYS[8], ARGV[3], -1)
redis.call('HINCRBY', KEYS[9], 'rows_in_files', ARGV[3])
return 1
"""
)

RECENT_ROWS = 10_000

OPEN_TIMEOUT_S, OPEN_RETRIES = 15.0, 4
"""How long `open` waits for a Redis that may be starting beside it: 15 s for an answer, some seconds while it is refused."""


class Store:
    """Redis behind the coordinator. Methods raise Fenced, Unavailable (Redis is away) or Overloaded (it is full)."""

    def __init__(self, *, url: str, run_id: str, patience: int = 30) -> None:
        # Every command may be repeated without effect, so a Redis that restarts is waited for (about a minute).
        self._url, self._redis = url, _connect(url, retries=patience)
        prefix = f"sluice:{{{run_id}}}:"
        names = ("fence", "state", "info", "groups", "entry", "batch", "counter", "rows", "meta", "commit")
        self._keys = [prefix + name for name in names]
        self._key: dict[str, str] = dict(zip(names, self._keys, strict=True))
        self._scripts = {
            name: self._redis.register_script(text)
            for name, text in {
                "admit": _ADMIT,
                "accept": _ACCEPT,
                "end": _END,
                "assign": _ASSIGN,
                "commit": _COMMIT,
                "drop_rows": _DROP_ROWS,
            }.items()
        }
        self.fence = 0
        self.recent: deque[Mapping[str, Any]] = deque(maxlen=RECENT_ROWS)
        """Rows of the groups that ended last, oldest first, since this process started."""

    async def open(self) -> None:
        """Checks the server and takes over the run. Raises LaunchError or ConfigError with the fix."""
        try:
            async with asyncio.timeout(OPEN_TIMEOUT_S), _connect(self._url, retries=OPEN_RETRIES) as connection:
                info = await connection.info("server")
                memory = await connection.config_get("maxmemory*")
                persistence = await connection.config_get("appendonly")
        except (RedisError, OSError) as error:
            why = str(error) or f"no answer in {OPEN_TIMEOUT_S:.0f} s"
            raise LaunchError(
                f"redis: cannot use the server: {why} Is it running, and does network.redis_url name it?"
            ) from error
        version = tuple(int(part) for part in str(info["redis_version"]).split(".")[:2])
        if version < MINIMUM_VERSION:
            raise ConfigError(f"redis: version must be >= 6.2, got {info['redis_version']}; upgrade the server")
        if memory.get("maxmemory") != "0" and memory.get("maxmemory-policy") != "noeviction":
            raise ConfigError(
                f"redis: maxmemory-policy must be noeviction, got {memory.get('maxmemory-policy')}; any other may evict "
                "accepted groups. Set it with `redis-cli config set maxmemory-policy noeviction`"
            )
        if persistence.get("appendonly") != "yes":
            log.warning("redis_without_append_only_file", consequence="groups accepted are lost when redis dies")
        self.fence = int(await self._redis.incr(self._key["fence"]))

    async def close(self) -> None:
        """Closes the connections."""
        await self._redis.aclose()

    async def admit(self, group_id: str, *, info: Mapping[str, Any], cursor: str, admissions: int) -> None:
        """A new group is open; the prompt cursor moves with it, atomically."""
        await self._run("admit", group_id, json.dumps(info), cursor, admissions)

    async def accept(
        self, group_id: str, *, info: Mapping[str, Any], payload: bytes, generated: int, lost: int
    ) -> bool:
        """open -> queued, with its payload and the tokens received for it; False when it was not open."""
        return bool(await self._run("accept", group_id, json.dumps(info), payload, generated, lost))

    async def end(
        self, group_id: str, *, was: str, term: str, row: Mapping[str, Any], generated: int = 0, lost: int = 0
    ) -> bool:
        """A live group leaves under a terminal term, with tokens not counted yet; False when it was not in state `was`."""
        ended = bool(await self._run("end", group_id, was, term, json.dumps(row), generated, lost))
        if ended:
            self.recent.append(row)
        return ended

    async def assign(self, step: int, *, record: Mapping[str, Any], group_ids: Sequence[str]) -> dict[str, Any]:
        """Fixes batch `step`; returns what is recorded, which is the older record when there is one."""
        return json.loads(await self._run("assign", step, json.dumps(record), *group_ids))

    async def commit(
        self, step: int, *, record: Mapping[str, Any], tokens: int, rows: Mapping[str, Mapping[str, Any]]
    ) -> dict[str, Any]:
        """assigned -> trained for the batch of `step`; returns what is recorded, the older record when there is one."""
        pairs = [part for group_id, row in rows.items() for part in (group_id, json.dumps(row))]
        recorded = json.loads(await self._run("commit", step, json.dumps(record), tokens, *pairs))
        self.recent.extend(rows.values())
        return recorded

    async def payload(self, group_id: str) -> bytes | None:
        """The payload of a queued group, None when it is not queued."""
        entry = await self._call(self._redis.hget(self._key["entry"], group_id))
        if entry is None:
            return None
        found = await self._call(self._redis.xrange(self._key["groups"], min=entry, max=entry))
        return found[0][1][b"payload"] if found else None

    async def live(self) -> dict[str, tuple[str, dict[str, Any]]]:
        """group id -> (state, info) of every live group."""
        states = await self._call(self._redis.hgetall(self._key["state"]))
        infos = await self._call(self._redis.hgetall(self._key["info"]))
        return {group.decode(): (state.decode(), json.loads(infos[group])) for group, state in states.items()}

    async def record(self, kind: str, step: int) -> dict[str, Any] | None:
        """The `batch` or `commit` record of a step."""
        found = await self._call(self._redis.hget(self._key[kind], str(step)))
        return None if found is None else json.loads(found)

    async def last_step(self, kind: str) -> int:
        """The largest step with a `batch` or `commit` record, -1 when there is none."""
        return max((int(step) for step in await self._call(self._redis.hkeys(self._key[kind]))), default=-1)

    async def counters(self) -> dict[str, int]:
        """Every counter."""
        found = await self._call(self._redis.hgetall(self._key["counter"]))
        return {name.decode(): int(value) for name, value in found.items()}

    async def meta(self) -> dict[str, str]:
        """Cursor, admissions, run state and the like."""
        found = await self._call(self._redis.hgetall(self._key["meta"]))
        return {name.decode(): value.decode() for name, value in found.items()}

    async def set_meta(self, values: Mapping[str, str]) -> None:
        """Sets entries of `meta`."""
        await self._call(self._redis.hset(self._key["meta"], mapping={**values}))

    async def rows(self, limit: int) -> tuple[int, list[dict[str, Any]]]:
        """How many rows are in files already, and the oldest `limit` that are not."""
        before = await self._call(self._redis.hget(self._key["meta"], "rows_in_files"))
        found = await self._call(self._redis.lrange(self._key["rows"], 0, limit - 1))
        return int(before or 0), [json.loads(row) for row in found]

    async def drop_rows(self, before: int, count: int) -> None:
        """Forgets the oldest `count` rows, once they are in a file; nothing unless `before` is still what `rows` said."""
        await self._run("drop_rows", before, count)

    async def _run(self, name: str, *args: str | int | bytes) -> Any:
        return await self._call(self._scripts[name](keys=self._keys, args=[self.fence, *args]))

    async def _call(self, command: Any) -> Any:
        try:
            return await command
        except (RedisConnectionError, RedisTimeoutError) as error:
            raise Unavailable(f"redis: {error}") from error
        except ResponseError as error:
            if "FENCED" in str(error):
                raise Fenced("another coordinator has taken over this run; this one must end") from error
            if "OOM" in str(error):
                raise Overloaded(f"redis: {error}; raise its maxmemory or lower coordinator.queue_max_bytes") from error
            raise


def _connect(url: str, *, retries: int) -> aioredis.Redis:
    """A client that repeats a command up to `retries` times, at most 2 s apart. Raises ConfigError."""
    try:
        return aioredis.Redis.from_url(
            url,
            socket_timeout=10.0,
            socket_connect_timeout=5.0,
            **({} if url.startswith("unix:") else {"socket_keepalive": True}),
            health_check_interval=15,
            retry=Retry(ExponentialBackoff(cap=2.0, base=0.1), retries=retries),
            retry_on_error=[RedisConnectionError, RedisTimeoutError, BusyLoadingError],
        )
    except ValueError as error:
        raise ConfigError(f"network.redis_url: must be redis://HOST:PORT/DB or unix:///PATH, got {url!r}") from error
