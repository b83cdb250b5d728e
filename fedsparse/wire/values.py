"""Values of kept entries: f32 as they are, f16, bf16, or int8 with one scale a tensor.

f32 keeps every bit. f16 and bf16 round to nearest even; a value beyond f16's range is
refused. int8 is symmetric: scale = max |v| / 127, so zero stays zero.
"""

import struct
from collections.abc import Mapping

import numpy as np
from numpy.typing import NDArray

from fedsparse.errors import WireError

KINDS = ("f32", "f16", "bf16", "int8")
BYTES: Mapping[str, int] = {"f32": 4, "f16": 2, "bf16": 2, "int8": 1}
_SCALE = struct.Struct("<f")
_LARGEST = float(np.finfo(np.float32).max)

NOT_FINITE = "the payload holds NaN or infinity; the sender's training diverged"

Values = NDArray[np.float32]


def size(kind: str, count: int) -> int:
    """Return the bytes of `count` values."""
    return BYTES[kind] * count + (_SCALE.size if kind == "int8" and count else 0)


def write(values: Values, kind: str) -> bytes:
    """Return the bytes of float32 values; raises WireError when they do not fit the kind."""
    if kind == "f32":
        return values.astype("<f4", copy=False).tobytes()
    if not np.isfinite(values).all():
        raise WireError(f"NaN or infinity cannot travel as {kind}; use values = 'f32'")
    if kind == "f16":
        with np.errstate(over="ignore"):
            half = values.astype("<f2")
        if not np.isfinite(half).all():
            raise WireError(
                f"{np.abs(values).max():g} is beyond f16's range; use values = 'bf16' or 'f32'"
            )
        return half.tobytes()
    if kind == "bf16":
        return _to_bf16(values).tobytes()
    return _to_int8(values)


def _to_bf16(values: Values) -> NDArray[np.uint16]:
    """Round to nearest even on the upper half of the bits; the largest stay finite."""
    bits: NDArray[np.uint32] = values.astype("<f4", copy=False).view("<u4")
    rounded = (bits + 0x7FFF + ((bits >> 16) & 1)) >> 16
    rounded = np.where((rounded & 0x7F80) == 0x7F80, (bits >> 16), rounded)
    return rounded.astype("<u2")


def _to_int8(values: Values) -> bytes:
    if not len(values):
        return b""
    scale = np.float32(np.abs(values).max() / np.float32(127))
    if 127 * float(scale) > _LARGEST:  # rounded up: the receiver would overflow
        scale = np.nextafter(scale, np.float32(0))
    if not scale:
        return _SCALE.pack(0.0) + bytes(len(values))
    steps: bytes = np.clip(np.rint(values / scale), -127, 127).astype("i1").tobytes()
    return _SCALE.pack(scale) + steps


def read(raw: memoryview, kind: str, count: int, finite: bool) -> Values:
    """Return `count` values as float32; raises WireError when any may not be there.

    `raw` holds exactly `size(kind, count)` bytes. What comes back looks into `raw` where
    it can, and is then read-only.
    """
    values = _read(raw, kind, count)
    if finite and not _finite(values):
        raise WireError(NOT_FINITE)
    return values


def _finite(values: Values) -> bool:
    """Tell whether all are finite: a finite sum of squares says so in a third of the time."""
    with np.errstate(over="ignore", invalid="ignore"):
        return bool(np.isfinite(np.dot(values, values)) or np.isfinite(values).all())


def _read(raw: memoryview, kind: str, count: int) -> Values:
    if kind == "f32":
        return np.frombuffer(raw, "<f4").astype(np.float32, copy=False)
    if kind == "f16":
        return np.frombuffer(raw, "<f2").astype(np.float32)
    if kind == "bf16":
        wide = np.frombuffer(raw, "<u2").astype("<u4")
        wide <<= 16
        return wide.view("<f4")
    if not count:
        return np.empty(0, np.float32)
    (scale,) = _SCALE.unpack_from(raw)
    if not np.isfinite(scale) or scale < 0:
        raise WireError(f"an int8 tensor has the scale {scale}")
    steps: Values = np.frombuffer(raw[_SCALE.size :], "i1").astype(np.float32)
    with np.errstate(over="ignore"):
        steps *= np.float32(scale)
    return steps
