"""Merkle trees over sample ids: one hash stands for a set, a short path for one of its members.

As in RFC 6962, section 2.1: SHA-256, leaves and nodes under unlike prefixes, a node without a
sibling goes up as it is. Before it is hashed, an id gets a nonce that only the holder of the
ledger's key can make, so that ids cannot be guessed from their hashes. Each leaf has its own: to
show one nonce tells nothing of the other samples.
"""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

_LEAF, _NODE = b"\x00", b"\x01"
NONCE_BYTES = 16


@dataclass(frozen=True)
class Proof:
    """That a sample is in the set behind a root: its nonce, and the siblings up to the root.

    `path` holds a hash a level and whether that sibling stands to the left.
    """

    sample: int
    nonce: bytes
    path: tuple[tuple[bool, bytes], ...]

    @property
    def leaf(self) -> bytes:
        """The sample's own hash."""
        return leaf(self.nonce, self.sample)

    def to_json(self) -> dict[str, Any]:
        """Return what a verifier needs, beside the root, as plain values."""
        path = [{"left" if left else "right": sibling.hex()} for left, sibling in self.path]
        nonce, own = self.nonce.hex(), self.leaf.hex()
        return {"sample": self.sample, "nonce": nonce, "leaf": own, "path": path}


def leaf(nonce: bytes, sample: int) -> bytes:
    """SHA-256(0x00 || nonce || id), the id as 8 bytes, the first the most significant."""
    return hashlib.sha256(_LEAF + nonce + sample.to_bytes(8, "big")).digest()


def leaves(key: bytes, client: int, ids: NDArray[np.int64]) -> list[bytes]:
    """Return the leaves of a client's samples, in the order of `ids`."""
    salt, numbers = _nonces(key, client, len(ids)), ids.astype(">u8").tobytes()
    sha256 = hashlib.sha256
    return [
        sha256(_LEAF + salt[2 * place : 2 * place + NONCE_BYTES] + numbers[place : place + 8])
        .digest()
        for place in range(0, len(numbers), 8)
    ]  # fmt: skip


def _nonces(key: bytes, client: int, count: int) -> bytes:
    """Return the nonces of a client's samples, one after the other: SHAKE-256 of key and client."""
    return hashlib.shake_256(key + client.to_bytes(8, "big")).digest(NONCE_BYTES * count)


def root(hashes: Sequence[bytes]) -> bytes:
    """Return the root over leaves; of none, the SHA-256 of nothing."""
    if not hashes:
        return hashlib.sha256().digest()
    level = list(hashes)
    while len(level) > 1:
        level = _above(level)
    return level[0]


def _above(level: Sequence[bytes]) -> list[bytes]:
    sha256 = hashlib.sha256
    pairs = zip(level[::2], level[1::2], strict=False)
    nodes = [sha256(_NODE + left + right).digest() for left, right in pairs]
    return [*nodes, level[-1]] if len(level) % 2 else nodes


def proof(key: bytes, client: int, ids: NDArray[np.int64], sample: int) -> Proof:
    """Return the proof that a client holds a sample; raises ValueError when it does not."""
    found = np.flatnonzero(ids == sample)
    if not len(found):
        raise ValueError(f"client {client} does not train on sample {sample}")
    place = int(found[0])
    nonce = _nonces(key, client, len(ids))[NONCE_BYTES * place : NONCE_BYTES * (place + 1)]
    path, level = [], leaves(key, client, ids)
    while len(level) > 1:
        sibling = place ^ 1
        if sibling < len(level):
            path.append((sibling < place, level[sibling]))
        level, place = _above(level), place // 2
    return Proof(sample, nonce, tuple(path))


def verify(top: bytes, shown: Proof) -> bool:
    """Tell whether a proof leads to a root."""
    found = shown.leaf
    for left, sibling in shown.path:
        pair = sibling + found if left else found + sibling
        found = hashlib.sha256(_NODE + pair).digest()
    return found == top
