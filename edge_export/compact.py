"""Channels that pruning has cut off are removed: the same outputs from a smaller dense network.

A channel goes when nothing reads it, or when it is the same number at every pixel, which then
moves into the biases of what reads it. Channels that layers pass through one by one (depthwise
convolutions, pooling, activations, additions) are kept or removed together.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace

import numpy as np
from numpy.typing import NDArray

from edge_export.network import (
    RELU,
    RELU6,
    Activation,
    Add,
    Affine,
    AveragePool,
    Convolution,
    Flatten,
    Floats,
    Layer,
    Linear,
    MaxPool,
    Network,
)

GRAIN = 8
"""Channels that dense kernels compute at once."""
BLOCKS = (4, 2)
"""Output channels that sparse kernels compute at once where they keep the same weights."""
Doubles = NDArray[np.float64]
Kept = NDArray[np.bool_]


def compact(network: Network) -> Network:
    """Return a network without the channels that do not count; the same one if all do."""
    while True:
        groups = _groups(network)
        kept = {group.number: _needed(network, group) for group in groups if group.free}
        if all(needed.all() for needed in kept.values()):
            return network
        network = _without(network, groups, kept)


@dataclass
class _Group:
    """Values whose channels go together, and the layers that mix channels before and after."""

    number: int
    values: set[int] = field(default_factory=set)
    producers: list[Layer] = field(default_factory=list)
    consumers: list[Layer] = field(default_factory=list)
    free: bool = True


def _mixes(layer: Layer) -> bool:
    return isinstance(layer, Linear) or (isinstance(layer, Convolution) and not layer.depthwise)


def _groups(network: Network) -> list[_Group]:
    """Return the groups of a network's values; one that must keep its channels is not free."""
    root = list(range(len(network.values)))

    def find(value: int) -> int:
        while root[value] != value:
            value = root[value]
        return value

    for layer in network.layers:
        if not _mixes(layer):
            for value in layer.inputs:
                root[find(value)] = find(layer.output)
    groups = {r: _Group(r) for r in {find(value) for value in range(len(root))}}
    for value in range(len(root)):
        groups[find(value)].values.add(value)
    for layer in network.layers:
        before, after = groups[find(layer.inputs[0])], groups[find(layer.output)]
        if _mixes(layer):
            before.consumers.append(layer)
            after.producers.append(layer)
            if isinstance(layer, Convolution) and layer.groups > 1:
                before.free = after.free = False
        elif isinstance(layer, Convolution):
            before.free &= len(layer.weight) == layer.groups
        elif isinstance(layer, Flatten):
            readers = [network.layers[i] for i in network.consumers(layer.output)]
            before.free &= bool(readers) and all(isinstance(r, Linear) for r in readers)
    for value in (0, network.output):
        groups[find(value)].free = False
    return list(groups.values())


def _needed(network: Network, group: _Group) -> Kept:
    """Return which channels of a group are kept: those that count, and few more."""
    constants = _constants(network, group)
    channels = len(_first(constants))
    read = np.zeros(channels, np.bool_)
    for layer in group.consumers:
        used = _columns(layer, channels).any(axis=(0, 2))
        constant = constants[_source(network, layer, group)]
        moved = constant == 0
        if not isinstance(layer, Convolution) or layer.padding == (0, 0):
            moved = np.isfinite(constant)
        read |= used & ~moved
    return _rounded(read, max(map(block_of, group.producers), default=1))


def block_of(layer: Layer) -> int:
    """Return how many neighbouring output channels of a layer keep the same weights: 4, 2 or 1."""
    if not isinstance(layer, Convolution | Linear):
        return 1
    kept = layer.weight.reshape(len(layer.weight), -1) != 0
    if kept.all():
        return 1
    for size in BLOCKS:
        if len(kept) % size == 0:
            blocks = kept.reshape(-1, size, kept.shape[1])
            if (blocks == blocks[:, :1]).all():
                return size
    return 1


