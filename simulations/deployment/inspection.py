"""What may be wrong with a fleet's folder: what expires when, whose permissions, what fits what."""

from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING

from simulations.deployment.certificates import read_certificate
from simulations.deployment.kit import Kit, read_kit

if TYPE_CHECKING:
    from cryptography.x509 import Certificate

SOON = 30
"""Days before its end in which a certificate is to be renewed."""
RENEW = "fedsparse deploy renew"


@dataclass(frozen=True)
class Finding:
    """One thing that was looked at, whether it is well, and what is to be known or done."""

    what: str
    well: bool
    said: str


def inspect(folder: Path, now: datetime | None = None) -> list[Finding]:
    """Look through a fleet's folder; raises ConfigError for what is none."""
    kit = read_kit(folder)
    now = now or datetime.now(UTC)
    authority = read_certificate(folder / "authority" / "ca.crt")
    return [
        _term("authority/ca.crt", authority, now, "make a new fleet, `fedsparse deploy init`"),
        *_server(folder, kit, authority, now),
        _private(folder, "authority/ca.key"),
        _private(folder, "superlink/server.key"),
        *(found for name in kit.nodes for found in _node(folder, name)),
        *_partitions(kit),
    ]


def _partitions(kit: Kit) -> Iterator[Finding]:
    """Tell which partitions no node holds: a run would wait for them in vain."""
    held = set(kit.nodes.values())
    if missing := sorted(set(range(kit.partitions)) - held):
        named = ", ".join(map(str, missing[:5])) + (", ..." if len(missing) > 5 else "")
        said = f"no node holds partition {named}; add one, `fedsparse deploy node --partition`"
        yield Finding("nodes", False, said)


def _term(what: str, certificate: "Certificate", now: datetime, remedy: str) -> Finding:
    end = certificate.not_valid_after_utc
    days = (end - now).days
    if now < certificate.not_valid_before_utc:
        return Finding(what, False, f"not valid before {certificate.not_valid_before_utc:%Y-%m-%d}")
    if now > end:
        return Finding(what, False, f"expired on {end:%Y-%m-%d}; {remedy}")
    if days < SOON:
        return Finding(what, False, f"expires on {end:%Y-%m-%d}, in {days} days; {remedy}")
    return Finding(what, True, f"valid until {end:%Y-%m-%d}, {days} days")


def _server(folder: Path, kit: Kit, authority: "Certificate", now: datetime) -> Iterator[Finding]:
    from cryptography.exceptions import InvalidSignature
    from cryptography.hazmat.primitives.serialization import load_pem_private_key
    from cryptography.x509 import DNSName, IPAddress, SubjectAlternativeName

    place, what = folder / "superlink", "superlink/server.crt"
    certificate = read_certificate(place / "server.crt")
    yield _term(what, certificate, now, f"`{RENEW}`")
    try:
        certificate.verify_directly_issued_by(authority)
    except (ValueError, TypeError, InvalidSignature):
        yield Finding(what, False, f"not signed by this fleet's authority; `{RENEW}`")
    names = certificate.extensions.get_extension_for_class(SubjectAlternativeName).value
    held = {*names.get_values_for_type(DNSName), *map(str, names.get_values_for_type(IPAddress))}
    if missing := [host for host in kit.hosts if host not in held]:
        yield Finding(what, False, f"not for {', '.join(missing)}; `{RENEW}`")
    try:
        key = load_pem_private_key((place / "server.key").read_bytes(), None)
        fits = key.public_key() == certificate.public_key()
    except (OSError, ValueError, TypeError):
        fits = False
    if not fits:
        yield Finding(what, False, f"server.key is missing or another's; `{RENEW}`")


def _node(folder: Path, name: str) -> Iterator[Finding]:
    place, known = folder / "nodes" / name, folder / "superlink" / "keys" / f"{name}.pub"
    what = f"nodes/{name}"
    try:
        same = (place / "node.pub").read_bytes() == known.read_bytes()
        trusts = (place / "ca.crt").read_bytes() == (folder / "authority/ca.crt").read_bytes()
    except OSError as error:
        yield Finding(what, False, f"'{error.filename}' cannot be read")
        return
    if not same:
        yield Finding(what, False, f"node.pub is not superlink/keys/{name}.pub; copy it there")
    if not trusts:
        yield Finding(what, False, "ca.crt is not authority/ca.crt; copy it there")
    if (place / "node.key").exists():
        yield _private(folder, f"{what}/node.key")
    else:
        yield Finding(what, True, "its key is at the node alone")


def _private(folder: Path, name: str) -> Finding:
    """Tell whether a private key is its owner's alone."""
    try:
        mode = (folder / name).stat().st_mode & 0o777
    except OSError:
        return Finding(name, False, "it is missing; bring it back from where it is kept")
    if mode & 0o077:
        return Finding(name, False, f"others may read it (mode {mode:o}); chmod 600 {name}")
    return Finding(name, True, f"its owner's alone (mode {mode:o})")
