"""`network`: addresses, and who may call."""

from collections.abc import Iterator

from pydantic import Field

from sluice.addresses import is_loopback
from sluice.config.redis_url import password_problem
from sluice.config.schema.section import NonNegativeInt, PathText, PositiveFloat, Section
from sluice.limits import MAX_CALLS_PER_S


class NetworkConfig(Section):
    """Addresses, and who may call. Everything binds loopback unless told otherwise (docs/security.md)."""

    bind: str = Field(
        default="127.0.0.1",
        description="address that every server of this machine listens on; beyond loopback it needs network.credentials",
    )
    advertise: str = Field(default="127.0.0.1", description="host other services reach this machine at")
    coordinator_port: NonNegativeInt = Field(default=18050, description="0: any free port")
    metrics: bool = Field(default=True, description="a Prometheus endpoint a service, open to every caller")
    credentials: PathText | None = Field(
        default=None,
        description="folder made by `sluice certs` or `sluice tokens`; each process gets its own role's part of it",
    )
    max_calls_per_s: PositiveFloat = Field(
        default=MAX_CALLS_PER_S, description="calls/s a server takes from one role on one machine; more wait and retry"
    )
    redis_url: str | None = Field(
        default=None,
        description="an existing Redis, redis://, rediss:// (TLS) or unix://, without its password; default: an embedded "
        "one in the run directory",
    )
    redis_password_file: PathText | None = Field(
        default=None, description="file with the password of redis_url; default: environment SLUICE_REDIS_PASSWORD"
    )
    redis_ca_file: PathText | None = Field(
        default=None, description="PEM of the authority behind rediss://; default: those this machine trusts"
    )

    def problems(self) -> Iterator[str]:
        """Refuses an address beyond loopback without credentials, and a password in the Redis URL."""
        if not is_loopback(self.bind) and self.credentials is None:
            yield (
                f"bind: must be a loopback address while network.credentials is not set, got {self.bind}; make credentials "
                "with `sluice certs DIR` (or `sluice tokens DIR --private-network`) and set network.credentials: DIR"
            )
        if self.redis_url is not None and (problem := password_problem(self.redis_url)):
            yield f"redis_url: {problem}"
