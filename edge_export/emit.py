"""From a network to a .tflite file, written directly with the bindings of its schema.

Images are (1, rows, columns, channels) there. What XNNPACK's sparse kernels need is kept: padding
that its own convolutions know, a global average as MEAN over rows and columns, no transposition.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from edge_export import network as net
from edge_export.flat import Flat, Scale
from edge_export.network import Layer, Network
from edge_export.storage import DYNAMIC, STATIC, Storage, Stored, store
from fedsparse.errors import ExportError
from fedsparse.kernels.nodes import Pair, Value

ACTIVATIONS = {net.NONE: 0, net.RELU: 1, net.RELU6: 3}
SAME, VALID = 0, 1
MOST_FINER = 128.0
LARGEST_BIAS = 2.0**30
NO_RANGE = 2.0**-10
"""The step of a value that is always zero: fine, as steps of its readers' biases come from it."""
"""How much finer than a sum's step that of a layer's outputs may be; XNNPACK takes below 256."""
ENTRY_CHANNELS = 3
"""Channels that XNNPACK's first convolution of a sparse chain must have."""
Range = tuple[float, float]
Floats = NDArray[np.float32]


@dataclass(frozen=True)
class Emitted:
    """A file's bytes, and how each weight lies in it."""

    content: bytes
    stored: tuple[Stored, ...]


def emit(
    network: Network,
    storage: Storage,
    *,
    ranges: Sequence[Range] | None = None,
    widen: bool = False,
    description: str = "fedsparse",
) -> Emitted:
    """Write a network as a .tflite file for one sample at a time.

    `ranges` are (least, most) of each value, for int8 arithmetic throughout. `widen` gives the
    first convolution's input zero channels up to three. Raises ExportError for what the format,
    or int8, does not have.
    """
    if storage.arithmetic == STATIC and (ranges is None or len(ranges) != len(network.values)):
        raise ExportError("static int8 needs the range of each value; calibrate on data first")
    writer = _Writer(network, storage, ranges, widen)
    return Emitted(writer.write(description), tuple(writer.stored))


