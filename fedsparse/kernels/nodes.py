"""A module as the native trainer sees it: frozen values and operations, in forward order."""

from dataclasses import dataclass
from typing import ClassVar

Pair = tuple[int, int]


class Uncovered(Exception):
    """A model that the native trainer does not cover; the message says why, in one line."""


class Drawn(Uncovered):
    """Somebody drew random numbers while the model was looked at: it, or another thread."""


@dataclass(frozen=True)
class Value:
    """An activation of one sample; a vector has height and width 1."""

    channels: int
    height: int
    width: int


@dataclass(frozen=True)
class Node:
    """One operation; `inputs` and `output` are indices into Graph.values."""

    kind: ClassVar[str]
    inputs: tuple[int, ...]
    output: int


@dataclass(frozen=True)
class Conv(Node):
    """A convolution, or a linear layer as one of 1x1; pairs are (vertical, horizontal)."""

    kind = "conv"
    weight: str
    bias: str | None
    out_channels: int
    in_channels: int
    kernel: Pair
    stride: Pair
    padding: Pair
    dilation: Pair
    groups: int
    weight_shape: tuple[int, ...]  # as torch has it: two sizes of a linear layer, else four


@dataclass(frozen=True)
class Norm(Node):
    """BatchNorm, with the state-dict names of its weights and running statistics."""

    kind = "norm"
    weight: str
    bias: str
    running_mean: str
    running_var: str
    eps: float
    momentum: float


@dataclass(frozen=True)
class Relu(Node):
    """max(x, 0), and at most `cap` where there is one."""

    kind = "relu"
    cap: float | None


@dataclass(frozen=True)
class MaxPool(Node):
    """The maximum over windows; what padding adds never wins."""

    kind = "max_pool"
    kernel: Pair
    stride: Pair
    padding: Pair


@dataclass(frozen=True)
class AveragePool(Node):
    """The mean over input rows [start, end) for each output row, and columns likewise."""

    kind = "average_pool"
    rows: tuple[Pair, ...]
    columns: tuple[Pair, ...]


@dataclass(frozen=True)
class Add(Node):
    """The sum of two values of one shape, which may be the same value."""

    kind = "add"


@dataclass(frozen=True)
class Flatten(Node):
    """An image as a vector: channels, then rows, then columns."""

    kind = "flatten"


@dataclass(frozen=True)
class Graph:
    """A module: values[0] is its input, nodes[i] makes values[i + 1], the last its output.

    `parameters` and `buffers` (running statistics) are in state-dict order. Every node leads
    to the output, and every parameter of the module is in exactly one node.
    """

    values: tuple[Value, ...]
    nodes: tuple[Node, ...]
    parameters: tuple[str, ...]
    buffers: tuple[str, ...]
    outputs: int

    def consumers(self, value: int) -> tuple[int, ...]:
        """Return the indices of the nodes that take a value, in forward order."""
        return tuple(i for i, node in enumerate(self.nodes) if value in node.inputs)
