"""How weights are stored: f32, f16 or int8, with zeros or without, and how they get back to f32.

A sparse constant goes through DENSIFY, a short one through DEQUANTIZE, and what a convolution
reads is f32 again: so XNNPACK computes sparsely whatever the values are stored as. Integer
arithmetic reads int8 as it is.
"""

from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edge_export.flat import Flat, Scale
from edge_export.sparse import Csr, encode
from fedsparse.errors import ExportError

Floats = NDArray[np.float32]

F32, F16, INT8 = "f32", "f16", "int8"
STORED, DYNAMIC, STATIC = "stored", "dynamic", "static"
"""Arithmetic: on f32 whatever is stored; int8 weights on f32 inputs; int8 throughout."""
LARGEST = 127
SCALE_BYTES = 12
"""Bytes that a channel's scale and zero point take in a file."""


@dataclass(frozen=True)
class Storage:
    """What values a file's weights have, what it computes with, and whether zeros are left out."""

    values: str = F32
    arithmetic: str = STORED
    sparse: bool = False

    @property
    def name(self) -> str:
        """A short name, such as `int8 sparse` or `int8 static`."""
        if self.values == INT8 and self.arithmetic != STORED:
            return f"{self.values} {self.arithmetic}"
        return f"{self.values} {'sparse' if self.sparse else 'dense'}"


@dataclass(frozen=True)
class Stored:
    """A weight in the file: its layer, shape, kept values, and bytes as stored and as dense f32."""

    layer: str
    shape: tuple[int, ...]
    kept: int
    sparse: bool
    nbytes: int
    dense_bytes: int
    csr: Csr | None = field(default=None, repr=False, compare=False)
    """What was put into the file, of one that is stored sparsely."""


def quantized(
    weight: Floats, axis: int, least: NDArray[np.float64] | None = None
) -> tuple[NDArray[np.int8], Scale]:
    """Return int8 values and a scale for each channel of `axis`; zeros stay zeros.

    A channel's largest value becomes 127, where its scale is not below `least` (channels,). One of
    zeros has the largest scale of the others, so that it coarsens nothing; 1 if all are zero.
    """
    others = tuple(n for n in range(weight.ndim) if n != axis)
    most = np.abs(weight).max(axis=others, keepdims=True).astype(np.float64)
    scale = np.where(most > 0, most, most.max() or LARGEST) / LARGEST
    if least is not None:
        scale = np.maximum(scale, least.reshape(scale.shape))
    tiny = np.finfo(np.float32).tiny
    steps: Floats = np.maximum(scale, tiny).astype(np.float32)
    whole = np.rint(weight / steps).clip(-LARGEST, LARGEST).astype(np.int8)
    return whole, Scale(steps.reshape(-1), 0, axis)


def converted(
    weight: Floats, storage: Storage, axis: int, least: NDArray[np.float64] | None = None
) -> tuple[NDArray[Any], Scale | None]:
    """Return a weight's values as they are stored, and their scales if they are integers."""
    if storage.values == INT8:
        return quantized(weight, axis, least)
    return weight.astype(np.float16 if storage.values == F16 else np.float32), None


def shorter(weight: Floats, storage: Storage, axis: int) -> Storage:
    """Return f16 for int8 where a channel's scale takes more than its halved values save."""
    if (storage.values, storage.arithmetic) != (INT8, STORED) or _overflows(weight):
        return storage
    sizes = {}
    for values in (INT8, F16):
        content, scale = converted(weight, replace(storage, values=values), axis)
        csr = encode(content)
        nbytes = csr.nbytes if storage.sparse and worth_it(csr, content) else content.nbytes
        sizes[values] = nbytes + (0 if scale is None else SCALE_BYTES * len(scale.scale))
    return replace(storage, values=min(sizes, key=lambda values: sizes[values]))


def _overflows(weight: Floats) -> bool:
    return bool(np.abs(weight).max(initial=0.0) > np.finfo(np.float16).max)


def worth_it(csr: Csr, dense: NDArray[Any]) -> bool:
    """Whether leaving the zeros out takes less room than storing them."""
    return csr.nbytes < dense.nbytes


def store(
    flat: Flat,
    layer: str,
    weight: Floats,
    axis: int,
    storage: Storage,
    stored: list[Stored],
    least: NDArray[np.float64] | None = None,
) -> int:
    """Add a weight to the file; return the tensor that its operator reads.

    Scales of int8 are at least `least` (channels,). Raises ExportError for weights that f16
    cannot hold.
    """
    if storage.values == F16 and _overflows(weight):
        raise ExportError(
            f"'{layer}' has weights up to {np.abs(weight).max():.3g}, and f16 ends at 65504; "
            "export with --values f32"
        )
    weight = weight + 0.0  # no -0.0, which a mask cannot tell
    storage = shorter(weight, storage, axis)
    values, scale = converted(weight, storage, axis, least)
    name = f"{layer}/weight"
    csr = encode(values)
    sparse = storage.sparse and worth_it(csr, values)
    nbytes = csr.nbytes if sparse else values.nbytes
    kept = len(csr.values)
    held = csr if sparse else None
    stored.append(Stored(layer, weight.shape, kept, sparse, nbytes, weight.nbytes, held))
    if sparse:
        made = flat.sparse(f"{name}/kept", csr, scale)
        unpacked = flat.value(f"{name}/densified", weight.shape, str(values.dtype), scale)
        flat.add("DENSIFY", [made], unpacked)
    else:
        unpacked = flat.constant(name, values, scale)
    if values.dtype == np.float32 or storage.arithmetic != STORED:
        return unpacked
    version = 3 if values.dtype == np.float16 else 5
    return flat.add("DEQUANTIZE", [unpacked], flat.value(f"{name}/f32", weight.shape), version)
