"""What a .tflite file holds: its sparse tensors, checked before anything is done with them."""

import struct
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from edge_export import extent
from edge_export.schema import IDENTIFIER, schema
from edge_export.sparse import Csr, from_parameters
from fedsparse.errors import ExportError, one_line

MOST_BYTES = 2**31 - 1
"""A flatbuffer cannot be larger."""
_BROKEN = (
    struct.error,
    IndexError,
    ValueError,
    TypeError,
    AttributeError,
    KeyError,
    OverflowError,
    MemoryError,
    AssertionError,
)
"""What the generated bindings raise for bytes that are no such file."""


@dataclass(frozen=True)
class SparseTensor:
    """A sparse constant of a file."""

    name: str
    csr: Csr


def read(path: Path) -> list[SparseTensor]:
    """Return the sparse tensors of a file.

    Raises ExportError, one line, for a file that is missing, truncated or foreign, or whose
    sparse tensors do not fit their shapes.
    """
    try:
        content = path.read_bytes()
    except OSError as error:
        raise ExportError(f"'{path}' cannot be read: {error.strerror or error}") from None
    return sparse_tensors(content, str(path))


def sparse_tensors(content: bytes, name: str) -> list[SparseTensor]:
    """Return the sparse tensors of a file's bytes; raises ExportError as `read` does."""
    model = parsed(content, name)
    found = []
    try:
        for tensor in model.subgraphs[0].tensors:
            if tensor.sparsity is not None:
                label = _label(tensor)
                values = _values(tensor, model)
                shape = tuple(int(size) for size in tensor.shape)
                found.append(SparseTensor(label, _csr(tensor, shape, values, name, label)))
    except _BROKEN as error:
        raise _damaged(name, error) from None
    return found


def parsed(content: bytes, name: str) -> Any:
    """Return a file as the schema's objects; raises ExportError for what is no such file."""
    if len(content) < 8 or content[4:8] != IDENTIFIER:
        raise ExportError(f"'{name}' is no .tflite file; give one that `fedsparse export` wrote")
    if len(content) > MOST_BYTES:
        raise ExportError(f"'{name}' is larger than a .tflite file can be")
    try:
        extent.check(content)
        model = schema().ModelT.InitFromPackedBuf(content)
        if not model.subgraphs or not model.buffers or not model.subgraphs[0].tensors:
            raise ValueError("it has no graph")
    except _BROKEN as error:
        raise _damaged(name, error) from None
    return model


def _csr(
    tensor: Any, shape: tuple[int, ...], values: np.ndarray[Any, Any], name: str, label: str
) -> Csr:
    try:
        return from_parameters(tensor.sparsity, shape, values)
    except ExportError as error:
        raise ExportError(f"'{name}': sparse tensor '{one_line(label)}': {error}") from None


def _values(tensor: Any, model: Any) -> np.ndarray[Any, Any]:
    types = schema().TensorType
    kinds = {types.FLOAT32: "<f4", types.FLOAT16: "<f2", types.INT8: "<i1"}
    if tensor.type not in kinds:
        raise ValueError(f"a sparse tensor of type {tensor.type}")
    data = model.buffers[tensor.buffer].data
    raw = np.asarray([] if data is None else data, np.uint8)
    return np.frombuffer(raw, kinds[tensor.type])  # a view: many tensors may name one buffer


def _label(tensor: Any) -> str:
    """Return a tensor's name as it is; a message quotes it with `one_line`."""
    return bytes(tensor.name or b"").decode("utf-8", "replace")


def _damaged(name: str, error: BaseException) -> ExportError:
    reason = one_line(str(error))[:80] if str(error).strip() else type(error).__name__
    return ExportError(f"'{name}' is damaged or truncated ({reason}); export the model again")
