"""Positions of kept entries: none, all, one bit an entry, or Golomb-coded gaps.

The gaps of a random mask are geometric, for which Golomb's code is the best code by
whole symbols (Golomb 1966; Gallager & van Voorhis 1975): within 1 % of n H(d) here. Its
unary parts, fixed-width parts and extra bits follow each other as three runs of bits, so
that each is packed and unpacked in one numpy call.

An index section starts with a byte that names its kind. A Golomb section then holds the
number of positions (LEB128); its parameter follows from that number by integers alone,
so that every machine finds the same.
"""

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fedsparse.errors import WireError

NONE, ALL, BITMASK, GOLOMB = range(4)
LARGEST = 2**31 - 1
"""Entries of a tensor at most; positions fit 32 bits."""

Positions = NDArray[Any]
Flags = NDArray[np.bool_]
Bits = NDArray[np.uint8]
_CHUNK = 1 << 13


def _worth_coding(count: int, size: int) -> bool:
    """Above a density of 0.4, one bit an entry is never longer than Golomb's code."""
    return 0 < 5 * count <= 2 * size


@dataclass(frozen=True)
class _Code:
    """Golomb's code with parameter M: remainders below `short` take one bit less."""

    m: int

    @classmethod
    def of(cls, count: int, size: int) -> "_Code":
        """The best M for `count` of `size` entries: ln 2 / d, rounded as fits small M."""
        return cls(max(1, (693 * size + 300 * count) // (1000 * count)))

    @property
    def bits(self) -> int:
        """Bits of a long remainder."""
        return (self.m - 1).bit_length()

    @property
    def short(self) -> int:
        """How many remainders have the shorter code (truncated binary)."""
        return (1 << self.bits) - self.m

    @property
    def fixed(self) -> int:
        """Bits that every remainder takes."""
        return max(0, self.bits - 1)


@dataclass(frozen=True)
class Index:
    """A chosen coding of positions in `size` entries, and its exact length in bytes."""

    kind: int
    size: int
    positions: Positions
    length: int = 1


def plan(positions: Positions, size: int) -> Index:
    """Choose the shortest coding of ascending positions, without writing it."""
    if size > LARGEST:
        raise WireError(f"a tensor of {size} entries is too large; at most {LARGEST}")
    count = len(positions)
    if count == 0:
        return Index(NONE, size, positions)
    if count == size:
        return Index(ALL, size, positions)
    bitmask = Index(BITMASK, size, positions, 1 + (size + 7) // 8)
    if not _worth_coding(count, size):
        return bitmask
    length = 1 + len(_varint(count)) + (_golomb_bits(_gaps(positions), size) + 7) // 8
    return Index(GOLOMB, size, positions, length) if length < bitmask.length else bitmask


def _gaps(positions: Positions) -> Positions:
    gaps = np.diff(positions, prepend=positions.dtype.type(-1))
    gaps -= 1
    return gaps


def _golomb_bits(gaps: Positions, size: int) -> int:
    """Return the bits of the unary, fixed and extra runs together."""
    code = _Code.of(len(gaps), size)
    quotient = gaps // code.m
    total = len(gaps) * (1 + code.fixed) + int(quotient.sum(dtype=np.int64))
    if code.bits:
        total += int(np.count_nonzero(gaps - quotient * code.m >= code.short))
    return total


def write(index: Index) -> bytes:
    """Return the bytes of a planned section: exactly `index.length` of them."""
    kind = bytes([index.kind])
    if index.kind in (NONE, ALL):
        return kind
    if index.kind == BITMASK:
        bits = np.zeros(index.size, np.uint8)
        bits[index.positions] = 1
        return kind + np.packbits(bits).tobytes()
    gaps = _gaps(index.positions)
    return kind + _varint(len(gaps)) + np.packbits(_golomb(gaps, index.size)).tobytes()


def _golomb(gaps: Positions, size: int) -> Bits:
    """Return the bits of the gaps: unary quotients, fixed widths, extra bits."""
    code = _Code.of(len(gaps), size)
    quotient = gaps // code.m
    ends = np.cumsum(quotient + 1, dtype=np.int64) - 1
    unary = np.zeros(int(ends[-1]) + 1, np.uint8)
    unary[ends] = 1
    if not code.bits:
        return unary
    rest = gaps - quotient * code.m
    long = rest >= code.short
    value = np.where(long, rest + code.short, rest)
    fixed = _to_bits(np.where(long, value >> 1, value), code.fixed)
    extra = (value[long] & 1).astype(np.uint8)
    return np.concatenate([unary, fixed, extra])


def _to_bits(values: Positions, width: int) -> Bits:
    """Return integers of `width` bits, most significant bit first."""
    bits = np.empty((len(values), width), np.uint8)
    for column in range(width):
        bits[:, column] = (values >> (width - 1 - column)) & 1
    return bits.reshape(-1)


def _from_bits(bits: Bits, count: int, width: int) -> NDArray[np.uint32]:
    table = bits.reshape(count, width)
    values = np.zeros(count, np.uint32)
    for column in range(width):
        values <<= 1
        values |= table[:, column]
    return values


def _varint(value: int) -> bytes:
    """LEB128: seven bits a byte, the lowest first."""
    out = bytearray()
    while value > 0x7F:
        out.append(value & 0x7F | 0x80)
        value >>= 7
    return bytes([*out, value])


def _read_varint(raw: memoryview) -> tuple[int, int]:
    """Return a value below 2**35 and its length."""
    value = 0
    for place, byte in enumerate(raw[:5]):
        value |= (byte & 0x7F) << (7 * place)
        if byte < 0x80:
            if place and not byte:
                break
            return value, place + 1
    raise WireError("the payload ends inside a number, or the number is damaged")


def read(raw: memoryview, size: int) -> tuple[Flags, int]:
    """Return which of `size` entries a section names, and the section's length.

    Raises WireError for a section that is cut short, counts more than there are, or
    points outside the tensor; nothing is allocated before its size is checked, and never
    more than twice what the decoded tensor takes.
    """
    if not len(raw):
        raise WireError("the payload ends before a tensor's index")
    kind = raw[0]
    if kind == NONE:
        return np.zeros(size, np.bool_), 1
    if kind == ALL:
        return np.ones(size, np.bool_), 1
    if kind == BITMASK:
        return _read_bitmask(raw[1 : 1 + (size + 7) // 8], size)
    if kind == GOLOMB:
        count, used = _read_varint(raw[1:])
        if not _worth_coding(count, size):
            raise WireError(f"an index counts {count} of {size} entries")
        positions, length = _read_golomb(raw[1 + used :], count, size)
        flags = np.zeros(size, np.bool_)
        flags[positions] = True
        return flags, 1 + used + length
    raise WireError(f"index coding {kind} is unknown; this payload is damaged or newer")


def _read_bitmask(raw: memoryview, size: int) -> tuple[Flags, int]:
    if len(raw) < (size + 7) // 8:
        raise WireError("the payload ends inside a tensor's bitmask")
    packed = np.frombuffer(raw, np.uint8)
    if size % 8 and packed[-1] & (0xFF >> (size % 8)):
        raise WireError("a bitmask has bits set beyond its tensor's end")
    return np.unpackbits(packed, count=size).view(np.bool_), 1 + len(raw)


def _read_golomb(raw: memoryview, count: int, size: int) -> tuple[Positions, int]:
    """Return the positions of a section; 32 bits hold any sum, as count * m < size."""
    code = _Code.of(count, size)
    most = count * (2 + code.fixed) + size // code.m
    bits = np.unpackbits(np.frombuffer(raw[: (most + 7) // 8], np.uint8))
    ends = _first_ones(bits[: count + size // code.m], count)
    unary = int(ends[-1]) + 1
    gaps = np.diff(ends, prepend=np.int32(-1)).view(np.uint32)
    del ends
    gaps -= 1
    gaps *= code.m
    used = unary + count * code.fixed
    if code.bits:
        fixed = bits[unary:used]
        if len(fixed) < count * code.fixed:
            raise WireError("the payload ends inside a tensor's index")
        rest = _from_bits(fixed, count, code.fixed)
        long = rest >= code.short
        tail = rest[long]
        extra = bits[used : used + len(tail)]
        if len(extra) < len(tail):
            raise WireError("the payload ends inside a tensor's index")
        used += len(tail)
        tail *= 2
        tail += extra
        tail -= code.short
        rest[long] = tail
        gaps += rest
    gaps += 1
    positions = np.cumsum(gaps, dtype=np.uint32, out=gaps)
    positions -= 1
    if positions[-1] >= size:
        raise WireError(f"an index points at entry {positions[-1]} of {size}")
    length = (used + 7) // 8
    if bits[used : 8 * length].any():
        raise WireError("an index has bits set beyond its end")
    return positions, length


def _first_ones(bits: Bits, count: int) -> NDArray[np.int32]:
    """Return where the first `count` set bits are; in chunks, as numpy finds them as int64."""
    ends, found = np.empty(count, np.int32), 0
    for start in range(0, len(bits), _CHUNK):
        here = np.flatnonzero(bits[start : start + _CHUNK])[: count - found]
        ends[found : found + len(here)] = here + start
        found += len(here)
    if found < count:
        raise WireError("the payload ends inside a tensor's index")
    return ends
