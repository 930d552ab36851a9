"""`network`: addresses, and who may call."""

import ipaddress
from collections.abc import Iterator

from pydantic import Field

from sluice.addresses import AUTO, EVERY_ADDRESS, is_address, is_loopback
from sluice.config.redis_url import password_problem
from sluice.config.schema.section import PathText, Port, PositiveFloat, Section
from sluice.limits import MAX_CALLS_PER_S

_SCHEMES = ("redis://", "rediss://", "unix://")


class NetworkConfig(Section):
    """Addresses, and who may call. Everything binds loopback unless told otherwise (docs/security.md)."""

    bind: str = Field(
        default=AUTO,
        description="what every server listens on, found out on its own machine: an interface (ib0), a CIDR (10.1.0.0/16), "
        "an address, or auto: loopback with launch.engine local, else the address from which a node reaches the "
        "coordinator; beyond loopback it needs network.credentials, which a cluster's run makes for itself",
    )
    advertise: str = Field(
        default=AUTO,
        description="where others reach a server: as network.bind, or a host; auto: where the server listens",
    )
    coordinator_port: Port = Field(default=18050, description="0: any free port")
    gateway_port: Port = Field(
        default=18080,
        description="HTTP port of the coordinator for agents that bring their own loop; it is opened only where an "
        "environment is `agent`; 0: any free port",
    )
    metrics: bool = Field(
        default=True, description="a Prometheus endpoint a service, for callers with credentials where there are any"
    )
    credentials: PathText | None = Field(
        default=None,
        description="folder made by `sluice certs` or `sluice tokens`; each process gets its own role's part of it",
    )
    trusted: bool = Field(
        default=False,
        description="nobody but the run can listen on the network: weights.backend auto sends weights unencrypted",
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
        """Refuses a network that is none, and a password in the Redis URL."""
        for key, words in (("bind", self.bind), ("advertise", self.advertise)):
            if not words or ("/" in words and not _is_network(words)):
                yield f"{key}: must be auto, an interface, a CIDR (10.1.0.0/16), an address or a host, got {words!r}"
        if self.redis_url is not None and (problem := password_problem(self.redis_url)):
            yield f"redis_url: {problem}"
        elif self.redis_url is not None and not self.redis_url.startswith(
            _SCHEMES
        ):  # not shown, for it may be a password
            yield f"redis_url: must begin with {', '.join(_SCHEMES)}, and does not"

    def problems_here(self) -> Iterator[str]:
        """Refuses a run of one machine that would be open to the network."""
        if self.bind != AUTO and not is_loopback(self.bind) and self.credentials is None:
            yield (
                "network.bind: must be a loopback address, or auto, while network.credentials is not set, got "
                f"{self.bind}; make credentials with `sluice certs DIR` (or `sluice tokens DIR --private-network`) and set "
                "network.credentials: DIR"
            )

    def problems_on_a_cluster(self, engine: str) -> Iterator[str]:
        """Refuses an address of one node as that of every node."""
        for key, words in (("bind", self.bind), ("advertise", self.advertise)):
            if is_address(words) and not is_loopback(words) and (key == "advertise" or words not in EVERY_ADDRESS):
                yield (
                    f"network.{key}: must be auto, an interface or a CIDR while launch.engine is {engine}, got {words}, which "
                    "is no address of every node"
                )


def _is_network(words: str) -> bool:
    try:
        ipaddress.ip_network(words, strict=False)
    except ValueError:
        return False
    return True
