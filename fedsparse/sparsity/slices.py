"""Width slices: narrower models cut out of a wide one, as masks (HeteroFL, FedRolex, FjORD).

A slice keeps some of each hidden layer's channels. What reads or writes a dropped channel is
pruned, so the masked model's outputs are those of the model that is really narrower. Channels
are followed through the model's graph, so that what is added up, normed or flattened keeps the
same ones everywhere.
"""

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from fedsparse.errors import ModelError
from fedsparse.kernels.nodes import Add, Conv, Flatten, Graph, Node, Norm, Value
from fedsparse.sparsity.mask import Bits, Mask

Keep = Callable[[int], Bits]
"""Which of a number of channels are kept."""


class Slice(NamedTuple):
    """A narrower model: `mask` is of its weights, `held` of all entries that it has.

    A mask leaves out biases and BatchNorm, which are whole in a masked model; `held` covers
    them, too, and prunes what belongs to a dropped channel.
    """

    mask: Mask
    held: Mask


class Axis(NamedTuple):
    """One axis of a tensor: which channels run along it, and how many entries each takes."""

    channels: int
    spread: int


def channel_count(width: float, channels: int) -> int:
    """Return ceil(r C), at least one."""
    return max(1, math.ceil(width * channels - 1e-9))


def prefix(width: float) -> Keep:
    """Keep the first ceil(r C) channels (HeteroFL; FjORD, ordered dropout)."""
    return window(width, 0)


def window(width: float, start: int) -> Keep:
    """Keep ceil(r C) channels from channel `start` mod C on, wrapped (FedRolex)."""

    def keep(channels: int) -> Bits:
        place = (np.arange(channels) - start) % channels
        return np.asarray(place < channel_count(width, channels))

    return keep


@dataclass
class _Rows:
    """Sets of channels that must be kept or dropped together, as they are found."""

    parents: list[int] = field(default_factory=list)
    sizes: list[int] = field(default_factory=list)
    whole: set[int] = field(default_factory=set)

    def new(self, size: int) -> int:
        self.parents.append(len(self.parents))
        self.sizes.append(size)
        return len(self.parents) - 1

    def root(self, row: int) -> int:
        while self.parents[row] != row:
            row = self.parents[row]
        return row

    def join(self, one: int, other: int) -> None:
        self.parents[self.root(other)] = self.root(one)

    def is_whole(self, row: int) -> bool:
        return any(self.root(row) == self.root(kept) for kept in self.whole)


class Slices:
    """The slices of one model: which channels run along the axes of each of its tensors."""

    def __init__(self, graph: Graph) -> None:
        """Follow the channels of a model; raises ModelError for one that has no slices."""
        self._rows = _Rows()
        self._axes: dict[str, tuple[Axis, ...]] = {}
        self._shapes: dict[str, tuple[int, ...]] = {}
        self._weights: set[str] = set()
        values = [Axis(self._rows.new(graph.values[0].channels), 1)]
        self._rows.whole.add(values[0].channels)
        for node in graph.nodes:
            values.append(self._follow(node, [values[i] for i in node.inputs], graph.values))
        self._rows.whole.add(values[-1].channels)
        if all(map(self._rows.is_whole, range(len(self._rows.sizes)))):
            raise ModelError("the model has no hidden channels to leave out; choose a deeper one")
        self._order = [name for name in graph.parameters if name in self._weights]

    def _follow(self, node: Node, inputs: list[Axis], values: tuple[Value, ...]) -> Axis:
        """Note the axes of a node's tensors, and return what runs along its output."""
        first = inputs[0]
        if isinstance(node, Conv):
            return self._conv(node, first)
        if isinstance(node, Norm):
            for name in (node.weight, node.bias, node.running_mean, node.running_var):
                self._note(name, (first,), (values[node.output].channels,))
        if isinstance(node, Add):
            if len({axis.spread for axis in inputs}) > 1:
                raise ModelError("the model adds flattened images to vectors; it has no slices")
            self._rows.join(first.channels, inputs[1].channels)
        if isinstance(node, Flatten):
            before = values[node.inputs[0]]
            return Axis(first.channels, first.spread * before.height * before.width)
        return first

    def _conv(self, node: Conv, source: Axis) -> Axis:
        """A convolution makes new channels, a depthwise one goes on with those it is given."""
        depthwise = node.groups == node.in_channels == node.out_channels
        if node.groups > 1 and not depthwise:
            raise ModelError(
                f"'{node.weight}' has {node.groups} groups of channels; slices know only plain "
                "and depthwise convolutions"
            )
        one = node.groups > 1
        made = source if one else Axis(self._rows.new(node.out_channels), 1)
        axes = (made,) if one else (made, source)
        self._note(node.weight, axes, node.weight_shape)
        self._weights.add(node.weight)
        if node.bias is not None:
            self._note(node.bias, (made,), (node.out_channels,))
        return made

    def _note(self, name: str, axes: tuple[Axis, ...], shape: tuple[int, ...]) -> None:
        self._axes[name], self._shapes[name] = axes, shape

    def cut(self, keep: Keep, shapes: Mapping[str, tuple[int, ...]]) -> Slice:
        """Return the slice that keeps these of each hidden layer's channels.

        `shapes` are those of the model's whole state, in its order; the model's inputs and
        outputs are always all kept.
        """
        bits = {name: self._bits(name, keep) for name in shapes}
        mask = Mask.from_arrays({name: bits[name] for name in self._order})
        return Slice(mask, Mask.from_arrays(bits))

    def _bits(self, name: str, keep: Keep) -> Bits:
        shape = self._shapes[name]
        bits: NDArray[np.bool_] = np.ones(shape, bool)
        for place, axis in enumerate(self._axes[name]):
            along = [1] * len(shape)
            along[place] = shape[place]
            bits &= self._along(axis, keep).reshape(along)
        return bits

    def _along(self, axis: Axis, keep: Keep) -> Bits:
        size = self._rows.sizes[self._rows.root(axis.channels)]
        kept = np.ones(size, bool) if self._rows.is_whole(axis.channels) else keep(size)
        return np.repeat(kept, axis.spread)