class _Writer:
    def __init__(
        self, network: Network, storage: Storage, ranges: Sequence[Range] | None, widen: bool
    ) -> None:
        self.network = network
        self.storage = storage
        self.scales: list[Scale | None] = [None] * len(network.values)
        if storage.arithmetic == STATIC and ranges is not None:
            self.scales = [_scale(least, most) for least, most in ranges]
        self.widen = widen
        self.flat = Flat()
        self.stored: list[Stored] = []
        self.made: dict[int, int] = {}  # the tensor of each value
        self.reordered: dict[int, Value] = {}  # vectors that were images, rows first

    @property
    def kind(self) -> str:
        """The type of what operators compute."""
        return "int8" if self.storage.arithmetic == STATIC else "float32"

    def write(self, description: str) -> bytes:
        shape: tuple[int, ...] = _image(self.network.values[0])
        if len(self.network.input_shape) == 1:
            shape = (1, *self.network.input_shape)
        first = self.flat.value("input", shape)
        self.made[0] = first
        if self.kind == "int8":
            self.made[0] = self._quantize(first, 0)
        for layer in self.network.layers:
            self._take(layer)
        last = self._as_rank(self.network.output, 2)
        if self.network.output in self.reordered:
            last = self._restored(self.network.output)
        if self.kind == "int8":
            logits = self.flat.value("logits", self.flat.shape(last))
            last = self.flat.add("DEQUANTIZE", [last], logits, 2)
        return self.flat.finish([first], [last], description)

    def _quantize(self, tensor: int, value: int) -> int:
        shape = self.flat.shape(tensor)
        made = self.flat.value("input/int8", shape, "int8", self.scales[value])
        return self.flat.add("QUANTIZE", [tensor], made)

    def _take(self, layer: Layer) -> None:
        match layer:
            case net.Convolution():
                made = self._convolution(layer)
            case net.Linear():
                made = self._linear(layer)
            case net.Affine():
                made = self._affine(layer)
            case net.Activation():
                made = self._activation(layer)
            case net.MaxPool():
                made = self._max_pool(layer)
            case net.AveragePool():
                made = self._average_pool(layer)
            case net.Add():
                made = self._add(layer)
            case net.Flatten():
                made = self._flatten(layer)
            case _:
                raise ExportError(f"layer '{layer.name}' cannot be written to a .tflite file")
        self.made[layer.output] = made

    # -- layers with weights ------------------------------------------------------------

    def _convolution(self, layer: net.Convolution) -> int:
        source = layer.inputs[0]
        x = self._as_rank(source, 4)
        weight, axis = np.moveaxis(layer.weight, 1, 3), 0
        if layer.depthwise:
            weight, axis = np.ascontiguousarray(layer.weight[:, 0].transpose(1, 2, 0))[None], 3
        elif self.widen and layer is self.network.layers[0]:
            x, weight = self._widened(x, weight)
        x, padding = self._padded(x, layer)
        weight = np.ascontiguousarray(weight)
        scale = self.scales[source]
        inputs = [x, *self._weights(layer, weight, axis, scale)]
        options = {
            "padding": padding,
            "strideH": layer.stride[0],
            "strideW": layer.stride[1],
            "dilationHFactor": layer.dilation[0],
            "dilationWFactor": layer.dilation[1],
            "fusedActivationFunction": ACTIVATIONS[layer.activation],
        }
        code, version = "CONV_2D", 3 if self.kind == "int8" else 1
        if self.storage.arithmetic == DYNAMIC:
            version = 5
        if layer.depthwise:
            channels = self.network.values[source].channels
            options["depthMultiplier"] = len(layer.weight) // channels
            code = "DEPTHWISE_CONV_2D"
            version = 6 if self.storage.arithmetic == DYNAMIC else version
        return self.flat.add(code, inputs, self._image(layer), version, **options)

    def _linear(self, layer: net.Linear) -> int:
        source = layer.inputs[0]
        x = self._as_rank(source, 2)
        weight = layer.weight
        if source in self.reordered:
            weight = weight[:, _rows_first(self.reordered[source])]
        version = {"int8": 4}.get(self.kind, 1)
        options = {}
        if self.storage.arithmetic == DYNAMIC:
            version, options = 9, {"asymmetricQuantizeInputs": True}
        inputs = [x, *self._weights(layer, np.ascontiguousarray(weight), 0, self.scales[source])]
        made = self._value(layer, (1, len(weight)))
        activation = ACTIVATIONS[layer.activation]
        return self.flat.add(
            "FULLY_CONNECTED", inputs, made, version, fusedActivationFunction=activation, **options
        )

    def _weights(
        self, layer: net.Convolution | net.Linear, weight: Floats, axis: int, scale: Scale | None
    ) -> list[int]:
        """Add a layer's weight and bias; return their tensors."""
        least = None
        if scale is not None:  # a channel of next to no weights leaves its bias room in 32 bits
            least = np.abs(layer.bias.astype(np.float64)) / (LARGEST_BIAS * float(scale.scale[0]))
        made = store(self.flat, layer.name, weight, axis, self.storage, self.stored, least)
        name = f"{layer.name}/bias"
        if scale is None:
            return [made, self.flat.constant(name, layer.bias + 0.0)]
        steps = np.asarray(self.flat.tensors[made].quantization.scale, np.float64)
        steps = steps * float(scale.scale[0])
        self._hold_step(layer.output, float(steps.max()) / MOST_FINER)
        whole = np.rint(layer.bias / steps).astype(np.int32)
        return [made, self.flat.constant(name, whole, Scale(steps.astype(np.float32), 0, 0))]

    def _hold_step(self, value: int, least: float) -> None:
        """Make a value's step at least so large: kernels refuse one far finer than their sums'."""
        scale = self.scales[value]
        if scale is not None and scale.scale[0] < least:
            self.scales[value] = Scale(np.array([least], np.float32), scale.zero)

    def _widened(self, x: int, weight: Floats) -> tuple[int, Floats]:
        """Give an image and the weight that reads it channels of zeros, up to three.

        By a convolution of each pixel: an operator that pads copies them one by one.
        """
        channels = weight.shape[3]
        if channels >= ENTRY_CHANNELS:
            return x, weight
        copies = np.eye(ENTRY_CHANNELS, channels, dtype=np.float32)[:, None, None]
        inputs = [x, self.flat.constant("input/copies", np.ascontiguousarray(copies))]
        inputs.append(self.flat.constant("input/zeros", np.zeros(ENTRY_CHANNELS, np.float32)))
        made = self.flat.value("input/widened", (*self.flat.shape(x)[:3], ENTRY_CHANNELS))
        self.flat.add("CONV_2D", inputs, made, padding=VALID, strideH=1, strideW=1)
        more = ENTRY_CHANNELS - channels
        return made, np.pad(weight, [(0, 0), (0, 0), (0, 0), (0, more)])

    def _padded(self, x: int, layer: net.Convolution) -> tuple[int, int]:
        """Return the input and the padding with which an operator pads as the layer does."""
        _, rows, columns, _ = self.flat.shape(x)
        if layer.padding == (0, 0):
            return x, VALID
        spans = [
            step * (size - 1) + 1
            for step, size in zip(layer.dilation, layer.weight.shape[2:], strict=True)
        ]
        sides = zip((rows, columns), spans, layer.stride, layer.padding, strict=True)
        if all(_is_same(*side) for side in sides):
            return x, SAME
        up, left = layer.padding
        return self._pad(x, [(0, 0), (up, up), (left, left), (0, 0)], f"{layer.name}/pad"), VALID

    def _pad(self, x: int, sides: list[Pair], name: str, fill: int | None = None) -> int:
        shape = tuple(
            size + sum(side) for size, side in zip(self.flat.shape(x), sides, strict=True)
        )
        tensor = self.flat.tensors[x]
        made = self.flat.value(name, shape, self.kind)
        self.flat.tensors[made].quantization = tensor.quantization
        inputs = [x, self.flat.constant(f"{name}/sides", np.array(sides, np.int32))]
        if fill is None:
            return self.flat.add("PAD", inputs, made, 2 if self.kind == "int8" else 1)
        least = np.array([fill if self.kind == "int8" else np.finfo(np.float32).min])
        inputs.append(
            self.flat.constant(f"{name}/least", least.astype(self.kind), _scale_of(tensor))
        )
        return self.flat.add("PADV2", inputs, made, 2 if self.kind == "int8" else 1)

    # -- layers without -------------------------------------------------------------------

    def _affine(self, layer: net.Affine) -> int:
        if self.kind == "int8":
            raise ExportError(
                f"BatchNorm '{layer.name}' follows no convolution, which static int8 does not "
                "cover; export with --values f32, or --layout sparse"
            )
        source = layer.inputs[0]
        x, scale, shift = self.made[source], layer.scale, layer.shift
        if source in self.reordered:
            value = self.reordered[source]
            scale, shift = (vector[_rows_first(value)] for vector in (scale, shift))
            self.reordered[layer.output] = value
        inputs = [x, self.flat.constant(f"{layer.name}/scale", scale)]
        scaled = self.flat.value(f"{layer.name}/scaled", self.flat.shape(x))
        self.flat.add("MUL", inputs, scaled)
        inputs = [scaled, self.flat.constant(f"{layer.name}/shift", shift)]
        made = self._value(layer, self.flat.shape(x))
        activation = ACTIVATIONS[layer.activation]
        return self.flat.add("ADD", inputs, made, fusedActivationFunction=activation)

    def _activation(self, layer: net.Activation) -> int:
        source = layer.inputs[0]
        if source in self.reordered:
            self.reordered[layer.output] = self.reordered[source]
        x = self.made[source]
        code = {net.RELU: "RELU", net.RELU6: "RELU6"}[layer.activation]
        made = self._value(layer, self.flat.shape(x))
        return self.flat.add(code, [x], made, 2 if self.kind == "int8" else 1)

    def _max_pool(self, layer: net.MaxPool) -> int:
        self.scales[layer.output] = self.scales[layer.inputs[0]]
        x = self._as_rank(layer.inputs[0], 4)
        up, left = layer.padding
        if layer.padding != (0, 0):
            sides = [(0, 0), (up, up), (left, left), (0, 0)]
            x = self._pad(x, sides, f"{layer.name}/pad", fill=-128)
        return self._pool("MAX_POOL_2D", layer, x, layer.kernel, layer.stride)

    def _pool(self, code: str, layer: Layer, x: int, kernel: Pair, stride: Pair) -> int:
        version = 2 if self.kind == "int8" else 1
        return self.flat.add(
            code,
            [x],
            self._image(layer),
            version,
            padding=VALID,
            filterHeight=kernel[0],
            filterWidth=kernel[1],
            strideH=stride[0],
            strideW=stride[1],
        )

    def _average_pool(self, layer: net.AveragePool) -> int:
        source, output = layer.inputs[0], layer.output
        x, value = self._as_rank(source, 4), self.network.values[source]
        if layer.rows == ((0, value.height),) and layer.columns == ((0, value.width),):
            flat = all(
                isinstance(self.network.layers[i], net.Linear)
                for i in self.network.consumers(output)
            )
            shape = (1, value.channels) if flat else (1, 1, 1, value.channels)
            return self._mean(x, (1, 2), self._value(layer, shape), keep=not flat)
        self.scales[output] = self.scales[source]
        rows, columns = _steady(layer.rows, value.height), _steady(layer.columns, value.width)
        if rows is not None and columns is not None:
            kernel, stride = zip(rows, columns, strict=True)
            return self._pool("AVERAGE_POOL_2D", layer, x, kernel, stride)
        for axis, windows in ((1, layer.rows), (2, layer.columns)):
            x = self._means(x, axis, windows, layer)
        return x

    def _means(self, x: int, axis: int, windows: Sequence[Pair], layer: Layer) -> int:
        """Average windows of any sizes along an axis, one by one."""
        parts = []
        for first, end in windows:
            start, size = [0, 0, 0, 0], list(self.flat.shape(x))
            start[axis], size[axis] = first, end - first
            inputs = [
                x,
                *(self.flat.constant("sizes", np.array(v, np.int32)) for v in (start, size)),
            ]
            cut = self._value(layer, tuple(size))
            self.flat.add("SLICE", inputs, cut, 2 if self.kind == "int8" else 1)
            size[axis] = 1
            parts.append(self._mean(cut, (axis,), self._value(layer, tuple(size)), keep=True))
        shape = list(self.flat.shape(x))
        shape[axis] = len(windows)
        made = self._value(layer, tuple(shape))
        return self.flat.add(
            "CONCATENATION", parts, made, 2 if self.kind == "int8" else 1, axis=axis
        )

    def _mean(self, x: int, axes: tuple[int, ...], made: int, *, keep: bool) -> int:
        inputs = [x, self.flat.constant("axes", np.array(axes, np.int32))]
        version = 2 if self.kind == "int8" else 1
        return self.flat.add("MEAN", inputs, made, version, keepDims=keep)

    def _add(self, layer: net.Add) -> int:
        x, y = (self.made[value] for value in layer.inputs)
        if any(value in self.reordered for value in layer.inputs):
            x, y = (self._restored(value) for value in layer.inputs)
        if len(self.flat.shape(x)) != len(self.flat.shape(y)):
            x, y = (self._as_rank(value, 4) for value in layer.inputs)
        made = self._value(layer, self.flat.shape(x))
        activation = ACTIVATIONS[layer.activation]
        version = 2 if self.kind == "int8" else 1
        return self.flat.add("ADD", [x, y], made, version, fusedActivationFunction=activation)

    def _flatten(self, layer: net.Flatten) -> int:
        source = layer.inputs[0]
        value = self.network.values[source]
        self.scales[layer.output] = self.scales[source]
        if value.channels > 1 and value.height * value.width > 1:
            self.reordered[layer.output] = value
        return self._reshaped(self.made[source], (1, math.prod(_image(value))), layer.name)

    # -- tensors ----------------------------------------------------------------------------

    def _restored(self, value: int) -> int:
        """Return a vector with its numbers in torch's order."""
        x = self.made[value]
        if value not in self.reordered:
            return x
        was = self.reordered[value]
        image = self._reshaped(x, _image(was), "rows_first")
        shape = (1, was.channels, was.height, was.width)
        made = self.flat.value("channels_first", shape, self.kind, self.scales[value])
        inputs = [image, self.flat.constant("order", np.array([0, 3, 1, 2], np.int32))]
        self.flat.add("TRANSPOSE", inputs, made, 2 if self.kind == "int8" else 1)
        return self._reshaped(made, (1, math.prod(shape)), "restored")

    def _as_rank(self, value: int, rank: int) -> int:
        """Return a value's tensor as a vector (1, n) or an image (1, rows, columns, channels)."""
        x, shape = self.made[value], self.flat.shape(self.made[value])
        if len(shape) == rank:
            return x
        return self._reshaped(
            x, (1, math.prod(shape)) if rank == 2 else (1, 1, 1, math.prod(shape)), "reshape"
        )

    def _reshaped(self, x: int, shape: tuple[int, ...], name: str) -> int:
        if self.flat.shape(x) == shape:
            return x
        made = self.flat.value(name, shape, self.kind)
        self.flat.tensors[made].quantization = self.flat.tensors[x].quantization
        sizes = self.flat.constant("sizes", np.array(shape, np.int32))
        return self.flat.add("RESHAPE", [x, sizes], made, newShape=list(shape))

    def _image(self, layer: Layer) -> int:
        return self._value(layer, _image(self.network.values[layer.output]))

    def _value(self, layer: Layer, shape: tuple[int, ...]) -> int:
        return self.flat.value(layer.name, shape, self.kind, self.scales[layer.output])


