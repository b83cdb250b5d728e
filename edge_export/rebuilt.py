"""A network as a torch module again, with BatchNorm folded and cut channels gone.

What other converters start from: they take torch modules, and know nothing of networks here.
"""

from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from edge_export import network as net
from edge_export.network import Layer, Network
from fedsparse.errors import ExportError
from fedsparse.kernels.nodes import Pair


def module_of(network: Network) -> nn.Module:
    """Return a module in evaluation that computes what a network computes."""
    return _Rebuilt(network).eval()


class _Rebuilt(nn.Module):
    def __init__(self, network: Network) -> None:
        super().__init__()
        self.steps = nn.ModuleList(_step(layer, network) for layer in network.layers)
        self.activations = nn.ModuleList(_activation(layer) for layer in network.layers)
        self.places = [(layer.inputs, layer.output) for layer in network.layers]

    def forward(self, x: Tensor) -> Tensor:
        values = {0: x}
        for (inputs, output), step, activation in zip(
            self.places, self.steps, self.activations, strict=True
        ):
            x = activation(step(*(values[number] for number in inputs)))
            values[output] = x
        return x.flatten(1)


class _Affine(nn.Module):
    def __init__(self, layer: net.Affine) -> None:
        super().__init__()
        self.scale, self.shift = _parameter(layer.scale), _parameter(layer.shift)

    def forward(self, x: Tensor) -> Tensor:
        sides = (-1, *[1] * (x.ndim - 2))
        return x * self.scale.reshape(sides) + self.shift.reshape(sides)


class _Windows(nn.Module):
    def __init__(self, rows: Sequence[Pair], columns: Sequence[Pair]) -> None:
        super().__init__()
        self.rows, self.columns = tuple(rows), tuple(columns)

    def forward(self, x: Tensor) -> Tensor:
        x = torch.cat([x[:, :, a:b].mean(2, keepdim=True) for a, b in self.rows], 2)
        return torch.cat([x[:, :, :, a:b].mean(3, keepdim=True) for a, b in self.columns], 3)


class _Add(nn.Module):
    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        return x + y


def _step(layer: Layer, network: Network) -> nn.Module:
    match layer:
        case net.Convolution():
            outs, ins, *kernel = layer.weight.shape
            sides = (layer.stride, layer.padding, layer.dilation, layer.groups)
            made = nn.Conv2d(ins * layer.groups, outs, tuple(kernel), *sides)
            return _filled(made, layer)
        case net.Linear():
            flat = nn.Flatten() if _image(network, layer) else nn.Identity()
            return nn.Sequential(flat, _filled(nn.Linear(*layer.weight.shape[::-1]), layer))
        case net.Affine():
            return _Affine(layer)
        case net.MaxPool():
            return nn.MaxPool2d(layer.kernel, layer.stride, layer.padding)
        case net.AveragePool():
            value = network.values[layer.inputs[0]]
            if (layer.rows, layer.columns) == (((0, value.height),), ((0, value.width),)):
                return nn.AdaptiveAvgPool2d(1)
            return _Windows(layer.rows, layer.columns)
        case net.Add():
            return _Add()
        case net.Flatten():
            return nn.Flatten()
        case net.Activation():
            return nn.Identity()
    raise ExportError(f"layer '{layer.name}' cannot be made a module again")


def _activation(layer: Layer) -> nn.Module:
    kinds = {net.NONE: nn.Identity, net.RELU: nn.ReLU, net.RELU6: nn.ReLU6}
    made: nn.Module = kinds[layer.activation]()
    return made


def _image(network: Network, layer: Layer) -> bool:
    """Whether a linear layer's input may be an image, which it has to flatten."""
    made = next((x for x in network.layers if x.output == layer.inputs[0]), None)
    return not isinstance(made, net.Flatten | net.Linear)


def _filled(module: nn.Conv2d | nn.Linear, layer: net.Convolution | net.Linear) -> nn.Module:
    module.weight, module.bias = _parameter(layer.weight + 0.0), _parameter(layer.bias)
    return module


def _parameter(values: NDArray[np.float32]) -> nn.Parameter:
    return nn.Parameter(torch.from_numpy(np.ascontiguousarray(values)), requires_grad=False)
