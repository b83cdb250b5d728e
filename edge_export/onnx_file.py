"""From a network to an .onnx file, and the outputs of such a file under onnxruntime.

Images are (n, channels, rows, columns) there as in torch, and n is free. Zeros are stored as they
are: onnxruntime makes sparse initializers dense when it loads them.
"""

import importlib
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edge_export import network as net
from edge_export.emit import Emitted
from edge_export.network import Layer, Network
from edge_export.storage import F16, F32, INT8, Storage, Stored, converted, shorter
from edge_export.verify import Floats, Track
from fedsparse.errors import ExportError, MissingExtraError
from fedsparse.kernels.nodes import Pair

OPSET, IR = 17, 8
"""Of ONNX 1.12, June 2022: onnxruntime 1.13 and later run it."""
BATCH = "n"
"""The name of the free first dimension."""


def emit(network: Network, storage: Storage, description: str) -> Emitted:
    """Write a network as an ONNX file; weights are f32, or f16 or int8 that become f32 again.

    Raises MissingExtraError without the extra `onnx`, ExportError for layers ONNX does not have.
    """
    writer = _Writer(network, storage)
    return Emitted(writer.write(description), tuple(writer.stored))


def run(content: bytes, samples: Floats, track: Track = iter) -> Floats:
    """Return a file's outputs (n, outputs), in batches of samples, on one thread.

    Raises MissingExtraError without onnxruntime, ExportError for a file that it does not run.
    """
    runtime = _package("onnxruntime")
    options = runtime.SessionOptions()
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    options.log_severity_level = 4
    try:
        session = runtime.InferenceSession(content, options, providers=["CPUExecutionProvider"])
        name = session.get_inputs()[0].name
        parts = [
            session.run(None, {name: samples[first : first + 64]})[0]
            for first in track(range(0, len(samples), 64))
        ]
    except Exception as error:  # onnxruntime's own errors share no base but this one
        reason = str(error).splitlines()[0][:160] if str(error) else type(error).__name__
        raise ExportError(f"onnxruntime does not run the file: {reason}") from None
    return np.concatenate(parts).reshape(len(samples), -1)


def _package(name: str) -> Any:
    try:
        return importlib.import_module(name)
    except ImportError:
        raise MissingExtraError("the export to .onnx", "onnx") from None


