"""A trained network as an exporter needs it: layers with their weights, BatchNorm folded.

`of` takes a torch module; weights stay in torch's order, (out, in, rows, columns), and a sample
in (channels, rows, columns). The file formats reorder them as they need.
"""

from dataclasses import dataclass, replace

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional

from fedsparse.errors import ExportError
from fedsparse.kernels import graph as traced
from fedsparse.kernels import nodes
from fedsparse.kernels.nodes import Pair, Uncovered, Value
from fedsparse.models import get_state
from fedsparse.sparsity import State

Floats = NDArray[np.float32]

NONE, RELU, RELU6 = "none", "relu", "relu6"


class UncoveredError(ExportError):
    """A model that has layers, or samples, which no network here has."""


@dataclass(frozen=True)
class Layer:
    """An operation on `values` of a network; `activation` follows it within the same layer."""

    name: str
    inputs: tuple[int, ...]
    output: int
    activation: str


@dataclass(frozen=True, eq=False)
class Convolution(Layer):
    """A convolution with a bias: weight (out, in / groups, rows, columns), bias (out,)."""

    weight: Floats
    bias: Floats
    stride: Pair
    padding: Pair
    dilation: Pair
    groups: int

    @property
    def depthwise(self) -> bool:
        """Whether each input channel is convolved by itself."""
        return self.groups > 1 and self.weight.shape[1] == 1

    @property
    def pointwise(self) -> bool:
        """Whether it mixes channels pixel by pixel: 1x1, stride 1, no padding."""
        plain = (self.stride, self.padding, self.groups) == ((1, 1), (0, 0), 1)
        return plain and self.weight.shape[2:] == (1, 1)


@dataclass(frozen=True, eq=False)
class Linear(Layer):
    """A matrix on a vector: weight (out, in), bias (out,)."""

    weight: Floats
    bias: Floats


@dataclass(frozen=True, eq=False)
class Affine(Layer):
    """A BatchNorm that follows no convolution: a factor and an addend a channel."""

    scale: Floats
    shift: Floats


@dataclass(frozen=True)
class Activation(Layer):
    """An activation that follows no layer which could take it in."""


@dataclass(frozen=True)
class MaxPool(Layer):
    """The maximum over windows; what padding adds never wins."""

    kernel: Pair
    stride: Pair
    padding: Pair


@dataclass(frozen=True)
class AveragePool(Layer):
    """The mean over rows [start, end) and columns likewise, for each output row and column."""

    rows: tuple[Pair, ...]
    columns: tuple[Pair, ...]


@dataclass(frozen=True)
class Add(Layer):
    """The sum of two values."""


@dataclass(frozen=True)
class Flatten(Layer):
    """An image as a vector, channel by channel."""


@dataclass(frozen=True)
class Network:
    """Layers in forward order. values[0] is a sample; the last layer's output is the logits."""

    values: tuple[Value, ...]
    layers: tuple[Layer, ...]
    input_shape: tuple[int, ...]

    @property
    def output(self) -> int:
        """The value that the network returns."""
        return self.layers[-1].output

    def consumers(self, value: int) -> tuple[int, ...]:
        """Return the indices of the layers that take a value."""
        return tuple(i for i, layer in enumerate(self.layers) if value in layer.inputs)

    def weighted(self) -> list["Convolution | Linear"]:
        """Return the layers with weights that a mask can prune, in forward order."""
        return [layer for layer in self.layers if isinstance(layer, Convolution | Linear)]

    def macs(self) -> tuple[int, int]:
        """Return the multiply-adds of one sample: with every weight, and with those kept."""
        dense = kept = 0
        for layer in self.weighted():
            value = self.values[layer.output]
            pixels = value.height * value.width
            dense += layer.weight.size * pixels
            kept += int(np.count_nonzero(layer.weight)) * pixels
        return dense, kept


def of(model: nn.Module, input_shape: tuple[int, ...]) -> Network:
    """Return the network that a module computes in evaluation, for samples of this shape.

    Raises UncoveredError that names the layer which the direct route does not cover, ExportError
    for values that are not finite.
    """
    if len(input_shape) not in (1, 3):
        raise UncoveredError(
            f"a sample of shape {input_shape} is no vector and no image; only these are exported"
        )
    try:
        graph = traced.derive(model, input_shape)
    except Uncovered as reason:
        raise UncoveredError(
            f"this model is not covered by direct export: {reason}; try --route litert-torch, to "
            "a .tflite file, or build it of convolutions, linear layers, BatchNorm, ReLU, pooling "
            "and additions"
        ) from None
    state = get_state(model)
    broken = next((name for name, value in state.items() if not np.isfinite(value).all()), None)
    if broken is not None:
        raise ExportError(f"'{broken}' holds values that are not finite; train the model again")
    with np.errstate(all="ignore"):  # what comes of it is looked at below
        layers = _folded([_layer(node, state) for node in graph.nodes])
    for layer in layers:
        for value in vars(layer).values():
            if isinstance(value, np.ndarray) and not np.isfinite(value).all():
                raise ExportError(
                    f"layer '{layer.name}' is not finite once its BatchNorm is folded in: a "
                    "running variance is negative, or weights are too large; train the model again"
                )
    return _numbered(graph, layers, input_shape)