def _image(value: Value) -> tuple[int, int, int, int]:
    return (1, value.height, value.width, value.channels)


def _rows_first(value: Value) -> NDArray[np.int64]:
    """Return, for each number of an image stored rows first, its place in torch's order."""
    places = np.arange(value.channels * value.height * value.width)
    return places.reshape(value.channels, value.height, value.width).transpose(1, 2, 0).ravel()


def _is_same(size: int, span: int, stride: int, padding: int) -> bool:
    """Whether padding "SAME" of an axis is this padding on both of its ends.

    Never for strides, where it may be by chance: XNNPACK keeps no chain over it.
    """
    return stride == 1 and 2 * padding == span - 1


def _steady(windows: Sequence[Pair], size: int) -> Pair | None:
    """Return (length, step) of windows that a pooling operator walks; None for others."""
    length = windows[0][1] - windows[0][0]
    step = windows[1][0] - windows[0][0] if len(windows) > 1 else length
    if step < 1:
        return None
    walked = tuple((i * step, i * step + length) for i in range((size - length) // step + 1))
    return (length, step) if walked == tuple(windows) else None


def _scale(least: float, most: float) -> Scale:
    """Return how int8 covers a range, widened to hold 0 exactly."""
    least, most = min(least, 0.0), max(most, 0.0)
    step = (most - least) / 255 or NO_RANGE
    zero = int(np.clip(round(-128 - least / step), -128, 127))
    return Scale(np.array([step], np.float32), zero)


def _scale_of(tensor: object) -> Scale | None:
    found = getattr(tensor, "quantization", None)
    return None if found is None else Scale(np.asarray(found.scale), int(found.zeroPoint[0]))
