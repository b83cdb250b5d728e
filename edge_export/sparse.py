"""Sparse tensors of .tflite files: rows of kept values and their columns.

A weight of any rank is a matrix: all dimensions but the last are the rows. The first ones are
DENSE, the last is SPARSE_CSR: `segments` says where each row's values begin, `indices` each
value's column. Both are stored in the narrowest of uint8, uint16 and int32.
"""

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edge_export.schema import numbers, schema
from fedsparse.errors import ExportError

Array = NDArray[Any]
WIDTHS = (np.uint8, np.uint16, np.int32)


@dataclass(frozen=True, eq=False)
class Csr:
    """The kept values of a tensor, in row-major order: values[i] is in column indices[i]."""

    shape: tuple[int, ...]
    values: Array
    segments: Array
    indices: Array

    @property
    def nbytes(self) -> int:
        """Bytes of values, segments and indices."""
        return int(self.values.nbytes + self.segments.nbytes + self.indices.nbytes)


def encode(dense: Array, kept: NDArray[np.bool_] | None = None) -> Csr:
    """Return the kept values of a tensor; those that are not zero if `kept` is None.

    Raises ExportError for a tensor without dimensions, or larger than int32 can count.
    """
    if dense.ndim < 1 or dense.size > np.iinfo(np.int32).max:
        raise ExportError(f"a tensor of shape {dense.shape} cannot be stored sparsely")
    chosen = dense != 0 if kept is None else kept
    rows = chosen.reshape(-1, dense.shape[-1])
    counts = np.count_nonzero(rows, axis=1)
    segments = np.concatenate([[0], np.cumsum(counts, dtype=np.int64)])
    indices = np.nonzero(rows)[1]
    return Csr(dense.shape, dense[chosen], narrowest(segments), narrowest(indices))


def decode(csr: Csr) -> tuple[Array, NDArray[np.bool_]]:
    """Return a tensor with zeros where nothing is kept, and what is kept.

    Raises ExportError for segments and indices that are of no such tensor.
    """
    check(csr)
    dense = np.zeros(csr.shape, csr.values.dtype)
    kept = np.zeros(csr.shape, np.bool_)
    columns = csr.shape[-1]
    starts = csr.segments.astype(np.int64)
    counts = starts[1:] - starts[:-1]
    places = np.repeat(np.arange(len(counts)) * columns, counts) + csr.indices
    dense.reshape(-1)[places] = csr.values
    kept.reshape(-1)[places] = True
    return dense, kept


def same(one: Csr, other: Csr) -> bool:
    """Whether two tensors keep the same places, with the same bits."""
    return (
        one.shape == other.shape
        and one.values.dtype == other.values.dtype
        and one.values.tobytes() == other.values.tobytes()
        and np.array_equal(one.segments, other.segments)
        and np.array_equal(one.indices, other.indices)
    )


def check(csr: Csr) -> None:
    """Refuse what does not describe a tensor: raises ExportError that says what is wrong."""
    rows, columns = math.prod(csr.shape[:-1]), csr.shape[-1]
    segments, indices = csr.segments.astype(np.int64), csr.indices.astype(np.int64)
    if len(segments) != rows + 1 or segments[0] != 0 or (np.diff(segments) < 0).any():
        raise ExportError(f"its row starts do not fit a tensor of shape {csr.shape}")
    if segments[-1] != len(indices) or len(indices) != len(csr.values):
        raise ExportError(
            f"it has {len(csr.values)} values for {len(indices)} indices in {segments[-1]} places"
        )
    if len(indices) and (indices.min() < 0 or indices.max() >= columns):
        worst = int(indices[(indices < 0) | (indices >= columns)][0])
        raise ExportError(f"an index {worst} is out of range for {columns} columns")
    starts = np.zeros(len(indices) + 1, np.bool_)
    starts[segments] = True
    if (~starts[1 : len(indices)] & (np.diff(indices) <= 0)).any():
        raise ExportError("the indices of a row do not rise")


def narrowest(values: Array) -> Array:
    """Return non-negative integers in the narrowest type that a file can hold them in."""
    most = int(values.max(initial=0))
    kind = next(k for k in WIDTHS if most <= np.iinfo(k).max)
    return values.astype(kind)


# -- the schema's objects ---------------------------------------------------------------------


def parameters(csr: Csr) -> Any:
    """Return the schema's SparsityParameters of a tensor whose buffer holds `csr.values`."""
    s = schema()
    dims = [
        s.DimensionMetadataT(format=s.DimensionType.DENSE, denseSize=size)
        for size in csr.shape[:-1]
    ]
    last = s.DimensionMetadataT(format=s.DimensionType.SPARSE_CSR)
    last.arraySegmentsType, last.arraySegments = _vector(csr.segments)
    last.arrayIndicesType, last.arrayIndices = _vector(csr.indices)
    found = s.SparsityParametersT()
    found.traversalOrder = list(range(len(csr.shape)))
    found.dimMetadata = [*dims, last]
    return found


def _vector(values: Array) -> tuple[int, Any]:
    s = schema()
    kinds = {
        np.dtype(np.uint8): (s.SparseIndexVector.Uint8Vector, s.Uint8VectorT),
        np.dtype(np.uint16): (s.SparseIndexVector.Uint16Vector, s.Uint16VectorT),
        np.dtype(np.int32): (s.SparseIndexVector.Int32Vector, s.Int32VectorT),
    }
    number, make = kinds[values.dtype]
    vector = make()
    vector.values = numbers(values)
    return number, vector


def from_parameters(found: Any, shape: tuple[int, ...], values: Array) -> Csr:
    """Return what SparsityParameters say of a tensor's stored values, checked.

    Raises ExportError for a layout other than the one that `parameters` writes, and for segments
    and indices that do not fit the shape.
    """
    s = schema()
    order = [] if found.traversalOrder is None else [int(n) for n in found.traversalOrder]
    dims = found.dimMetadata or []
    if order != list(range(len(shape))) or len(dims) != len(shape) or not shape:
        raise ExportError("its sparsity is in blocks or in another order; only rows are read")
    if found.blockMap is not None and len(found.blockMap):
        raise ExportError("its sparsity is in blocks; only rows are read")
    for dim, size in zip(dims[:-1], shape[:-1], strict=True):
        if dim.format != s.DimensionType.DENSE or dim.denseSize != size:
            raise ExportError(f"its sparsity is not of a tensor of shape {shape}")
    last = dims[-1]
    if last.format != s.DimensionType.SPARSE_CSR:
        raise ExportError("its last dimension is not stored sparsely")
    pair = []
    for vector in (last.arraySegments, last.arrayIndices):
        held = None if vector is None else vector.values
        pair.append(np.asarray([] if held is None else held))
    csr = Csr(shape, values, *(p.astype(np.int64) for p in pair))
    check(csr)
    return csr
