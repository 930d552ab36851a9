"""The credentials that a process shows and asks for: none (loopback only), tokens, or certificates.

`sluice tokens` or `sluice certs` makes a folder a role; SLUICE_CREDENTIALS or --credentials names a process's folder. The
content of the folder decides between tokens and certificates; both ends of a channel need the same kind.
"""

import ssl
from pathlib import Path

import grpc

from sluice.addresses import is_loopback
from sluice.errors import ConfigError
from sluice.rpc import certificates, tokens
from sluice.rpc.access import Role
from sluice.rpc.credentials_port import CallContext, Credentials, Metadata, Options

__all__ = ["ENVIRONMENT", "NO_CREDENTIALS", "Credentials", "NoCredentials", "load_credentials"]

ENVIRONMENT = "SLUICE_CREDENTIALS"


class NoCredentials:
    """No credentials, for a machine that trusts its own users: callers show nothing, and servers bind loopback only."""

    def check_listens(self, bind: str) -> None:
        """Credentials.check_listens."""
        if not is_loopback(bind):
            raise ConfigError(
                f"network.bind (--bind): must be a loopback address while there are no credentials, got {bind}; make some "
                "with `sluice certs DIR` (or `sluice tokens DIR --private-network`), then give network.credentials=DIR to "
                f"`sluice up` and {ENVIRONMENT}=DIR/ROLE to a service started by hand"
            )

    def server_tls(self) -> grpc.ServerCredentials | None:
        """Credentials.server_tls."""
        return None

    def http_tls(self) -> ssl.SSLContext | None:
        """Credentials.http_tls."""
        return None

    def caller(self, context: CallContext) -> Role | None:
        """Credentials.caller."""
        return None

    def channel_tls(self) -> grpc.ChannelCredentials | None:
        """Credentials.channel_tls."""
        return None

    def channel_options(self, to: Role) -> Options:
        """Credentials.channel_options."""
        return ()

    def metadata(self, address: str, to: Role) -> Metadata:
        """Credentials.metadata."""
        return ()


NO_CREDENTIALS = NoCredentials()


def load_credentials(folder: str | Path | None, *, role: Role | None = None) -> Credentials:
    """The credentials in `folder`; NoCredentials for None or "". With `role` the folder must belong to this role.

    Raises ConfigError with the file and the fix, also for a certificate that has expired.
    """
    if not folder:
        return NO_CREDENTIALS
    folder = Path(folder)
    found = [kind for kind in (tokens, certificates) if (folder / kind.FILE).exists()]
    if len(found) != 1:
        what = "both" if found else "neither"
        raise ConfigError(
            f"{ENVIRONMENT} (--credentials): {folder} must hold {tokens.FILE} or {certificates.FILE}, it holds {what}; "
            "name the folder of one role, as `sluice certs` or `sluice tokens` makes it"
        )
    loaded = found[0].load(folder)
    if role is not None and loaded.role is not role:
        raise ConfigError(f"{ENVIRONMENT} (--credentials): {folder} is that of a {loaded.role}, this is a {role}")
    return loaded
