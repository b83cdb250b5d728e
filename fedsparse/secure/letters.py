"""The bytes of secure aggregation's messages: fixed layouts, checked before they are used.

keys, up:      public key for shares (32), public key for masks (32)
shares, down:  for each neighbour: client (4), its two public keys (64)
shares, up:    commitment to the seed (32), for each neighbour in this order: sealed shares (94)
train, up:     magic "FSSM" | version | bits | 0 0 | session (16) | schema digest (8) |
               mask digest (16) | masked words | CRC-32 of all before (4)
unmask, down:  for each neighbour that is left or lost: client (4), 0 or 1, sealed shares (94)
unmask, up:    for each of them in this order: a share (33), of its seed for 0, its key for 1
"""

import struct
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple, TypeVar

from fedsparse import wire
from fedsparse.errors import SecureAggregationError
from fedsparse.secure import shamir
from fedsparse.secure.keys import KEY, OVERHEAD
from fedsparse.sparsity import Mask
from fedsparse.wire.checksum import crc32

T = TypeVar("T")

SESSION = 16
SEALED = 2 * shamir.SHARE + OVERHEAD
SEED_SHARE, KEY_SHARE = 0, 1
"""Which of its two shares of a neighbour's secrets a client is asked for."""

_HEAD = struct.Struct("<4sBBxx16s8s16s")
_PEER = struct.Struct(f"<I{KEY}s{KEY}s")
_WANT = struct.Struct(f"<IB{SEALED}s")
_CRC = struct.Struct("<I")


class Peer(NamedTuple):
    """A client and its public keys, for shares and for masks."""

    client: int
    for_shares: bytes
    for_masks: bytes


class Want(NamedTuple):
    """A share that a client is asked for: of whose secrets, which one, and the sealed shares."""

    client: int
    kind: int
    sealed: bytes


def write_peers(peers: Sequence[Peer]) -> bytes:
    """Return a list of neighbours as bytes."""
    return b"".join(_PEER.pack(*peer) for peer in peers)


def read_peers(content: bytes) -> list[Peer]:
    """Return a list of neighbours; each may be there once."""
    return _rows(content, _PEER, "neighbours", lambda row: Peer(*row))


def write_wants(wants: Sequence[Want]) -> bytes:
    """Return which shares are asked for as bytes."""
    return b"".join(_WANT.pack(*want) for want in wants)


def read_wants(content: bytes) -> list[Want]:
    """Return which shares are asked for; no client may be there twice."""
    return _rows(content, _WANT, "shares that are asked for", lambda row: Want(*row))


def _rows(
    content: bytes, layout: struct.Struct, what: str, made: Callable[[tuple[Any, ...]], T]
) -> list[T]:
    if not content or len(content) % layout.size:
        raise SecureAggregationError(f"the list of {what} has {len(content)} bytes; it is refused")
    rows = list(layout.iter_unpack(content))
    if len({row[0] for row in rows}) < len(rows):
        raise SecureAggregationError(f"the list of {what} names a client twice; it is refused")
    return [made(row) for row in rows]


def pieces(content: bytes, size: int, count: int, what: str) -> list[bytes]:
    """Return `count` pieces of `size` bytes; raises SecureAggregationError for another length."""
    if len(content) != size * count:
        raise SecureAggregationError(
            f"{what} have {len(content)} bytes; {count} of {size} were asked for"
        )
    return [content[begin : begin + size] for begin in range(0, len(content), size)]


def write_masked(
    words: bytes, bits: int, session: bytes, schema: wire.Schema, mask: Mask | None
) -> bytes:
    """Return the payload of a masked model."""
    head = _HEAD.pack(b"FSSM", 1, bits, session, schema.digest, _digest(mask))
    return head + words + _CRC.pack(crc32(head + words))


def read_masked(
    content: bytes, bits: int, session: bytes, schema: wire.Schema, mask: Mask | None
) -> bytes:
    """Return the words of a masked model; raises SecureAggregationError for any other payload."""
    if len(content) < _HEAD.size + _CRC.size or content[:4] != b"FSSM":
        raise SecureAggregationError("the reply holds no masked model; nothing else is taken")
    words = content[_HEAD.size : -_CRC.size]
    if _CRC.unpack(content[-_CRC.size :]) != (crc32(content[: -_CRC.size]),):
        raise SecureAggregationError("the masked model was damaged on its way")
    if content[: _HEAD.size] != _HEAD.pack(b"FSSM", 1, bits, session, schema.digest, _digest(mask)):
        raise SecureAggregationError(
            "the masked model is of another round, model or mask than was sent"
        )
    return words


def _digest(mask: Mask | None) -> bytes:
    return bytes(16) if mask is None else mask.digest


def values_under(schema: wire.Schema, mask: Mask | None) -> int:
    """Return how many values a model has under a mask."""
    if mask is None:
        return schema.entries
    return schema.entries - mask.size + mask.kept


def needed(threshold: float, neighbours: int) -> int:
    """Return how many of a client's neighbours put its secrets together: more than half of them.

    So no server gets both secrets of a client by telling neighbours different stories, unless some
    of these help it.
    """
    return max(neighbours // 2 + 1, -int(-(threshold * neighbours - 1e-9) // 1))
