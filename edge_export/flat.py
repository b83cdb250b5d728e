"""A .tflite file under construction: tensors, operators and the constants behind them."""

from copy import copy
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edge_export import sparse
from edge_export.schema import VERSION, buffer, packed, schema

TYPES = {
    "float32": "FLOAT32",
    "float16": "FLOAT16",
    "int8": "INT8",
    "int32": "INT32",
    "int64": "INT64",
    "bool": "BOOL",
}
OPTIONS = {
    "CONV_2D": "Conv2DOptions",
    "DEPTHWISE_CONV_2D": "DepthwiseConv2DOptions",
    "FULLY_CONNECTED": "FullyConnectedOptions",
    "MAX_POOL_2D": "Pool2DOptions",
    "AVERAGE_POOL_2D": "Pool2DOptions",
    "ADD": "AddOptions",
    "MUL": "MulOptions",
    "MEAN": "ReducerOptions",
    "RESHAPE": "ReshapeOptions",
    "TRANSPOSE": "TransposeOptions",
    "PAD": "PadOptions",
    "PADV2": "PadV2Options",
    "SLICE": "SliceOptions",
    "CONCATENATION": "ConcatenationOptions",
    "DENSIFY": "DensifyOptions",
    "QUANTIZE": "QuantizeOptions",
    "DEQUANTIZE": "DequantizeOptions",
}
"""The options that each operator has in the schema; RELU and RELU6 have none."""


@dataclass(frozen=True, eq=False)
class Scale:
    """How integers stand for numbers: (q - zero) * scale; one scale, or one a channel of `axis`."""

    scale: NDArray[np.float32]
    zero: int = 0
    axis: int = 0

    def parameters(self) -> Any:
        """Return the schema's QuantizationParameters."""
        found = schema().QuantizationParametersT()
        found.scale = self.scale.astype("<f4")
        found.zeroPoint = np.full(self.scale.shape, self.zero, "<i8")
        found.quantizedDimension = self.axis
        return found


@dataclass
class Flat:
    """Tensors and operators in the order in which they are added."""

    tensors: list[Any] = field(default_factory=list)
    operators: list[Any] = field(default_factory=list)
    _buffers: list[Any] = field(default_factory=list)
    _codes: dict[tuple[str, int], int] = field(default_factory=dict)
    _constants: dict[tuple[str, bytes, tuple[int, ...]], int] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self._buffers.append(schema().BufferT())  # the first is that of tensors without data

    def value(
        self, name: str, shape: tuple[int, ...], kind: str = "float32", scale: Scale | None = None
    ) -> int:
        """Add a tensor that an operator makes, or the input; return its number."""
        return self._tensor(name, shape, kind, scale, 0)

    def constant(self, name: str, content: NDArray[Any], scale: Scale | None = None) -> int:
        """Add a constant; equal ones without a scale, such as sizes and axes, are added once."""
        little = np.ascontiguousarray(content, content.dtype.newbyteorder("<")).tobytes()
        key = (str(content.dtype), little, content.shape)
        if scale is None and key in self._constants:
            return self._constants[key]
        self._buffers.append(buffer(little))
        number = len(self._buffers) - 1
        made = self._tensor(name, content.shape, str(content.dtype), scale, number)
        if scale is None:
            self._constants[key] = made
        return made

    def sparse(self, name: str, csr: sparse.Csr, scale: Scale | None = None) -> int:
        """Add a constant of which only kept values are stored."""
        values = np.ascontiguousarray(csr.values, csr.values.dtype.newbyteorder("<"))
        self._buffers.append(buffer(values.tobytes()))
        kind = str(csr.values.dtype)
        made = self._tensor(name, csr.shape, kind, scale, len(self._buffers) - 1)
        self.tensors[made].sparsity = sparse.parameters(csr)
        return made

    def _tensor(
        self, name: str, shape: tuple[int, ...], kind: str, scale: Scale | None, data: int
    ) -> int:
        s = schema()
        tensor = s.TensorT(
            shape=list(shape), type=getattr(s.TensorType, TYPES[kind]), buffer=data, name=name
        )
        tensor.hasRank = True
        if scale is not None:
            tensor.quantization = scale.parameters()
        self.tensors.append(tensor)
        return len(self.tensors) - 1

    def shape(self, tensor: int) -> tuple[int, ...]:
        """Return a tensor's shape."""
        return tuple(self.tensors[tensor].shape)

    def add(
        self, code: str, inputs: list[int], output: int, version: int = 1, **options: Any
    ) -> int:
        """Add an operator with its options by name; return its output."""
        s = schema()
        operator = s.OperatorT()
        operator.opcodeIndex = self._codes.setdefault((code, version), len(self._codes))
        operator.inputs, operator.outputs = inputs, [output]
        if code in OPTIONS:
            operator.builtinOptionsType = getattr(s.BuiltinOptions, OPTIONS[code])
            operator.builtinOptions = getattr(s, OPTIONS[code] + "T")(**options)
        self.operators.append(operator)
        return output

    def again(
        self, operator: Any, code: str, version: int, inputs: list[int], outputs: list[int]
    ) -> None:
        """Add an operator of another file, with its options, between tensors of this one."""
        added = copy(operator)
        added.opcodeIndex = self._codes.setdefault((code, version), len(self._codes))
        added.inputs, added.outputs = inputs, outputs
        self.operators.append(added)

    def finish(self, inputs: list[int], outputs: list[int], description: str) -> bytes:
        """Return the file."""
        s = schema()
        codes = []
        for code, version in self._codes:
            number = getattr(s.BuiltinOperator, code)
            codes.append(
                s.OperatorCodeT(
                    deprecatedBuiltinCode=min(number, 127), version=version, builtinCode=number
                )
            )
        graph = s.SubGraphT(
            tensors=self.tensors,
            inputs=inputs,
            outputs=outputs,
            operators=self.operators,
            name="main",
        )
        model = s.ModelT(
            version=VERSION,
            operatorCodes=codes,
            subgraphs=[graph],
            buffers=self._buffers,
            description=description,
        )
        return packed(model)