class _Writer:
    def __init__(self, network: Network, storage: Storage) -> None:
        self.network = network
        self.storage = storage
        self.onnx = _package("onnx")
        self.helper = importlib.import_module("onnx.helper")
        self.nodes: list[Any] = []
        self.constants: dict[str, Any] = {}
        self.stored: list[Stored] = []

    def write(self, description: str) -> bytes:
        """Return the file's bytes."""
        for layer in self.network.layers:
            self._take(layer)
        kind = self.onnx.TensorProto.FLOAT
        value = self.network.values[self.network.output]
        numbers = value.channels * value.height * value.width
        self._node("Flatten", [_name(self.network.output)], "logits", axis=1)
        described = self.helper.make_tensor_value_info
        graph = self.helper.make_graph(
            self.nodes,
            "fedsparse",
            [described("input", kind, [BATCH, *self.network.input_shape])],
            [described("logits", kind, [BATCH, numbers])],
            initializer=list(self.constants.values()),
        )
        opset = self.helper.make_opsetid("", OPSET)
        model = self.helper.make_model(
            graph,
            opset_imports=[opset],
            ir_version=IR,
            producer_name="fedsparse",
            doc_string=description,
        )
        try:
            self.onnx.checker.check_model(model, full_check=True)
        except (ValueError, self.onnx.checker.ValidationError) as error:
            raise ExportError(f"ONNX does not take the network: {_first(error)}") from None
        return bytes(model.SerializeToString())

    def _take(self, layer: Layer) -> None:
        last = layer.activation == net.NONE or isinstance(layer, net.Activation)
        made = _name(layer.output) if last else f"{_name(layer.output)}/before"
        x = [_name(value) for value in layer.inputs]
        match layer:
            case net.Convolution():
                self._convolution(layer, x[0], made)
            case net.Linear():
                self._node("Flatten", x, f"{made}/vector", axis=1)
                inputs = [f"{made}/vector", *self._weights(layer)]
                self._node("Gemm", inputs, made, transB=1)
            case net.Affine():
                self._affine(layer, x[0], made)
            case net.Activation():
                self._activate(layer.activation, x[0], made)
            case net.MaxPool():
                sides = {"kernel_shape": layer.kernel, "strides": layer.stride}
                self._node("MaxPool", x, made, **sides, pads=layer.padding * 2)
            case net.AveragePool():
                self._average(layer, x[0], made)
            case net.Add():
                self._node("Add", x, made)
            case net.Flatten():
                self._node("Flatten", x, made, axis=1)
            case _:
                raise ExportError(f"layer '{layer.name}' cannot be written to an ONNX file")
        if not last:
            self._activate(layer.activation, made, _name(layer.output))

    def _convolution(self, layer: net.Convolution, x: str, made: str) -> None:
        self._node(
            "Conv",
            [x, *self._weights(layer)],
            made,
            kernel_shape=layer.weight.shape[2:],
            strides=layer.stride,
            pads=layer.padding * 2,
            dilations=layer.dilation,
            group=layer.groups,
        )

    def _affine(self, layer: net.Affine, x: str, made: str) -> None:
        value = self.network.values[layer.output]
        source = next((a for a in self.network.layers if a.output == layer.inputs[0]), None)
        flat = isinstance(source, net.Flatten | net.Linear) or len(self.network.input_shape) == 1
        sides = (-1,) if flat and (value.height, value.width) == (1, 1) else (-1, 1, 1)
        for code, before, after, numbers in (
            ("Mul", x, f"{made}/scaled", layer.scale),
            ("Add", f"{made}/scaled", made, layer.shift),
        ):
            constant = self._constant(f"{after}/by", numbers.reshape(sides))
            self._node(code, [before, constant], after)

    def _average(self, layer: net.AveragePool, x: str, made: str) -> None:
        value = self.network.values[layer.inputs[0]]
        if (layer.rows, layer.columns) == (((0, value.height),), ((0, value.width),)):
            self._node("GlobalAveragePool", [x], made)
            return
        for axis, windows in ((2, layer.rows), (3, layer.columns)):
            after = made if axis == 3 else f"{made}/rows"
            x = self._means(x, axis, windows, after)

    def _means(self, x: str, axis: int, windows: Sequence[Pair], made: str) -> str:
        """Average windows of any sizes along an axis, one by one."""
        parts = []
        for number, (first, end) in enumerate(windows):
            cut = f"{made}/{number}"
            ends = [np.array([n], np.int64) for n in (first, end, axis)]
            inputs = [x, *(self._constant(f"int/{n[0]}", n) for n in ends)]
            self._node("Slice", inputs, f"{cut}/cut")
            self._node("ReduceMean", [f"{cut}/cut"], cut, axes=[axis], keepdims=1)
            parts.append(cut)
        self._node("Concat", parts, made, axis=axis)
        return made

    def _activate(self, activation: str, x: str, made: str) -> None:
        if activation == net.RELU:
            self._node("Relu", [x], made)
            return
        ends = [np.array(end, np.float32) for end in (0, 6)]
        inputs = [self._constant(f"float/{end:g}", end) for end in ends]
        self._node("Clip", [x, *inputs], made)

    # -- tensors ----------------------------------------------------------------------------

    def _weights(self, layer: net.Convolution | net.Linear) -> list[str]:
        """Add a layer's weight and bias; return what its operator reads."""
        weight = layer.weight + 0.0  # no -0.0, which a mask cannot tell
        storage = shorter(weight, self.storage, 0)
        values, scale = converted(weight, storage, 0)
        kept = int(np.count_nonzero(values))
        row = Stored(layer.name, weight.shape, kept, False, values.nbytes, weight.nbytes)
        self.stored.append(row)
        name = f"{layer.name}.weight"
        read = self._constant(name, values)
        if scale is not None:
            inputs = [
                read,
                self._constant(f"{name}/scale", scale.scale),
                self._constant(f"{name}/zero", np.zeros(len(scale.scale), np.int8)),
            ]
            read = self._node("DequantizeLinear", inputs, f"{name}/f32", axis=0)
        elif values.dtype == np.float16:
            read = self._node("Cast", [read], f"{name}/f32", to=self.onnx.TensorProto.FLOAT)
        return [read, self._constant(f"{layer.name}.bias", layer.bias + 0.0)]

    def _constant(self, name: str, content: NDArray[Any]) -> str:
        if name not in self.constants:
            from_array = importlib.import_module("onnx.numpy_helper").from_array
            self.constants[name] = from_array(np.ascontiguousarray(content), name)
        return name

    def _node(self, code: str, inputs: list[str], made: str, **attributes: Any) -> str:
        self.nodes.append(self.helper.make_node(code, inputs, [made], name=made, **attributes))
        return made


def _name(value: int) -> str:
    return "input" if value == 0 else f"value/{value}"


def _first(error: Exception) -> str:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return lines[0][:160] if lines else type(error).__name__


STORAGES = {F32: Storage(), F16: Storage(F16), "int8-weights": Storage(INT8)}
"""What each of `--values` is in an ONNX file."""
