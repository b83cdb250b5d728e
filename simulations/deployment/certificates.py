"""Certificates and keys of a fleet: an authority, the server's certificate, a key for each node.

Made with the library `cryptography`; Flower 1.41 wants node keys on the curve P-384. Private
keys are readable by their owner alone. Nothing here is a substitute for an authority that
revokes: a lost key is unregistered at the SuperLink.
"""

import ipaddress
import os
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import TYPE_CHECKING

from fedsparse.errors import MissingExtraError
from fedsparse.runs.atomic import writing

if TYPE_CHECKING:
    from cryptography.hazmat.primitives.asymmetric.ec import EllipticCurvePrivateKey
    from cryptography.x509 import Certificate, CertificateBuilder, GeneralName, Name

DAYS = 365
LOOPBACK = ("127.0.0.1", "localhost")


@dataclass(frozen=True)
class Authority:
    """What a fleet trusts: the certificate that every node holds, and the key that signs."""

    certificate: "Certificate"
    key: "EllipticCurvePrivateKey"


@dataclass(frozen=True)
class ServerFiles:
    """Paths of what a SuperLink is started with."""

    authority: Path
    certificate: Path
    key: Path


def make_authority(name: str = "fedsparse fleet", *, days: int = DAYS) -> Authority:
    """Make a new authority, valid for `days` from now; a negative number has expired."""
    key = _new_key()
    builder = _builder(name, name, key, days)
    return Authority(_signed(builder, key, authority=True), key)


def write_server(
    folder: Path, authority: Authority, hosts: Sequence[str] = (), *, days: int = DAYS
) -> ServerFiles:
    """Write `ca.crt`, `server.crt` and `server.key` for loopback and `hosts`; return their paths.

    Raises RunFolderError where the folder cannot be written.
    """
    from cryptography import x509

    key = _new_key()
    names = x509.SubjectAlternativeName(
        [_name(host) for host in dict.fromkeys((*LOOPBACK, *hosts))]
    )
    builder = _builder("fedsparse server", _common(authority), key, days)
    certificate = _signed(builder.add_extension(names, critical=False), authority.key)
    files = ServerFiles(folder / "ca.crt", folder / "server.crt", folder / "server.key")
    write_private(files.authority, _pem(authority.certificate))
    write_private(files.certificate, _pem(certificate))
    write_private(files.key, _private(key))
    return files


def write_node_key(folder: Path, name: str) -> tuple[Path, Path]:
    """Write a node's new key, `NAME.key` and `NAME.pub`, and return (private, public)."""
    from cryptography.hazmat.primitives import serialization as forms

    key = _new_key()
    private, public = folder / f"{name}.key", folder / f"{name}.pub"
    openssh = key.private_bytes(
        forms.Encoding.PEM, forms.PrivateFormat.OpenSSH, forms.NoEncryption()
    )
    write_private(private, openssh)
    write_private(
        public, key.public_key().public_bytes(forms.Encoding.OpenSSH, forms.PublicFormat.OpenSSH)
    )
    return private, public


def write_private(path: Path, content: bytes) -> None:
    """Write a new file that its owner alone can read; one that is there is never replaced.

    Raises RunFolderError.
    """
    with writing(path.parent):
        path.parent.mkdir(parents=True, exist_ok=True)
        descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
        with os.fdopen(descriptor, "wb") as file:
            file.write(content)


def require_library() -> None:
    """Raise MissingExtraError where certificates cannot be made."""
    try:
        import cryptography  # noqa: F401
    except ImportError:
        raise MissingExtraError("a deployment with TLS", "deploy") from None


def _new_key() -> "EllipticCurvePrivateKey":
    require_library()
    from cryptography.hazmat.primitives.asymmetric import ec

    return ec.generate_private_key(ec.SECP384R1())


def _builder(
    subject: str, issuer: str, key: "EllipticCurvePrivateKey", days: int
) -> "CertificateBuilder":
    """Return a certificate to be signed; clocks may differ by an hour."""
    from cryptography import x509

    end = datetime.now(UTC) + timedelta(days=days)
    begin = min(datetime.now(UTC), end - timedelta(days=1)) - timedelta(hours=1)
    return (
        x509.CertificateBuilder()
        .subject_name(_distinguished(subject))
        .issuer_name(_distinguished(issuer))
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(begin)
        .not_valid_after(end)
    )


def _signed(
    builder: "CertificateBuilder", key: "EllipticCurvePrivateKey", *, authority: bool = False
) -> "Certificate":
    from cryptography import x509
    from cryptography.hazmat.primitives import hashes

    constraints = x509.BasicConstraints(ca=authority, path_length=0 if authority else None)
    return builder.add_extension(constraints, critical=True).sign(key, hashes.SHA384())


def _distinguished(name: str) -> "Name":
    from cryptography import x509

    return x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, name)])


def _common(authority: Authority) -> str:
    from cryptography import x509

    found = authority.certificate.subject.get_attributes_for_oid(x509.NameOID.COMMON_NAME)
    return str(found[0].value)


def _name(host: str) -> "GeneralName":
    """Return a host as a certificate names it: by address or by name."""
    from cryptography import x509

    try:
        return x509.IPAddress(ipaddress.ip_address(host))
    except ValueError:
        return x509.DNSName(host)


def _pem(certificate: "Certificate") -> bytes:
    from cryptography.hazmat.primitives.serialization import Encoding

    return certificate.public_bytes(Encoding.PEM)


def _private(key: "EllipticCurvePrivateKey") -> bytes:
    from cryptography.hazmat.primitives import serialization as forms

    return key.private_bytes(forms.Encoding.PEM, forms.PrivateFormat.PKCS8, forms.NoEncryption())
