"""The largest gradients among pruned weights, found without a dense gradient.

FedTiny's clients keep only a buffer of the `a` largest gradients of a layer (section
"progressive pruning"). Here the layer's weight gradient is computed a block of rows at
a time from its input and the gradient of its output, and each block is folded into that
buffer, so memory is O(a + block), never O(layer).
"""

from collections.abc import Callable, Iterator, Mapping
from contextlib import nullcontext

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn.grad import conv2d_weight

from fedsparse.data import Dataset
from fedsparse.errors import MaskError
from fedsparse.sparsity import Mask, top
from fedsparse.training.batchnorm import statistics_momentum
from fedsparse.training.local import loss_of, tensors
from fedsparse.training.results import Top as Top

BLOCK_ENTRIES = 16_384
"""Weights whose gradient exists at one time."""


def top_gradients(
    model: nn.Module, mask: Mask, data: Dataset, counts: Mapping[str, int]
) -> dict[str, Top]:
    """Return, by layer, the `counts[layer]` largest |gradient| among pruned weights.

    The loss is that of one batch, `data`, in training mode; BatchNorm's running
    statistics stay as they are. Ties go to the lower position.
    """
    wanted = {name: count for name, count in counts.items() if count > 0}
    found: dict[str, Top] = {}
    for name, blocks in _gradient_blocks(model, data, list(wanted)).items():
        largest = _Largest(wanted[name])
        pruned = ~mask[name].reshape(-1)
        for start, block in blocks:
            flat = block.reshape(-1).cpu().numpy()
            inside = np.flatnonzero(pruned[start : start + flat.size])
            largest.offer(inside + start, flat[inside])
        found[name] = largest.take()
    return found


class _Largest:
    """The buffer of the largest magnitudes seen; positions are offered in ascending order.

    It holds `count` entries and at most a block more, and is cut back only when that is
    full: most entries of later blocks are below the least that it keeps, and never enter.
    """

    def __init__(self, count: int) -> None:
        self.count = count
        self.index = np.empty(0, np.int64)
        self.value = np.empty(0, np.float32)
        self.least = np.float32(-1)

    def offer(self, index: NDArray[np.int64], value: NDArray[np.float32]) -> None:
        """Take in what exceeds the least kept; an equal one stands later, and loses."""
        above = np.abs(value) > self.least
        self.index = np.concatenate([self.index, index[above]])
        self.value = np.concatenate([self.value, value[above]])
        if len(self.index) > self.count + BLOCK_ENTRIES:
            self._cut()

    def take(self) -> Top:
        """Return the largest, by position."""
        self._cut()
        return self.index, self.value

    def _cut(self) -> None:
        if len(self.value) > self.count:
            magnitude = np.abs(self.value)
            kept = top(magnitude, self.count)
            self.least = magnitude[kept].min()
            self.index, self.value = self.index[kept], self.value[kept]


def _gradient_blocks(
    model: nn.Module, data: Dataset, names: list[str]
) -> dict[str, Iterator[tuple[int, Tensor]]]:
    """Run one backward pass that keeps inputs and output gradients of the named layers."""
    layers = {name: model.get_submodule(name.rpartition(".")[0]) for name in names}
    inputs: dict[str, Tensor] = {}
    outputs: dict[str, Tensor] = {}
    hooks = [
        layer.register_forward_hook(_recorder(name, inputs, outputs))
        for name, layer in layers.items()
    ]
    parameters = [p for p in model.parameters() if p.requires_grad]
    training = model.training
    device = parameters[0].device
    x, y = (tensor.to(device) for tensor in tensors(data))
    try:
        model.eval()
        for parameter in parameters:
            parameter.requires_grad_(False)
        with statistics_momentum(model, 0.0) if len(y) > 1 else nullcontext():
            loss = loss_of(data.classes)(model(x), y)
        gradients = torch.autograd.grad(loss, [outputs[name] for name in names])
    finally:
        for hook in hooks:
            hook.remove()
        for parameter in parameters:
            parameter.requires_grad_(True)
        model.train(training)
    return {
        name: _blocks(layers[name], inputs[name], gradient)
        for name, gradient in zip(names, gradients, strict=True)
    }


def _recorder(
    name: str, inputs: dict[str, Tensor], outputs: dict[str, Tensor]
) -> Callable[[nn.Module, tuple[Tensor, ...], Tensor], Tensor]:
    """Return a hook that keeps a layer's input and output.

    It hands on a copy of the output: a later operation in place must not change what
    the gradient is taken of. Where nothing before the layer needs a gradient, the
    output becomes the leaf at which the backward pass ends.
    """

    def record(_: nn.Module, given: tuple[Tensor, ...], output: Tensor) -> Tensor:
        inputs[name] = given[0].detach()
        outputs[name] = output if output.requires_grad else output.requires_grad_(True)
        return output.clone()

    return record


def _blocks(layer: nn.Module, x: Tensor, gradient: Tensor) -> Iterator[tuple[int, Tensor]]:
    """Yield (first flat position, gradient of a block of the layer's weight rows)."""
    if isinstance(layer, nn.Linear):
        return _linear_blocks(layer, x, gradient)
    if isinstance(layer, nn.Conv2d):
        return _convolution_blocks(layer, x, gradient)
    raise MaskError(f"cannot grow weights of a {type(layer).__name__}; use Linear or Conv2d layers")


def _linear_blocks(layer: nn.Linear, x: Tensor, gradient: Tensor) -> Iterator[tuple[int, Tensor]]:
    flat, delta = x.reshape(-1, layer.in_features), gradient.reshape(-1, layer.out_features)
    rows = max(1, BLOCK_ENTRIES // layer.in_features)
    for start in range(0, layer.out_features, rows):
        yield start * layer.in_features, delta[:, start : start + rows].T @ flat


def _convolution_blocks(
    layer: nn.Conv2d, x: Tensor, gradient: Tensor
) -> Iterator[tuple[int, Tensor]]:
    """Yield blocks of output channels; with groups, of whole groups."""
    inner = layer.weight[0].numel()
    if layer.groups == 1:
        rows, width = max(1, BLOCK_ENTRIES // inner), 0
    else:
        each = layer.out_channels // layer.groups
        rows = each * max(1, BLOCK_ENTRIES // (inner * each))
        width = layer.in_channels // layer.groups
    for start in range(0, layer.out_channels, rows):
        stop = min(start + rows, layer.out_channels)
        groups, source = 1, x
        if width:
            first, last = start // each, stop // each
            groups, source = last - first, x[:, first * width : last * width]
        yield (
            start * inner,
            conv2d_weight(  # type: ignore[no-untyped-call]
                source,
                [stop - start, *layer.weight.shape[1:]],
                gradient[:, start:stop],
                layer.stride,
                layer.padding,
                layer.dilation,
                groups,
            ),
        )
