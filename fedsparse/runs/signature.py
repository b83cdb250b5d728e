"""Ed25519 signatures of a ledger: that its last hash was once confirmed by the holder of a key.

A signature covers all entries up to the one that it signs, for each names the one before.
"""

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from fedsparse.errors import LedgerError, MissingExtraError, RunFolderError
from fedsparse.runs import tables
from fedsparse.runs.atomic import write_file, writing
from fedsparse.runs.ledger import Entry, Ledger

NAME = "ledger.sig"


def sign(ledger: Ledger, private: Path) -> Path:
    """Write a signature of the last entry beside the ledger, by a private key in PEM.

    Raises LedgerError for a ledger that does not verify, RunFolderError for no such key.
    """
    key = _key(private, "private")
    head = ledger.verified()[-1]["hash"]
    found = {"head": head, "ed25519": key.sign(bytes.fromhex(head)).hex()}
    path = ledger.folder / NAME
    with writing(ledger.folder):
        write_file(path, (tables.to_json(found) + "\n").encode())
    return path


def signed(ledger: Ledger, public: Path, entries: Sequence[Entry]) -> int:
    """Return how many of the verified entries the holder of a public key has signed.

    Raises LedgerError where that is none, RunFolderError for no such key.
    """
    key, path = _key(public, "public"), ledger.folder / NAME
    from cryptography.exceptions import InvalidSignature

    try:
        found = json.loads(path.read_bytes())
        head = str(found["head"])
        key.verify(bytes.fromhex(found["ed25519"]), bytes.fromhex(head))
    except FileNotFoundError:
        raise LedgerError(f"'{ledger.path}' is not signed: there is no '{path}'") from None
    except InvalidSignature:
        raise LedgerError(f"'{path}' was not made with the key of '{public}'") from None
    except (OSError, ValueError, KeyError, TypeError, RecursionError):
        raise LedgerError(f"'{path}' does not hold a signature") from None
    for number, entry in enumerate(entries, 1):
        if entry["hash"] == head:
            return number
    raise LedgerError(f"'{ledger.path}' is not the ledger that '{path}' signs")


def _key(path: Path, kind: str) -> Any:
    """Return an Ed25519 key; raises RunFolderError for anything else."""
    try:
        from cryptography.exceptions import UnsupportedAlgorithm
        from cryptography.hazmat.primitives import serialization
        from cryptography.hazmat.primitives.asymmetric import ed25519
    except ImportError:
        raise MissingExtraError("signing a ledger", "deploy") from None

    def private(text: bytes) -> Any:
        return serialization.load_pem_private_key(text, password=None)

    load: Callable[[bytes], Any] = private
    wanted: type[Any] = ed25519.Ed25519PrivateKey
    if kind == "public":
        load, wanted = serialization.load_pem_public_key, ed25519.Ed25519PublicKey
    try:
        found = load(path.read_bytes())
    except OSError as error:
        raise RunFolderError(f"'{path}' cannot be read: {error.strerror or error}") from None
    except (ValueError, TypeError, UnsupportedAlgorithm):
        found = None
    if not isinstance(found, wanted):
        raise RunFolderError(
            f"'{path}' is no unencrypted Ed25519 {kind} key in PEM; "
            "`openssl genpkey -algorithm ed25519` makes a private one, `openssl pkey -pubout` "
            "its public one"
        )
    return found
