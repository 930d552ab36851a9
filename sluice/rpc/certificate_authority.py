"""Development certificates: a run's own authority, and one certificate a role. Needs the package `cryptography`.

A company's own CA does as well: only the DNS name `ROLE.sluice` in a certificate matters (certificates.py).
"""

import datetime
import ipaddress
from collections.abc import Sequence
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import (
    Encoding,
    NoEncryption,
    PrivateFormat,
    load_pem_private_key,
)
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from sluice.errors import ConfigError
from sluice.rpc.access import SERVERS, Role
from sluice.rpc.certificates import AUTHORITY, DOMAIN, FILE, KEY, SERVES
from sluice.rpc.tokens import write_private

AUTHORITY_KEY = "ca-key.pem"
AUTHORITY_DAYS = 3650
_CLOCKS_DIFFER = datetime.timedelta(minutes=5)


def make_certificates(
    folder: Path, *, valid_for: datetime.timedelta, hosts: Sequence[str] = (), keep_authority: bool = True
) -> None:
    """Writes FOLDER/ROLE/{cert,key,ca}.pem for every role; makes the authority in FOLDER unless FOLDER has one.

    `hosts` are further names or addresses in the certificates, for other gRPC clients. Without `keep_authority` the authority
    is new and its key is written nowhere. Raises ConfigError when FOLDER has only the key or only the certificate of an
    authority.
    """
    authority, signer = _authority(folder) if keep_authority else _new_authority()
    public = authority.public_bytes(Encoding.PEM)
    for role in Role:
        key = ec.generate_private_key(ec.SECP256R1())
        common = [SERVES] if role in SERVERS else []
        names = [x509.DNSName(f"{role}{DOMAIN}"), *(_name(name) for name in (*common, *hosts))]
        certificate = (
            _builder(f"sluice {role}", key, authority.subject, valid_for)
            .add_extension(x509.SubjectAlternativeName(names), critical=False)
            .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
            .add_extension(
                x509.ExtendedKeyUsage([ExtendedKeyUsageOID.SERVER_AUTH, ExtendedKeyUsageOID.CLIENT_AUTH]),
                critical=False,
            )
            .sign(signer, hashes.SHA256())
        )
        write_private(folder / role / KEY, _private(key))
        write_private(folder / role / FILE, certificate.public_bytes(Encoding.PEM))
        write_private(folder / role / AUTHORITY, public)


def time_left(folder: Path) -> datetime.timedelta:
    """How long the certificates in FOLDER/ROLE are all valid, if they are of one authority; nothing for files that are
    missing or damaged."""
    try:
        found = [x509.load_pem_x509_certificate((folder / role / FILE).read_bytes()) for role in Role]
        authorities = {(folder / role / AUTHORITY).read_bytes() for role in Role}
    except (OSError, ValueError):
        return datetime.timedelta()
    if len(authorities) > 1 or not all((folder / role / KEY).exists() for role in Role):
        return datetime.timedelta()
    return min(each.not_valid_after_utc for each in found) - datetime.datetime.now(datetime.UTC)


def _authority(folder: Path) -> tuple[x509.Certificate, ec.EllipticCurvePrivateKey]:
    certificate_path, key_path = folder / AUTHORITY, folder / AUTHORITY_KEY
    if certificate_path.exists() != key_path.exists():
        raise ConfigError(f"{folder}: must hold both {AUTHORITY} and {AUTHORITY_KEY} or neither; remove what is left")
    if certificate_path.exists():
        signer = load_pem_private_key(key_path.read_bytes(), password=None)
        assert isinstance(signer, ec.EllipticCurvePrivateKey)
        return x509.load_pem_x509_certificate(certificate_path.read_bytes()), signer
    certificate, key = _new_authority()
    write_private(key_path, _private(key))
    write_private(certificate_path, certificate.public_bytes(Encoding.PEM))
    return certificate, key


def _new_authority() -> tuple[x509.Certificate, ec.EllipticCurvePrivateKey]:
    key = ec.generate_private_key(ec.SECP256R1())
    name = _subject("sluice development CA")
    certificate = (
        _builder("sluice development CA", key, name, datetime.timedelta(days=AUTHORITY_DAYS))
        .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
        .sign(key, hashes.SHA256())
    )
    return certificate, key


def _builder(
    name: str, key: ec.EllipticCurvePrivateKey, issuer: x509.Name, valid_for: datetime.timedelta
) -> x509.CertificateBuilder:
    now = datetime.datetime.now(datetime.UTC)
    return (
        x509.CertificateBuilder()
        .subject_name(_subject(name))
        .issuer_name(issuer)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(min(now, now + valid_for) - _CLOCKS_DIFFER)
        .not_valid_after(now + valid_for)
    )


def _subject(name: str) -> x509.Name:
    return x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])


def _name(host: str) -> x509.GeneralName:
    try:
        return x509.IPAddress(ipaddress.ip_address(host))
    except ValueError:
        return x509.DNSName(host)


def _private(key: ec.EllipticCurvePrivateKey) -> bytes:
    return key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
