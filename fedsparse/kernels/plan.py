"""From a graph and a mask to what the kernels read: operations, tensors, offsets.

A plan is arrays alone, in the structs of `src/api.h`. It decides which layers are computed
sparsely, where each value of the parameters stands, and where each activation and gradient
lies in the arena. It does not depend on the size of the batch.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from math import prod
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fedsparse.kernels import library
from fedsparse.kernels.layout import Step, Tensor, lay_out, root
from fedsparse.kernels.nodes import (
    Add,
    AveragePool,
    Conv,
    Flatten,
    Graph,
    MaxPool,
    Node,
    Norm,
    Relu,
)
from fedsparse.kernels.rule import Rule
from fedsparse.sparsity import Mask


@dataclass(frozen=True)
class Entry:
    """Where a parameter's values stand: all of them, or the kept alone, or all with zeros.

    `kept` are flat positions, ascending; None where nothing is pruned.
    """

    name: str
    shape: tuple[int, ...]
    offset: int
    stored: int
    kept: NDArray[np.int32] | None

    @property
    def sparse(self) -> bool:
        """Whether only kept values are stored."""
        return self.kept is not None and self.stored != prod(self.shape)


@dataclass(frozen=True)
class Plan:
    """A model as the kernels read it; sizes are in floats, those of `pixels` a lane."""

    ops: NDArray[Any]
    tensors: NDArray[Any]
    positions: NDArray[np.int32]
    windows: NDArray[np.int32]
    entries: tuple[Entry, ...]
    buffers: tuple[tuple[str, int, int], ...]
    layers: Mapping[str, int]
    input: int
    output: int
    pixels: int
    saved: int
    parameters: int


def make(graph: Graph, mask: Mask | None, rule: Rule, *, input_gradient: bool = False) -> Plan:
    """Return the plan of a model under a mask; every masked name is a convolution's weight.

    The gradient of the model's input is needed to measure layers alone, not to train.
    """
    steps, tensors, final = _steps(graph, input_gradient)
    parameters = _Parameters(graph, mask, rule)
    pixels = lay_out(steps, tensors)
    return _Writer(graph, tensors, parameters).write(steps, final, pixels)


def _steps(graph: Graph, input_gradient: bool) -> tuple[list[Step], list[Tensor], int]:
    """Return operations, tensors and the output's tensor.

    A ReLU joins the BatchNorm before it, or the maximum behind it.
    """
    tensors = [Tensor(graph.values[0], needs_gradient=input_gradient)]
    tensor_of = {0: 0}
    steps: list[Step] = []
    waiting: dict[int, Relu] = {}
    joined: set[int] = set()
    for number, node in enumerate(graph.nodes):
        if number in joined:
            continue
        inputs = tuple(tensor_of[i] for i in node.inputs)
        output, relu, after = node.output, waiting.get(node.inputs[0]), _only_reader(graph, node)
        if isinstance(node, Relu) and isinstance(after, MaxPool) and _alone(graph, node):
            waiting[node.output], tensor_of[node.output] = node, inputs[0]
            continue
        if isinstance(node, Relu) and _in_place(graph, steps, node, inputs[0]):
            tensor_of[node.output] = inputs[0]
            steps.append(Step(node, inputs, inputs[0]))
            continue
        if isinstance(node, Norm) and isinstance(after, Relu):
            joined.add(graph.nodes.index(after))
            relu, output = after, after.output
        needs = isinstance(node, Conv | Norm) or any(tensors[i].needs_gradient for i in inputs)
        tensors.append(Tensor(graph.values[output], needs))
        tensor_of[output] = len(tensors) - 1
        steps.append(Step(node, inputs, tensor_of[output], relu))
    return steps, tensors, tensor_of[graph.nodes[-1].output]


def _only_reader(graph: Graph, node: Node) -> Node | None:
    """Return the one node that reads what a node makes; None where there are several."""
    readers = graph.consumers(node.output)
    return graph.nodes[readers[0]] if len(readers) == 1 else None


def _alone(graph: Graph, node: Node) -> bool:
    """Whether nobody else reads a node's input."""
    return len(graph.consumers(node.inputs[0])) == 1


def _in_place(graph: Graph, steps: list[Step], node: Relu, tensor: int) -> bool:
    """Whether a ReLU may overwrite its input: nobody else, forward or backward, reads that."""
    makers = [step for step in steps if step.output == tensor]
    kinds = Conv | Add | AveragePool
    return _alone(graph, node) and bool(makers) and isinstance(makers[-1].node, kinds)


class _Parameters:
    """Where parameters and buffers stand, and which layers are computed sparsely."""

    def __init__(self, graph: Graph, mask: Mask | None, rule: Rule) -> None:
        convs = {node.weight: node for node in graph.nodes if isinstance(node, Conv)}
        shapes = {name: node.weight_shape for name, node in convs.items()}
        for node in graph.nodes:
            if isinstance(node, Conv) and node.bias is not None:
                shapes[node.bias] = (node.out_channels,)
            if isinstance(node, Norm):
                channels = graph.values[node.output].channels
                names = (node.weight, node.bias, node.running_mean, node.running_var)
                shapes |= dict.fromkeys(names, (channels,))
        self.sparse: dict[str, bool] = {}
        self.positions: dict[str, NDArray[np.int32]] = {}
        entries, end = [], 0
        for name in graph.parameters:
            size = prod(shapes[name])
            kept = None
            if mask is not None and name in mask:
                kept = np.flatnonzero(mask[name]).astype(np.int32)
                kept = None if len(kept) == size else kept
            stored = size
            if name in convs:
                node = convs[name]
                density = 1.0 if kept is None else len(kept) / size
                self.sparse[name] = node.groups > 1 or rule.sparse(
                    len(node.weight_shape) == 2, density
                )
                if kept is not None and self.sparse[name]:
                    stored = len(kept)
                if kept is not None:
                    self.positions[name] = kept
                elif self.sparse[name]:
                    self.positions[name] = np.arange(size, dtype=np.int32)
            entries.append(Entry(name, shapes[name], end, stored, kept))
            end += stored
        self.entries, self.size = tuple(entries), end
        self.offset = {entry.name: entry.offset for entry in entries}
        buffers, start = [], 0
        for name in graph.buffers:
            buffers.append((name, start, shapes[name][0]))
            start += shapes[name][0]
        self.buffers = tuple(buffers)
        self.offset |= {name: place for name, place, _ in buffers}


