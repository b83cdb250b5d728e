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

from fedsparse.errors import ConfigError, MissingExtraError
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
    return Authority(_signed(builder, key, key, authority=True), key)


def write_authority(folder: Path, authority: Authority) -> None:
    """Write `ca.crt` and `ca.key`; raises RunFolderError where the folder cannot be written."""
    write_private(folder / "ca.key", _private(authority.key))
    write_public(folder / "ca.crt", _pem(authority.certificate))


def read_authority(folder: Path) -> Authority:
    """Read the authority that `write_authority` wrote; raises ConfigError where it is none."""
    from cryptography.hazmat.primitives.asymmetric.ec import EllipticCurvePrivateKey
    from cryptography.hazmat.primitives.serialization import load_pem_private_key

    certificate = read_certificate(folder / "ca.crt")
    try:
        key = load_pem_private_key((folder / "ca.key").read_bytes(), None)
    except (OSError, ValueError, TypeError) as error:
        raise ConfigError(
            f"'{folder / 'ca.key'}' cannot be read as the fleet's signing key; bring it back from "
            "where it is kept, or make a new fleet"
        ) from error
    if not isinstance(key, EllipticCurvePrivateKey):
        raise ConfigError(f"'{folder / 'ca.key'}' is no key of `fedsparse deploy init`")
    return Authority(certificate, key)


def read_certificate(path: Path) -> "Certificate":
    """Read a certificate in PEM; raises ConfigError where there is none."""
    require_library()
    from cryptography import x509

    try:
        return x509.load_pem_x509_certificate(path.read_bytes())
    except (OSError, ValueError) as error:
        raise ConfigError(
            f"'{path}' cannot be read as a certificate; copy it again from the fleet's folder"
        ) from error


def write_server(
    folder: Path, authority: Authority, hosts: Sequence[str] = (), *, days: int = DAYS
) -> ServerFiles:
    """Write `ca.crt`, `server.crt` and `server.key` for loopback and `hosts`; return their paths.

    Raises RunFolderError where the folder cannot be written.
    """
    files = ServerFiles(folder / "ca.crt", folder / "server.crt", folder / "server.key")
    certificate, key = make_server(authority, hosts, days=days)
    write_public(files.authority, _pem(authority.certificate))
    write_public(files.certificate, certificate)
    write_private(files.key, key)
    return files


def make_server(
    authority: Authority, hosts: Sequence[str] = (), *, days: int = DAYS
) -> tuple[bytes, bytes]:
    """Return a server's certificate for loopback and `hosts`, and its private key, both in PEM."""
    from cryptography import x509
    from cryptography.x509.oid import ExtendedKeyUsageOID

    key = _new_key()
    names = x509.SubjectAlternativeName(
        [_name(host) for host in dict.fromkeys((*LOOPBACK, *hosts))]
    )
    usage = x509.ExtendedKeyUsage([ExtendedKeyUsageOID.SERVER_AUTH])
    builder = _builder("fedsparse server", _common(authority), key, days)
    builder = builder.add_extension(names, critical=False).add_extension(usage, critical=False)
    return _pem(_signed(builder, key, authority.key)), _private(key)


def write_node_key(folder: Path, name: str) -> tuple[Path, Path]:
    """Write a node's new key, `NAME.key` and `NAME.pub`, and return (private, public)."""
    from cryptography.hazmat.primitives import serialization as forms

    key = _new_key()
    private, public = folder / f"{name}.key", folder / f"{name}.pub"
    openssh = key.private_bytes(
        forms.Encoding.PEM, forms.PrivateFormat.OpenSSH, forms.NoEncryption()
    )
    write_private(private, openssh)
    write_public(
        public, key.public_key().public_bytes(forms.Encoding.OpenSSH, forms.PublicFormat.OpenSSH)
    )
    return private, public


def write_private(path: Path, content: bytes) -> None:
    """Write a new file that its owner alone can read; one that is there is never replaced.

    Raises RunFolderError.
    """
    _write_new(path, content, 0o600)


def write_public(path: Path, content: bytes) -> None:
    """Write a new file that anybody can read; one that is there is never replaced.

    Raises RunFolderError.
    """
    _write_new(path, content, 0o644)


def _write_new(path: Path, content: bytes, mode: int) -> None:
    with writing(path.parent):
        path.parent.mkdir(parents=True, exist_ok=True)
        descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, mode)
        os.fchmod(descriptor, mode)
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
    builder: "CertificateBuilder",
    key: "EllipticCurvePrivateKey",
    signer: "EllipticCurvePrivateKey",
    *,
    authority: bool = False,
) -> "Certificate":
    """Sign a certificate of `key`, with what strict readers (Python 3.13) want to find in it."""
    from cryptography import x509
    from cryptography.hazmat.primitives import hashes

    constraints = x509.BasicConstraints(ca=authority, path_length=0 if authority else None)
    uses = dict.fromkeys(
        ("content_commitment", "key_encipherment", "data_encipherment", "key_agreement"), False
    )
    usage = x509.KeyUsage(
        digital_signature=not authority,
        key_cert_sign=authority,
        crl_sign=authority,
        encipher_only=False,
        decipher_only=False,
        **uses,
    )
    own = x509.SubjectKeyIdentifier.from_public_key(key.public_key())
    by = x509.AuthorityKeyIdentifier.from_issuer_public_key(signer.public_key())
    return (
        builder.add_extension(constraints, critical=True)
        .add_extension(usage, critical=True)
        .add_extension(own, critical=False)
        .add_extension(by, critical=False)
        .sign(signer, hashes.SHA384())
    )


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
