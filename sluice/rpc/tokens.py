"""Bearer tokens: one random secret for each pair of caller and called role; one for all services for who reads metrics alone.

A process holds the tokens that the process shows, and only digests of the tokens that the process accepts. So nobody can
use a token elsewhere: the learner refuses the token that the coordinator shows a rollout, and a rollout's folder makes no
operator. Tokens are readable on the wire; `sluice tokens --private-network` says that tokens may leave a machine.
"""

import hashlib
import hmac
import json
import os
import secrets
import ssl
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

import grpc

from sluice.addresses import is_loopback, stays_here
from sluice.errors import ConfigError, Unauthenticated
from sluice.rpc.access import Role, audiences
from sluice.rpc.credentials_port import CallContext, Metadata, Options
from sluice.telemetry.redaction import never_print

FILE = "tokens.json"
PLAIN_FILE = "token"
"""In the folder `metrics` the one token by itself, for Prometheus's `credentials_file`."""
TOKEN_BYTES = 32
_HEADER, _SCHEME = "authorization", "Bearer "


@dataclass(frozen=True, kw_only=True, slots=True)
class Tokens:
    """One process's tokens; implements Credentials."""

    role: Role
    speaks: Mapping[Role, str] = field(repr=False)
    """The token to show, by the role that is called."""
    accepts: Mapping[Role, str] = field(repr=False)
    """SHA-256 of the token of each role that may call this process."""
    private_network: bool = False
    """Whether the tokens may cross a network on which nobody else can listen."""

    def check_listens(self, bind: str) -> None:
        """Credentials.check_listens."""
        if not (self.private_network or is_loopback(bind)):
            raise ConfigError(
                f"network.bind (--bind): must be a loopback address with these tokens, got {bind}: they would cross the "
                "network in the clear. Use `sluice certs` for network.credentials, or make the tokens with `sluice tokens "
                "--private-network` where nobody else can listen, such as a network of containers"
            )

    def server_tls(self) -> grpc.ServerCredentials | None:
        """Credentials.server_tls."""
        return None

    def http_tls(self) -> ssl.SSLContext | None:
        """Credentials.http_tls."""
        return None

    def caller(self, context: CallContext) -> Role | None:
        """Credentials.caller."""
        shown = [value for key, value in context.invocation_metadata() or () if key == _HEADER]
        if len(shown) != 1 or not isinstance(shown[0], str) or not shown[0].startswith(_SCHEME):
            raise Unauthenticated(
                f"this {self.role} asks for a token: give SLUICE_CREDENTIALS (or --credentials) the folder of your role, as "
                f"`sluice tokens` made it (on the wire: one header `{_HEADER}: {_SCHEME}TOKEN`)"
            )
        digest = _digest(shown[0].removeprefix(_SCHEME))
        # Compares all digests, so that the time taken does not tell which role's token was nearly right.
        callers = [role for role, accepted in self.accepts.items() if hmac.compare_digest(digest, accepted)]
        if not callers:
            raise Unauthenticated(
                f"this {self.role} does not know the token: it was made for another service or another run; use the folder "
                "that the same `sluice tokens` made for your role"
            )
        return callers[0]

    def channel_tls(self) -> grpc.ChannelCredentials | None:
        """Credentials.channel_tls."""
        return None

    def channel_options(self, to: Role) -> Options:
        """Credentials.channel_options."""
        return ()

    def metadata(self, address: str, to: Role) -> Metadata:
        """Credentials.metadata."""
        if to not in self.speaks:
            raise ConfigError(
                f"a {self.role} has no token for a {to}: sluice/rpc/access.py gives it nothing to ask there"
            )
        if not (self.private_network or stays_here(address)):
            raise ConfigError(
                f"{address}: tokens made without `--private-network` are not sent off this machine in the clear; use "
                "`sluice certs`, or `sluice tokens --private-network` where nobody else can listen"
            )
        return ((_HEADER, _SCHEME + self.speaks[to]),)


def make_tokens(folder: Path, *, private_network: bool) -> None:
    """Writes FOLDER/ROLE/tokens.json for every role, readable by the owner alone. Raises ConfigError if a file exists."""
    tokens = {(caller, to): secrets.token_urlsafe(TOKEN_BYTES) for caller in Role for to in audiences(caller)}
    for_metrics = secrets.token_urlsafe(TOKEN_BYTES)  # one: Prometheus shows one token to all that it finds
    tokens |= {(Role.METRICS, to): for_metrics for to in audiences(Role.METRICS)}
    if there := [path for role in Role if (path := folder / role / FILE).exists()]:
        raise ConfigError(f"{there[0]} is there already; remove {folder} to give every process new tokens")
    for role in Role:
        text = json.dumps(
            {
                "role": role,
                "private_network": private_network,
                "speaks": {to: token for (caller, to), token in tokens.items() if caller is role},
                "accepts": {caller: _digest(token) for (caller, to), token in tokens.items() if to is role},
            },
            indent=2,
        )
        write_private(folder / role / FILE, text.encode())
    write_private(folder / Role.METRICS / PLAIN_FILE, for_metrics.encode())


def load(folder: Path) -> Tokens:
    """Reads FOLDER/tokens.json. Raises ConfigError."""
    path = folder / FILE
    try:
        tree = json.loads(path.read_text(encoding="utf-8"))
        loaded = Tokens(
            role=Role(tree["role"]),
            speaks={Role(role): str(token) for role, token in tree["speaks"].items()},
            accepts={Role(role): str(digest) for role, digest in tree["accepts"].items()},
            private_network=tree["private_network"] is True,
        )
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise ConfigError(
            f"{path}: cannot be used: {type(error).__name__}; make it anew with `sluice tokens`"
        ) from None
    for token in loaded.speaks.values():
        never_print(token)
    return loaded


def write_private(path: Path, data: bytes) -> None:
    """Writes a file that only the owner can read, in a folder that only the owner can enter."""
    path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
    with os.fdopen(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600), "wb") as file:
        file.write(data)


def _digest(token: str) -> str:
    return hashlib.sha256(token.encode()).hexdigest()