class _Writer:
    """Writes steps and tensors into the structs of the kernels."""

    def __init__(self, graph: Graph, tensors: list[Tensor], parameters: _Parameters) -> None:
        self.graph = graph
        self.tensors = tensors
        self.parameters = parameters
        self.positions: list[NDArray[np.int32]] = []
        self.windows: list[int] = []
        self.saved = 0

    def write(self, steps: list[Step], final: int, pixels: int) -> Plan:
        """Return the plan of steps whose tensors have their places."""
        written = [(number, self._row(step)) for number, step in enumerate(steps)]
        rows = [row for _, row in written if row is not None]
        numbers = {n: i for i, (n, _) in enumerate((n, r) for n, r in written if r is not None)}
        ops = np.zeros(len(rows), library.OP)
        for number, row in enumerate(rows):
            for field, value in row.items():
                ops[number][field] = value
        _mark_first(ops, self.tensors)
        tensors = np.zeros(len(self.tensors), library.TENSOR)
        for number, tensor in enumerate(self.tensors):
            v = tensor.value
            gradient = tensor.gradient if tensor.needs_gradient else -1
            tensors[number] = (
                *(v.channels, v.height, v.width, tensor.halo, tensor.gradient_halo),
                *(tensor.plane(tensor.halo), tensor.plane(tensor.gradient_halo)),
                *(numbers.get(tensor.maker, -1), tensor.offset, gradient),
            )
        names = [step.node.weight for step in steps if isinstance(step.node, Conv)]
        convolutions = np.flatnonzero(ops["kind"] == library.CONV).tolist()
        return Plan(
            ops=ops,
            tensors=tensors,
            positions=np.concatenate([*self.positions, np.zeros(1, np.int32)]),
            windows=np.array(self.windows, np.int32),
            entries=self.parameters.entries,
            buffers=self.parameters.buffers,
            layers=dict(zip(names, convolutions, strict=True)),
            input=0,
            output=final,
            pixels=pixels,
            saved=self.saved,
            parameters=self.parameters.size,
        )

    def _row(self, step: Step) -> dict[str, Any] | None:
        """Return the fields of an operation; None for one that moves nothing."""
        node, parameters = step.node, self.parameters
        row: dict[str, Any] = {"input": step.inputs[0], "output": step.output, "other": -1}
        row |= {"weight": -1, "bias": -1, "positions": -1, "cap": np.inf}
        if step.relu is not None:
            row |= {"relu": 1, "cap": _cap(step.relu)}
        match node:
            case Conv():
                row |= {"kind": library.CONV, **_pairs(kernel=node.kernel, stride=node.stride)}
                row |= _pairs(pad=node.padding, dilation=node.dilation)
                row |= {"groups": node.groups, "sparse": parameters.sparse[node.weight]}
                row["weight"] = parameters.offset[node.weight]
                if node.bias is not None:
                    row["bias"] = parameters.offset[node.bias]
                row["kept"] = prod(node.weight_shape)
                if node.weight in parameters.positions:
                    kept = parameters.positions[node.weight]
                    row |= {"kept": len(kept), "positions": sum(map(len, self.positions))}
                    self.positions.append(kept)
            case Norm():
                row |= {"kind": library.NORM, "weight": parameters.offset[node.weight]}
                row |= {"bias": parameters.offset[node.bias], "epsilon": node.eps}
                row |= {"momentum": node.momentum, "mean": parameters.offset[node.running_mean]}
                row |= {"variance": parameters.offset[node.running_var], "saved": self.saved}
                self.saved += 2 * self.graph.values[node.output].channels
            case Relu():
                row |= {"kind": library.RELU, "cap": _cap(node)}
            case MaxPool():
                row |= {"kind": library.MAX_POOL, **_pairs(kernel=node.kernel, stride=node.stride)}
                row |= _pairs(pad=node.padding)
            case AveragePool():
                row |= {"kind": library.AVERAGE_POOL, "index": len(self.windows)}
                for window in (*node.rows, *node.columns):
                    self.windows += window
            case Add():
                row |= {"kind": library.ADD, "other": step.inputs[1]}
            case Flatten():
                if self.tensors[step.output].base is not None:
                    return None
                row["kind"] = library.COPY
        return row


def _cap(relu: Relu) -> float:
    return float("inf") if relu.cap is None else relu.cap


def _pairs(**named: tuple[int, int]) -> dict[str, int]:
    return {
        f"{name}_{axis}": pair[i] for name, pair in named.items() for i, axis in enumerate("hw")
    }


def _mark_first(ops: NDArray[Any], tensors: list[Tensor]) -> None:
    """Mark who writes each gradient first on the way back: it overwrites, the others add."""
    written: set[int] = set()
    for op in ops[::-1]:
        if op["input"] == op["output"]:
            continue
        for field in ("input", "other"):
            if op[field] < 0:
                continue
            lies = root(tensors, int(op[field]))
            op[f"{field}_first"] = lies not in written
            written.add(lies)
