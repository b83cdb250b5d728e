"""The bindings of the .tflite schema, which ship inside ai-edge-litert, imported when used."""

import importlib
from functools import cache
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fedsparse.errors import ExportError

IDENTIFIER = b"TFL3"
"""Bytes 4 to 8 of every .tflite file."""
VERSION = 3
ALIGNMENT = 16
"""Bytes to which the schema aligns a buffer's data; kernels read it in place."""


@cache
def schema() -> Any:
    """Return the module of the schema; raises ExportError where there is none."""
    return litert("schema_py_generated")


def litert(module: str) -> Any:
    """Return a module of ai-edge-litert; raises ExportError where that is not installed."""
    try:
        return importlib.import_module(f"ai_edge_litert.{module}")
    except ImportError:
        raise ExportError(
            "the export to .tflite needs ai-edge-litert: pip install ai-edge-litert"
        ) from None


@cache
def _flatbuffers() -> Any:
    return importlib.import_module("flatbuffers")


def buffer(data: bytes) -> Any:
    """Return a constant's bytes as a buffer of the schema, aligned when it is packed."""

    class Aligned(schema().BufferT):  # type: ignore[misc]
        """Generated bindings leave out the alignment that the schema asks for."""

        def Pack(self, builder: Any) -> Any:
            builder.StartVector(1, len(self.data), ALIGNMENT)
            builder.head = builder.head - len(self.data)
            end = builder.head + len(self.data)
            builder.Bytes[builder.head : end] = self.data
            vector = builder.EndVector()
            schema().BufferStart(builder)
            schema().BufferAddData(builder, vector)
            return schema().BufferEnd(builder)

    aligned = Aligned()
    aligned.data = data
    return aligned


def packed(model: Any) -> bytes:
    """Return a model of the schema as the bytes of a file."""
    builder = _flatbuffers().Builder(1024)
    builder.Finish(model.Pack(builder), file_identifier=IDENTIFIER)
    return bytes(builder.Output())


def numbers(values: NDArray[Any]) -> NDArray[Any]:
    """Return integers as the bindings pack them without a loop: contiguous, little-endian."""
    return np.ascontiguousarray(values, values.dtype.newbyteorder("<"))
