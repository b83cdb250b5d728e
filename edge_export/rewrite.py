"""A dense .tflite file of a converter, rewritten to what direct emission writes.

Weights become sparse, f16 or int8 as `storage.py` says. MEAN after TRANSPOSE, which would break a
sparse chain, averages before it. What nothing reads is left out: operators, tensors, metadata.
"""

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edge_export.emit import Emitted
from edge_export.flat import Flat
from edge_export.reading import parsed
from edge_export.schema import schema
from edge_export.storage import Storage, Stored, store
from fedsparse.errors import ExportError

Array = NDArray[Any]
WEIGHTED = {"CONV_2D": 0, "DEPTHWISE_CONV_2D": 3, "FULLY_CONNECTED": 0}
"""Operators that read a weight as their second input, and the axis of its output channels."""


def rewritten(
    content: bytes, storage: Storage, names: Mapping[bytes, str], description: str
) -> Emitted:
    """Return a dense f32 file with its weights stored as asked.

    `names` are the layers by `digest` of their weights; others keep the converter's names. Raises
    ExportError for a file that cannot be rewritten.
    """
    return _Rewriter(parsed(content, "the converted model"), storage, names).write(description)


def digest(weight: Array) -> bytes:
    """Return what a weight is known by in whatever order of its dimensions."""
    numbers = np.sort((weight + 0.0).astype("<f4"), axis=None)
    return hashlib.sha256(numbers.tobytes()).digest()


@dataclass
class _Rewriter:
    model: Any
    storage: Storage
    names: Mapping[bytes, str]
    flat: Flat = field(default_factory=Flat)
    stored: list[Stored] = field(default_factory=list)
    made: dict[int, int] = field(default_factory=dict)
    weights: dict[int, int] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if len(self.model.subgraphs) != 1:
            raise ExportError("the converter made several graphs of the model, which is not read")
        self.graph = self.model.subgraphs[0]
        self.codes = {
            n: name for name, n in vars(schema().BuiltinOperator).items() if name.isupper()
        }

    def write(self, description: str) -> Emitted:
        operators = self._alive(self.graph.operators)
        operators = self._alive([self._without_transpose(op, operators) for op in operators])
        inputs = [self._tensor(int(n)) for n in self.graph.inputs]
        for operator in operators:
            self._copy(operator)
        outputs = [self._tensor(int(n)) for n in self.graph.outputs]
        return Emitted(self.flat.finish(inputs, outputs, description), tuple(self.stored))

    def _alive(self, operators: list[Any]) -> list[Any]:
        """Return the operators whose outputs are read."""
        read = {int(n) for n in self.graph.outputs}
        kept = []
        for operator in reversed(operators):
            if read.intersection(int(n) for n in operator.outputs):
                kept.append(operator)
                read.update(int(n) for n in operator.inputs)
        return kept[::-1]

    def _without_transpose(self, operator: Any, operators: list[Any]) -> Any:
        """Let a MEAN read what the TRANSPOSE before it reads, along the axes of that."""
        if self._code(operator) != "MEAN" or operator.builtinOptions.keepDims:
            return operator
        value, axes = (int(n) for n in operator.inputs)
        before = next((o for o in operators if value in [int(n) for n in o.outputs]), None)
        if before is None or self._code(before) != "TRANSPOSE":
            return operator
        order, along = self._constant(int(before.inputs[1])), self._constant(axes)
        if order is None or along is None:
            return operator
        mean = {int(n) % len(order) for n in along}
        left = [int(n) for place, n in enumerate(order) if place not in mean]
        if left != sorted(left):
            return operator
        moved = np.sort(order[sorted(mean)]).astype(np.int32)
        self.graph.tensors.append(self._axes(moved))
        operator.inputs = [int(before.inputs[0]), len(self.graph.tensors) - 1]
        return operator

    def _axes(self, values: Array) -> Any:
        s = schema()
        self.model.buffers.append(s.BufferT(data=np.frombuffer(values.tobytes(), np.uint8)))
        number = len(self.model.buffers) - 1
        return s.TensorT(shape=[len(values)], type=s.TensorType.INT32, buffer=number, name=b"axes")

    # -- one by one -------------------------------------------------------------------------

    def _copy(self, operator: Any) -> None:
        code = self._code(operator)
        inputs = [int(n) for n in operator.inputs]
        read = [self._tensor(n) for n in inputs]
        if code in WEIGHTED:
            weight = self._constant(inputs[1])
            if weight is not None and weight.dtype == np.float32:
                read[1] = self._weight(inputs[1], weight, WEIGHTED[code])
        made = [self._tensor(int(n)) for n in operator.outputs]
        version = int(self.model.operatorCodes[operator.opcodeIndex].version)
        self.flat.again(operator, code, version, read, made)

    def _weight(self, number: int, weight: Array, axis: int) -> int:
        if number not in self.weights:
            name = self.names.get(digest(weight), self._name(number))
            taken = {row.layer for row in self.stored}
            name = name if name not in taken else f"{name}/{number}"
            self.weights[number] = store(self.flat, name, weight, axis, self.storage, self.stored)
        return self.weights[number]

    def _tensor(self, number: int) -> int:
        """Return a tensor's number in the new file; weights are added where they are read."""
        if number < 0 or number in self.made:
            return self.made.get(number, number)
        tensor, content = self.graph.tensors[number], self._constant(number)
        if content is not None and self._only_a_weight(number):
            return -1
        shape = tuple(int(n) for n in tensor.shape) if tensor.shape is not None else ()
        if content is None:
            made = self.flat.value(self._name(number), shape)
        else:
            made = self.flat.constant(self._name(number), content)
        self.flat.tensors[made].type = tensor.type
        self.made[number] = made
        return made

    def _only_a_weight(self, number: int) -> bool:
        return all(
            self._code(op) in WEIGHTED and list(op.inputs).index(number) == 1
            for op in self.graph.operators
            if number in list(op.inputs)
        )

    def _constant(self, number: int) -> Array | None:
        """Return a constant's values; None for a tensor that an operator makes."""
        tensor = self.graph.tensors[number]
        data = self.model.buffers[tensor.buffer].data
        if data is None or not len(data):
            return None
        types = schema().TensorType
        kinds = {
            types.FLOAT32: "<f4",
            types.INT32: "<i4",
            types.INT64: "<i8",
            types.BOOL: "|b1",
            types.INT8: "|i1",
        }
        if tensor.type not in kinds:
            raise ExportError(
                f"the converter wrote a constant of type {tensor.type}, not read here"
            )
        values = np.frombuffer(np.asarray(data, np.uint8).tobytes(), kinds[tensor.type])
        return values.reshape([int(n) for n in tensor.shape] if tensor.shape is not None else [])

    def _code(self, operator: Any) -> str:
        code = self.model.operatorCodes[operator.opcodeIndex]
        name: str = self.codes[max(int(code.builtinCode), int(code.deprecatedBuiltinCode))]
        if name == "CUSTOM":
            raise ExportError("the converter wrote an operator of its own, which is not read here")
        return name

    def _name(self, number: int) -> str:
        text = bytes(self.graph.tensors[number].name or b"").decode("utf-8", "replace")
        return text.rstrip(";").rsplit("/", 1)[-1] or f"tensor{number}"
