"""What carries weights where the recipe leaves it open: gRPC over a network that is not trusted.

Where gRPC is encrypted, the run has certificates, because its network is not its own; gloo and NCCL encrypt nothing. Tokens
leave a machine only over a private network (`sluice tokens --private-network`), and there gRPC would protect no better.
"""

from typing import Literal

from sluice.addresses import is_loopback
from sluice.config.schema import Config
from sluice.errors import ConfigError
from sluice.rpc.access import Role
from sluice.rpc.certificates import Certificates
from sluice.rpc.credentials import Credentials
from sluice.rpc.tokens import Tokens

Backend = Literal["auto", "nccl", "gloo", "grpc", "file"]


def settled_backend(config: Config, *, bind: str, credentials: Credentials) -> Backend:
    """`weights.backend` of a source that listens on `bind` with `credentials`; `auto` stays where devices decide.

    Raises ConfigError for credentials with which no rollout could fetch.
    """
    backend, network = config.weights.backend, config.network
    if backend == "auto" and isinstance(credentials, Certificates) and not (is_loopback(bind) or network.trusted):
        backend = "grpc"
    if backend == "grpc" and isinstance(credentials, Tokens) and Role.ROLLOUT not in credentials.accepts:
        raise ConfigError(
            f"weights.backend: grpc needs a token that rollouts show a {credentials.role}, and these tokens, which an earlier "
            "version made, have none; make them anew with `sluice tokens`, or take certificates of `sluice certs`"
        )
    return backend
