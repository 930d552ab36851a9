"""How coordinator and Redis prove themselves to each other: a password from a file or the environment, and TLS.

The password is never in a URL, a command line or the configuration, which are printed and kept.
"""

import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import urlsplit

import redis.asyncio as aioredis
import structlog
from pydantic import SecretStr
from redis.asyncio.retry import Retry
from redis.backoff import ExponentialBackoff
from redis.exceptions import BusyLoadingError
from redis.exceptions import ConnectionError as RedisConnectionError
from redis.exceptions import TimeoutError as RedisTimeoutError

from sluice.addresses import is_loopback
from sluice.config.redis_url import password_problem
from sluice.config.schema import NetworkConfig
from sluice.errors import ConfigError
from sluice.telemetry.redaction import never_print, redacted

PASSWORD_VARIABLE = "SLUICE_REDIS_PASSWORD"

log = structlog.get_logger(__name__)


@dataclass(frozen=True, kw_only=True, slots=True)
class RedisAccess:
    """The credentials for a Redis URL."""

    password: SecretStr | None = None
    ca_file: str | None = None
    """PEM of the authority behind a rediss:// server; None: the authorities that the machine trusts."""

    def connect(self, url: str, *, retries: int) -> aioredis.Redis:
        """A client that repeats a command up to `retries` times, at most 2 s apart. Raises ConfigError."""
        if problem := password_problem(url):
            raise ConfigError(f"network.redis_url: {problem}")
        options: dict[str, object] = {} if url.startswith("unix:") else {"socket_keepalive": True}
        if self.password is not None:
            options["password"] = self.password.get_secret_value()
        if url.startswith("rediss:") and self.ca_file is not None:
            options["ssl_ca_certs"] = self.ca_file
        try:
            return aioredis.Redis.from_url(
                url,
                socket_timeout=10.0,
                socket_connect_timeout=5.0,
                health_check_interval=15,
                retry=Retry(ExponentialBackoff(cap=2.0, base=0.1), retries=retries),
                retry_on_error=[RedisConnectionError, RedisTimeoutError, BusyLoadingError],
                **options,  # type: ignore[arg-type]
            )
        except ValueError as error:
            raise ConfigError(
                "network.redis_url: must be redis://HOST:PORT/DB, rediss://HOST:PORT/DB or unix:///PATH, got "
                f"{redacted(url)!r}"
            ) from error

    def check(self, url: str) -> None:
        """Raises ConfigError for a server on the network without a password; warns of a password without TLS."""
        host = urlsplit(url).hostname
        if host is None or is_loopback(host):
            return
        if self.password is None:
            raise ConfigError(
                f"network.redis_url: a Redis on another machine ({host}) must ask for a password; give it with "
                f"network.redis_password_file or the environment's {PASSWORD_VARIABLE}, and set `requirepass` there"
            )
        if not url.startswith("rediss:"):
            log.warning(
                "redis_without_tls",
                host=host,
                consequence="password and groups cross the network readable and unprotected",
                fix="network.redis_url: rediss://..., with network.redis_ca_file for an authority of your own",
            )


def access_by_password(password: str) -> RedisAccess:
    """The access with a password that only this process and the server know."""
    never_print(password)
    return RedisAccess(password=SecretStr(password))


def redis_access(network: NetworkConfig, environ: Mapping[str, str] = os.environ) -> RedisAccess:
    """The access from the configured password file, else from the environment. Raises ConfigError, which holds no secret."""
    password = environ.get(PASSWORD_VARIABLE, "")
    if network.redis_password_file is not None:
        try:
            password = Path(network.redis_password_file).read_text(encoding="utf-8").strip()
        except (OSError, UnicodeDecodeError) as error:
            why = error.strerror if isinstance(error, OSError) else "it is not text"
            raise ConfigError(f"network.redis_password_file: {network.redis_password_file}: {why}") from None
        if not password:
            raise ConfigError(f"network.redis_password_file: {network.redis_password_file} is empty")
    if password:
        never_print(password)
    return RedisAccess(password=SecretStr(password) if password else None, ca_file=network.redis_ca_file)
