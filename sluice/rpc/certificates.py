"""Mutual TLS: both ends show a certificate of the run's own authority, whose DNS name `ROLE.sluice` is their role.

A client insists on the name of the role that the client means to call, whatever the address, so certificates name no hosts
and a rollout cannot pose as the coordinator. Who means any service, as Prometheus does, insists on SERVES, which the
certificate of every role that serves names as well. `sluice certs` makes certificates (certificate_authority.py); any CA may.
"""

import ssl
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import grpc

from sluice.errors import ConfigError, Unauthenticated
from sluice.rpc.access import Role
from sluice.rpc.credentials_port import CallContext, Metadata, Options

FILE, KEY, AUTHORITY = "cert.pem", "key.pem", "ca.pem"
DOMAIN = ".sluice"
SERVES = "service.sluice"
"""The DNS name that all services have in common; no role is called so."""
NAMES = "x509_subject_alternative_name"
"""gRPC's name of the fact that lists the DNS names of the caller's certificate."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Certificates:
    """One process's certificate, the certificate's key and the trusted authority; implements Credentials."""

    role: Role
    certificate: bytes = field(repr=False)
    key: bytes = field(repr=False)
    authority: bytes = field(repr=False)
    folder: Path
    """Where they were read."""

    def check_listens(self, bind: str) -> None:
        """Credentials.check_listens: anywhere."""

    def server_tls(self) -> grpc.ServerCredentials | None:
        """Credentials.server_tls."""
        return grpc.ssl_server_credentials([(self.key, self.certificate)], self.authority, require_client_auth=True)

    def http_tls(self) -> ssl.SSLContext | None:
        """Credentials.http_tls. Reads the files again, because Python's TLS takes keys from files alone."""
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        try:
            context.load_cert_chain(self.folder / FILE, self.folder / KEY)
            context.load_verify_locations(self.folder / AUTHORITY)
        except OSError as error:  # ssl.SSLError is one
            raise ConfigError(f"{self.folder}: cannot serve metrics: {error}; `sluice certs` makes the files") from None
        context.verify_mode = ssl.CERT_REQUIRED
        return context

    def caller(self, context: CallContext) -> Role | None:
        """Credentials.caller."""
        names = [name.decode(errors="replace") for name in context.auth_context().get(NAMES, ())]
        roles = roles_in(names)
        if len(roles) != 1:
            raise Unauthenticated(
                f"the certificate must name one role, as the DNS name ROLE{DOMAIN}, got {names}; make it with `sluice certs`"
            )
        return roles[0]

    def channel_tls(self) -> grpc.ChannelCredentials:
        """Credentials.channel_tls."""
        return grpc.ssl_channel_credentials(self.authority, self.key, self.certificate)

    def channel_options(self, to: Role) -> Options:
        """Credentials.channel_options."""
        return (("grpc.ssl_target_name_override", f"{to}{DOMAIN}"),)

    def metadata(self, address: str, to: Role) -> Metadata:
        """Credentials.metadata: none, because the certificate shows the role."""
        return ()


def roles_in(names: Sequence[str]) -> list[Role]:
    """The roles among a certificate's DNS names."""
    known = {f"{role}{DOMAIN}": role for role in Role}
    return [known[name] for name in names if name in known]


def load(folder: Path) -> Certificates:
    """Reads FOLDER/{cert,key,ca}.pem and checks that the three fit. Raises ConfigError with what is wrong."""
    paths = [folder / name for name in (FILE, KEY, AUTHORITY)]
    try:
        certificate, key, authority = (path.read_bytes() for path in paths)
    except OSError as error:
        raise ConfigError(f"{error.filename}: cannot be read: {error.strerror}; `sluice certs` makes it") from None
    try:
        peer = _handshake(*paths)
    except (ssl.SSLError, ValueError) as error:
        raise ConfigError(
            f"{folder}: certificate, key and authority do not fit: {error}; `sluice certs` renews what it made"
        ) from None
    roles = roles_in([str(name) for kind, name in peer.get("subjectAltName", ()) if kind == "DNS"])  # type: ignore[misc]
    if len(roles) != 1:
        raise ConfigError(
            f"{paths[0]}: must name one role, as the DNS name ROLE{DOMAIN}, got {roles}; use `sluice certs`"
        )
    return Certificates(role=roles[0], certificate=certificate, key=key, authority=authority, folder=folder)


def _handshake(certificate: Path, key: Path, authority: Path) -> Mapping[str, object]:
    """The certificate as a peer that trusts `authority` sees it, with chain, dates and key checked. Raises SSLError."""
    serving, calling = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER), ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    serving.load_cert_chain(certificate, key)
    calling.load_verify_locations(authority)
    calling.check_hostname = False  # the role is read from the certificate afterwards
    to_server, to_client = ssl.MemoryBIO(), ssl.MemoryBIO()
    client = calling.wrap_bio(to_client, to_server)
    server = serving.wrap_bio(to_server, to_client, server_side=True)
    for end in (client, server, client):
        try:
            end.do_handshake()
        except ssl.SSLWantReadError:
            continue
    return client.getpeercert() or {}