def _layer(node: nodes.Node, state: State) -> Layer:
    """Return a node as a layer of its own, nothing folded."""
    place = (node.inputs, node.output, NONE)
    match node:
        case nodes.Conv():
            weight = state[node.weight]
            bias = np.zeros(len(weight), np.float32) if node.bias is None else state[node.bias]
            name = node.weight.removesuffix(".weight")
            if len(node.weight_shape) == 2:
                return Linear(name, *place, weight, bias)
            sides = (node.stride, node.padding, node.dilation)
            return Convolution(name, *place, weight, bias, *sides, node.groups)
        case nodes.Norm():
            mean, variance = (
                state[n].astype(np.float64) for n in (node.running_mean, node.running_var)
            )
            scale = state[node.weight] / np.sqrt(variance + node.eps)
            shift = state[node.bias] - mean * scale
            name = node.weight.removesuffix(".weight")
            return Affine(name, *place, scale.astype(np.float32), shift.astype(np.float32))
        case nodes.Relu():
            if node.cap not in (None, 6.0):
                raise ExportError(f"a ReLU with a maximum of {node.cap} is not exported; use ReLU6")
            kind = RELU if node.cap is None else RELU6
            return Activation(kind, node.inputs, node.output, kind)
        case nodes.MaxPool():
            return MaxPool("max_pool", *place, node.kernel, node.stride, node.padding)
        case nodes.AveragePool():
            return AveragePool("average_pool", *place, node.rows, node.columns)
        case nodes.Add():
            return Add("add", *place)
        case nodes.Flatten():
            return Flatten("flatten", *place)
    raise ExportError(f"a layer of kind '{node.kind}' is not exported")


def _folded(layers: list[Layer]) -> list[Layer]:
    """Fold each BatchNorm into the convolution before it, each activation into its layer."""
    kept: list[Layer] = []
    for layer in layers:
        before = _only_source(layer, kept, layers)
        joined = None if before is None or before.activation != NONE else _joined(before, layer)
        if before is None or joined is None:
            kept.append(layer)
        else:
            kept[kept.index(before)] = joined
    return kept


def _joined(before: Layer, layer: Layer) -> Layer | None:
    """Return two layers as one; None for two that stay apart."""
    if isinstance(layer, Affine) and isinstance(before, Convolution | Linear):
        return _scaled(before, layer)
    if isinstance(layer, Activation) and isinstance(before, Convolution | Linear | Affine | Add):
        return replace(before, activation=layer.activation, output=layer.output)
    return None


def _only_source(layer: Layer, kept: list[Layer], layers: list[Layer]) -> Layer | None:
    """Return the layer whose output goes into this one alone."""
    if len(layer.inputs) != 1:
        return None
    uses = sum(value == layer.inputs[0] for other in layers for value in other.inputs)
    return next((k for k in kept if uses == 1 and k.output == layer.inputs[0]), None)


def _scaled(layer: Convolution | Linear, norm: Affine) -> Convolution | Linear:
    factor = norm.scale.reshape(-1, *[1] * (layer.weight.ndim - 1))
    weight = layer.weight * factor
    bias = layer.bias * norm.scale + norm.shift
    return replace(layer, weight=weight, bias=bias, output=norm.output)


def _numbered(graph: nodes.Graph, layers: list[Layer], input_shape: tuple[int, ...]) -> Network:
    """Number the values that are left, in the order in which they are made."""
    left = [0, *(layer.output for layer in layers)]
    number = {old: new for new, old in enumerate(left)}
    renumbered = tuple(
        replace(layer, inputs=tuple(number[i] for i in layer.inputs), output=number[layer.output])
        for layer in layers
    )
    return Network(tuple(graph.values[old] for old in left), renumbered, input_shape)


# -- the same network in torch: what files are compared with, and calibrated by --------------


def run(network: Network, samples: Floats) -> list[Tensor]:
    """Return every value of a network for samples (n, *input_shape), (n, c, rows, columns)."""
    first = network.values[0]
    values: dict[int, Tensor] = {
        0: torch.from_numpy(samples).reshape(-1, first.channels, first.height, first.width)
    }
    with torch.no_grad():
        for layer in network.layers:
            values[layer.output] = _activated(_computed(layer, values), layer.activation)
    return [values[number] for number in range(len(network.values))]


def _computed(layer: Layer, values: dict[int, Tensor]) -> Tensor:
    x = values[layer.inputs[0]]
    match layer:
        case Convolution():
            weight, bias = torch.from_numpy(layer.weight), torch.from_numpy(layer.bias)
            geometry = (layer.stride, layer.padding, layer.dilation, layer.groups)
            return functional.conv2d(x, weight, bias, *geometry)
        case Linear():
            weight, bias = torch.from_numpy(layer.weight), torch.from_numpy(layer.bias)
            return functional.linear(x.flatten(1), weight, bias)[:, :, None, None]
        case Affine():
            scale, shift = torch.from_numpy(layer.scale), torch.from_numpy(layer.shift)
            return x * scale[:, None, None] + shift[:, None, None]
        case MaxPool():
            return functional.max_pool2d(x, layer.kernel, layer.stride, layer.padding)
        case AveragePool():
            rows = torch.stack([x[:, :, a:b].mean(2) for a, b in layer.rows], 2)
            return torch.stack([rows[:, :, :, a:b].mean(3) for a, b in layer.columns], 3)
        case Add():
            return x + values[layer.inputs[1]]
        case Flatten():
            return x.flatten(1)[:, :, None, None]
    return x


def _activated(x: Tensor, activation: str) -> Tensor:
    if activation == RELU:
        return x.relu()
    return x.clamp(0, 6) if activation == RELU6 else x
