"""Multiply-adds of a .tflite file, counted from its graph where export wrote nothing beside it.

Counted as fedsparse counts a model's work: convolutions and linear layers alone, one multiply-add
for each weight and output place, with every weight and with those that are not zero.
"""

import math
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edge_export.device_json import Export
from edge_export.reading import parsed
from edge_export.schema import schema
from edge_export.storage import DYNAMIC, STATIC
from fedsparse.errors import ExportError, one_line

WEIGHTED = ("CONV_2D", "DEPTHWISE_CONV_2D", "FULLY_CONNECTED")
TYPES = {"FLOAT32": "f32", "FLOAT16": "f16", "INT8": "int8"}
BROKEN = (IndexError, ValueError, TypeError, AttributeError, KeyError, OverflowError)
"""What a graph raises that does not hold together."""
WIDTHS = {"f32": "<f4", "f16": "<f2", "int8": "<i1"}


def count(content: bytes, name: str) -> Export:
    """Return what a file's bytes say of its work.

    Raises ExportError, one line, for what is no whole .tflite file or has no weighted layer that
    can be counted.
    """
    model = parsed(content, name)
    try:
        return _Graph(model).export()
    except BROKEN as error:
        raise ExportError(
            f"'{name}' is damaged ({one_line(str(error))}); export the model again"
        ) from None
    except ExportError as error:
        raise ExportError(f"'{name}' {error}") from None


class _Graph:
    def __init__(self, model: Any) -> None:
        self.model, graph = model, model.subgraphs[0]
        self.tensors, self.operators = graph.tensors, graph.operators
        self.maker = {int(n): op for op in graph.operators for n in op.outputs}
        self.codes = {getattr(schema().BuiltinOperator, code): code for code in WEIGHTED}
        self.kinds = {getattr(schema().TensorType, kind): name for kind, name in TYPES.items()}
        self.counted: dict[tuple[int, str], tuple[int, int]] = {}

    def export(self) -> Export:
        """Sum over the layers with weights; the shortest of their values are the file's."""
        macs = kept = 0
        sparse = False
        kinds, arithmetics = set(), {""}
        for op in self.operators:
            code = self.model.operatorCodes[op.opcodeIndex]
            name = self.codes.get(max(code.builtinCode, code.deprecatedBuiltinCode))
            if name is None:
                continue
            weight, stored = self._constant(int(op.inputs[1]))
            kind, left = self._kept(stored)
            size, places = _size(weight), self._places(op, name)
            macs, kept = macs + size * places, kept + left * places
            sparse |= stored.sparsity is not None
            kinds.add(kind)
            arithmetics.add(self._arithmetic(op, weight))
        if not macs:
            raise ExportError("has no convolution or linear layer whose work could be counted")
        layout = "sparse" if sparse else "dense"
        values = next(kind for kind in reversed(WIDTHS) if kind in kinds)
        return Export.model_validate(
            {
                "macs": macs,
                "kept_macs": kept,
                "layout": layout,
                "values": values,
                "storage": f"{values} {max(arithmetics) or layout}",
            }
        )

    def _constant(self, number: int) -> tuple[Any, Any]:
        """Return the weight that an operator reads, and the constant behind it."""
        read = self.tensors[number]
        for _ in range(4):  # DENSIFY and DEQUANTIZE at most; a loop in a broken file ends, too
            if number not in self.maker:
                break
            number = int(self.maker[number].inputs[0])
        return read, self.tensors[number]

    def _kept(self, stored: Any) -> tuple[str, int]:
        """Return the type of a constant's values, and how many are not zero."""
        kind = self.kinds.get(stored.type)
        data = self.model.buffers[stored.buffer].data
        if kind is None or data is None:
            raise ExportError("has weights that are no constants of f32, f16 or int8")
        key = stored.buffer, kind
        if key not in self.counted:  # once for a buffer that many weights name
            held: NDArray[Any] = np.frombuffer(np.asarray(data, np.uint8), WIDTHS[kind])
            self.counted[key] = len(held), int(np.count_nonzero(held))
        length, kept = self.counted[key]
        if stored.sparsity is None and length != _size(stored):
            raise ValueError(f"a weight of {length} values for shape {list(stored.shape)}")
        if length > _size(stored):
            raise ValueError("a sparse weight with more values than places")
        return kind, kept

    def _places(self, op: Any, name: str) -> int:
        """Return how often each weight is used in an inference."""
        shape = [int(size) for size in self.tensors[int(op.outputs[0])].shape]
        places = math.prod(shape[:-1])
        if places < 1 or (name != "FULLY_CONNECTED" and len(shape) != 4):
            raise ValueError(f"a layer whose output is of shape {shape}")
        return places

    def _arithmetic(self, op: Any, weight: Any) -> str:
        """Return `static` or `dynamic` for int8 arithmetic, "" for that of floats."""
        if self.kinds.get(weight.type) != "int8":
            return ""
        given = self.tensors[int(op.inputs[0])]
        return STATIC if self.kinds.get(given.type) == "int8" else DYNAMIC


def _size(tensor: Any) -> int:
    return math.prod(int(size) for size in tensor.shape)