def _rounded(read: Kept, block: int) -> Kept:
    """Return what is kept of the channels that count: whole blocks, or a multiple of eight.

    Kernels compute eight channels in the time of five, and neighbours that keep the same weights
    faster than others; a channel more costs nothing, an odd number or a torn block does.
    """
    if block > 1:
        blocks: Kept = np.asarray(read.reshape(-1, block).any(axis=1))
        if not blocks.any():
            blocks[0] = True
        return np.repeat(blocks, block)
    count = int(read.sum())
    wanted = min(len(read), max(GRAIN, -(-count // GRAIN) * GRAIN))
    kept = read.copy()
    kept[np.flatnonzero(~read)[: wanted - count]] = True
    return kept


def _first(constants: Mapping[int, Doubles]) -> Doubles:
    return next(iter(constants.values()))


def _constants(network: Network, group: _Group) -> dict[int, Doubles]:
    """Return, for each image or vector of a group, its channels' constants; NaN for others."""
    found: dict[int, Doubles] = {}
    for layer in network.layers:
        if layer.output not in group.values or isinstance(layer, Flatten):
            continue
        if _mixes(layer):
            constant = _of_dead_rows(layer)
        else:
            constant = _through(layer, [found[value] for value in layer.inputs])
        found[layer.output] = _activated(constant, layer.activation)
    return found


def _of_dead_rows(layer: Layer) -> Doubles:
    assert isinstance(layer, Convolution | Linear)
    dead = ~layer.weight.reshape(len(layer.weight), -1).any(axis=1)
    return np.where(dead, layer.bias.astype(np.float64), np.nan)


def _through(layer: Layer, inputs: Sequence[Doubles]) -> Doubles:
    """Return the constants after a layer that works channel by channel."""
    match layer:
        case Convolution():
            weight = layer.weight.reshape(len(layer.weight), -1).astype(np.float64)
            mapped = inputs[0] * weight.sum(axis=1) + layer.bias
            if layer.padding != (0, 0):  # zeros at the border: only those stay the same
                mapped = np.where(inputs[0] == 0, layer.bias, np.nan)
            return np.where(weight.any(axis=1), mapped, layer.bias)
        case Affine():
            return np.where(layer.scale == 0, layer.shift, inputs[0] * layer.scale + layer.shift)
        case Add():
            return inputs[0] + inputs[1]
        case MaxPool() | AveragePool() | Activation():
            return inputs[0]
    raise AssertionError(f"{type(layer).__name__} mixes channels")


def _activated(x: Doubles, activation: str) -> Doubles:
    if activation in (RELU, RELU6):
        x = np.maximum(x, 0.0)
    return np.minimum(x, 6.0) if activation == RELU6 else x


def _source(network: Network, layer: Layer, group: _Group) -> int:
    """Return the image or vector with one number a channel that a layer reads."""
    value = layer.inputs[0]
    made = next((x for x in network.layers if x.output == value), None)
    return made.inputs[0] if isinstance(made, Flatten) else value


def _columns(layer: Layer, channels: int) -> Floats:
    """Return a layer's weight as (out, channels, positions)."""
    assert isinstance(layer, Convolution | Linear)
    return layer.weight.reshape(len(layer.weight), channels, -1)


# -- the smaller network ------------------------------------------------------------------------


def _without(network: Network, groups: Sequence[_Group], kept: Mapping[int, Kept]) -> Network:
    """Return a network with only the kept channels of each group."""
    of = {value: kept[g.number] for g in groups if g.free for value in g.values}
    constants = {
        value: row for g in groups if g.free for value, row in _constants(network, g).items()
    }
    layers = []
    for layer in network.layers:
        before, after = of.get(layer.inputs[0]), of.get(layer.output)
        if _mixes(layer):
            group = next(g for g in groups if layer.inputs[0] in g.values)
            source = _source(network, layer, group) if group.free else -1
            layer = _inputs(layer, before, constants.get(source))
        layers.append(_outputs(layer, after))
    values = []
    for number, value in enumerate(network.values):
        needed = of.get(number)
        if needed is not None:  # a flattened value has its channels' pixels each
            share = value.channels // len(needed)
            value = replace(value, channels=int(needed.sum()) * share)
        values.append(value)
    return Network(tuple(values), tuple(layers), network.input_shape)


def _inputs(layer: Layer, kept: Kept | None, constants: Doubles | None) -> Layer:
    """Return a layer that reads the kept channels alone, the constants of others in its bias."""
    if kept is None or constants is None or kept.all():
        return layer
    assert isinstance(layer, Convolution | Linear)
    columns = _columns(layer, len(kept))
    gone = np.flatnonzero(~kept & np.isfinite(constants))
    moved = np.einsum("ocp,c->o", columns[:, gone].astype(np.float64), constants[gone])
    shape = (len(columns), int(kept.sum()), *layer.weight.shape[2:])
    if isinstance(layer, Linear):
        shape = (len(columns), columns[:, kept].size // len(columns))
    weight = np.ascontiguousarray(columns[:, kept]).reshape(shape)
    return replace(layer, weight=weight, bias=(layer.bias + moved).astype(np.float32))


def _outputs(layer: Layer, kept: Kept | None) -> Layer:
    """Return a layer that makes the kept channels alone."""
    if kept is None or kept.all():
        return layer

    def cut(values: Floats) -> Floats:
        return np.ascontiguousarray(values[kept])

    return _cut(layer, cut, int(kept.sum()))


def _cut(layer: Layer, cut: Callable[[Floats], Floats], left: int) -> Layer:
    match layer:
        case Convolution():
            groups = left if layer.depthwise else layer.groups
            return replace(layer, weight=cut(layer.weight), bias=cut(layer.bias), groups=groups)
        case Linear():
            return replace(layer, weight=cut(layer.weight), bias=cut(layer.bias))
        case Affine():
            return replace(layer, scale=cut(layer.scale), shift=cut(layer.shift))
    return layer
