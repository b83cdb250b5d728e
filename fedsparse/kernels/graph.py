"""From a torch module to the graph that the native trainer runs.

`derive` describes a module, or raises Uncovered with the one reason why only torch can train
it. What it cannot be sure of, such as hooks, tied weights or branches on the data, stays with
torch.
"""

import copy
import operator
from collections.abc import Callable
from contextlib import suppress
from functools import partial
from typing import Any

import torch
from torch import fx, nn
from torch.nn import functional

from fedsparse.kernels import tracing
from fedsparse.kernels.nodes import (
    Add,
    AveragePool,
    Conv,
    Drawn,
    Flatten,
    Graph,
    MaxPool,
    Node,
    Norm,
    Pair,
    Relu,
    Uncovered,
    Value,
)
from fedsparse.kernels.tracing import a, where

__all__ = [
    "Add",
    "AveragePool",
    "Conv",
    "Flatten",
    "Graph",
    "MaxPool",
    "Node",
    "Norm",
    "Relu",
    "Uncovered",
    "Value",
    "derive",
]

Windows = tuple[Pair, ...]
WEIGHTS = ("weight", "bias", "running_mean", "running_var")
COUNTER = "num_batches_tracked"
"""The counter that BatchNorm steps in training and reads only without a momentum."""
RANKS = {nn.Conv2d: 4, nn.Linear: 2, nn.MaxPool2d: 4, nn.AvgPool2d: 4, nn.AdaptiveAvgPool2d: 4}
"""Dimensions of the tensors that a layer takes, samples counted; others take any."""
POOL = ("kernel_size", "stride", "padding")
CALLS: dict[Any, tuple[tuple[str, ...], Callable[..., nn.Module]]] = {
    **dict.fromkeys((functional.relu, torch.relu, "relu"), (("inplace",), nn.ReLU)),
    **dict.fromkeys((torch.relu_, "relu_"), ((), partial(nn.ReLU, inplace=True))),
    **dict.fromkeys(
        (torch.flatten, "flatten"), (("start_dim", "end_dim"), partial(nn.Flatten, start_dim=0))
    ),
    functional.relu6: (("inplace",), nn.ReLU6),
    functional.max_pool2d: ((*POOL, "dilation", "ceil_mode", "return_indices"), nn.MaxPool2d),
    functional.avg_pool2d: ((*POOL, "ceil_mode", "count_include_pad"), nn.AvgPool2d),
    functional.adaptive_avg_pool2d: (("output_size",), nn.AdaptiveAvgPool2d),
    functional.dropout: (("p", "training", "inplace"), lambda p=0.5, **_: nn.Dropout(p)),
}
"""Functions and methods: their arguments after the input, and the layer that does the same."""
IMAGE_AXES = ({2, 3}, {-2, -1}, {2, -1}, {-2, 3})
LOOKS = 8
"""How often a model is looked at again where somebody drew random numbers meanwhile.

A model that draws does so each time. Where Flower's threads live in the process, they draw now and
then for a pause of random length.
"""
ADDITIONS = (operator.add, operator.iadd, torch.add, "add", "add_")


def derive(model: nn.Module, input_shape: tuple[int, ...]) -> Graph:
    """Describe a module whose inputs are float32 of shape (n, *input_shape).

    The module and the global random generators stay as they were. Raises Uncovered.
    """
    if not 1 <= len(input_shape) <= 3:
        raise Uncovered(f"a sample of shape {input_shape} is no vector and no image")
    tracing.refuse(model)
    for _ in range(LOOKS - 1):
        with suppress(Drawn):
            return _looked_at(model, input_shape)
    return _looked_at(model, input_shape)


def _looked_at(model: nn.Module, input_shape: tuple[int, ...]) -> Graph:
    with tracing.undrawn():
        try:
            twin = copy.deepcopy(model).cpu()
        except Exception as error:
            raise Uncovered(f"the model cannot be copied: {tracing.first_line(error)}") from None
        trained, evaluated = (_derive(twin, input_shape, training) for training in (True, False))
    if trained != evaluated:
        raise Uncovered("the model has other layers in training than in evaluation")
    return trained


def _derive(model: nn.Module, input_shape: tuple[int, ...], training: bool) -> Graph:
    traced, shapes = tracing.trace(model, input_shape, training)
    builder = _Builder(model, shapes)
    for node in traced.nodes:
        if node in shapes and node.op != "output":
            builder.take(node)
    return builder.finish(traced.output_node().args[0])


class _Builder:
    """Turns traced nodes into ours, one by one."""

    def __init__(self, model: nn.Module, shapes: dict[Any, tuple[int, ...]]) -> None:
        self.model = model
        self.shapes = shapes
        self.values: list[Value] = []
        self.nodes: list[Node] = []
        self.index: dict[Any, int] = {}  # the value that a traced node makes
        self.memory: list[int] = []  # of each value, the first value in the same memory
        self.stale: set[Any] = set()  # overwritten by an operation in place
        self.names: set[str] = set()  # parameters and buffers met

    def take(self, node: fx.Node) -> None:
        """Add one traced node that makes a tensor; raises Uncovered."""
        if node.op == "placeholder":
            if self.values:
                raise Uncovered(f"the model has a second input '{node.target}'")
            self._make(node, 0)
        elif node.op == "get_attr":
            raise Uncovered(f"'{node.target}' is used outside of a layer")
        elif node.op == "call_module":
            layer = self.model.get_submodule(str(node.target))
            self._layer(node, _bind(node)["input"], layer)
        elif node.target in ADDITIONS:
            bound = _bind(node, "other", "alpha")
            both = (bound["input"], bound.get("other"))
            if any(self.shapes.get(x) != self.shapes[node] for x in both):
                raise Uncovered(f"{where(node)} is not of two tensors of one shape")
            if bound.get("alpha", 1) != 1:
                raise Uncovered(f"{where(node)} has a factor")
            self._add(node, Add, *both, in_place=node.target in (operator.iadd, "add_"))
        elif node.target in (torch.mean, "mean"):
            bound = _bind(node, "dim", "keepdim")
            shape, dims = self._shape(bound["input"]), _tuple(bound.get("dim", ()))
            if len(shape) != 4 or set(dims) not in IMAGE_AXES:
                raise Uncovered(f"{where(node)} is not over the rows and columns of images")
            self._average(node, bound["input"], ((0, shape[2]),), ((0, shape[3]),))
        elif node.target in (torch.reshape, "reshape", "view"):
            if len(node.args) < 2 or not _counts_samples(_tuple(node.args[1])[0]):
                raise Uncovered(f"{where(node)} does not have the samples as its first size")
            self._reshape(node, node.args[0])
        elif node.target == "contiguous":
            self._alias(node, node.args[0])
        elif node.target in CALLS:
            names, make = CALLS[node.target]
            bound = _bind(node, *names)
            source = bound.pop("input")
            if any(isinstance(value, fx.Node) for value in bound.values()):
                raise Uncovered(f"{where(node)} has computed arguments")
            self._layer(node, source, make(**bound))
        else:
            raise Uncovered(f"{where(node)} is not covered")

    def finish(self, output: Any) -> Graph:
        """Return the graph whose output is what this traced node makes; raises Uncovered."""
        shape = self.shapes.get(output, ()) if isinstance(output, fx.Node) else ()
        if len(shape) != 2:
            raise Uncovered("the model's output is not one tensor of shape (n, outputs)")
        wanted = {self._read(output)}
        for node in reversed(self.nodes):
            if node.output not in wanted:
                what = f"'{node.weight}'" if isinstance(node, Conv | Norm) else f"a {node.kind}"
                raise Uncovered(f"the output does not depend on {what}")
            wanted.update(node.inputs)
        trainable = dict(self.model.named_parameters())
        for name in [*trainable, *dict(self.model.named_buffers())]:
            if name not in self.names:
                raise Uncovered(f"'{name}' is of no layer that is used")
        if not trainable:
            raise Uncovered("the model has no parameters")
        state = self.model.state_dict()
        parameters = tuple(name for name in state if name in trainable)
        buffers = tuple(n for n in state if n.endswith((".running_mean", ".running_var")))
        return Graph(tuple(self.values), tuple(self.nodes), parameters, buffers, shape[1])

    def _layer(self, node: fx.Node, source: Any, layer: nn.Module) -> None:
        """Add a layer of the model, or one that stands for a function."""
        name, shape = str(node.target), self._shape(source)
        own = [n for n in (*WEIGHTS, COUNTER) if getattr(layer, n, None) is not None]
        if any(f"{name}.{n}" in self.names for n in own):
            raise Uncovered(f"{where(node)} is called more than once")
        self.names.update(f"{name}.{n}" for n in own)
        if RANKS.get(type(layer), len(shape)) != len(shape):
            raise Uncovered(f"{where(node)} is {a(layer)} over a tensor of {len(shape)} dimensions")
        fields: dict[str, Any] = {n: f"{name}.{n}" for n in own if n != COUNTER}
        if type(layer) is nn.Conv2d or type(layer) is nn.Linear:
            fields = {"bias": None, **fields, "weight_shape": tuple(layer.weight.shape)}
            self._add(node, Conv, source, **fields, **_geometry(node, layer))
        elif type(layer) is nn.BatchNorm1d or type(layer) is nn.BatchNorm2d:
            if len(fields) < len(WEIGHTS) or layer.momentum is None:
                raise Uncovered(f"{where(node)} has no weights, running statistics or momentum")
            self._add(node, Norm, source, eps=layer.eps, momentum=layer.momentum, **fields)
        else:
            self._plain(node, source, layer, shape[2:])

    def _plain(self, node: fx.Node, source: Any, layer: nn.Module, size: tuple[int, ...]) -> None:
        """Add a layer without weights, whose input has this size: () or (height, width)."""
        if type(layer) is nn.ReLU or type(layer) is nn.ReLU6:
            cap = 6.0 if type(layer) is nn.ReLU6 else None
            self._add(node, Relu, source, cap=cap, in_place=layer.inplace)
        elif type(layer) is nn.MaxPool2d:
            if layer.ceil_mode or layer.return_indices or _pair(layer.dilation) != (1, 1):
                raise Uncovered(f"{where(node)} has ceil_mode, return_indices or dilation")
            pairs = {"kernel": _pair(layer.kernel_size), "stride": _pair(layer.stride)}
            self._add(node, MaxPool, source, padding=_pair(layer.padding), **pairs)
        elif type(layer) is nn.AvgPool2d:
            if layer.ceil_mode or layer.divisor_override or _pair(layer.padding) != (0, 0):
                raise Uncovered(f"{where(node)} has ceil_mode, divisor_override or padding")
            steps = zip(size, _pair(layer.kernel_size), _pair(layer.stride), strict=True)
            self._average(node, source, *(_strided(*step) for step in steps))
        elif type(layer) is nn.AdaptiveAvgPool2d:
            parts = zip(size, _pair(layer.output_size), strict=True)
            windows = (_adaptive(n, n if wanted is None else wanted) for n, wanted in parts)
            self._average(node, source, *windows)
        elif type(layer) is nn.Flatten:
            self._reshape(node, source)
        elif type(layer) is nn.Dropout or type(layer) is nn.Dropout2d:
            if layer.p > 0:
                raise Uncovered(f"{where(node)} draws random numbers")
            self._alias(node, source)
        elif type(layer) is nn.Identity:
            self._alias(node, source)
        else:
            raise Uncovered(f"{where(node)} is {a(layer)}")

    def _average(self, node: fx.Node, source: Any, rows: Windows, columns: Windows) -> None:
        _, height, width = self._shape(source)[1:]
        if (rows, columns) == (_adaptive(height, height), _adaptive(width, width)):
            self._alias(node, source)  # each window is one pixel, each pixel a window
        else:
            self._add(node, AveragePool, source, rows=rows, columns=columns)

    def _reshape(self, node: fx.Node, source: Any) -> None:
        before, after = self.values[self._read(source)], _sample(node, self.shapes[node])
        if after == before:
            self._alias(node, source)
        elif after == Value(before.channels * before.height * before.width, 1, 1):
            self._add(node, Flatten, source)
        else:
            raise Uncovered(f"{where(node)} makes no vector of each sample")

    def _add(
        self,
        node: fx.Node,
        kind: Callable[..., Node],
        *sources: Any,
        in_place: bool = False,
        **of: Any,
    ) -> None:
        inputs = tuple(self._read(source) for source in sources)
        shared = self.memory[inputs[0]]
        if in_place:
            self.stale |= {n for n, value in self.index.items() if self.memory[value] == shared}
        output = len(self.values)
        self.nodes.append(kind(inputs, output, **of))
        self._make(node, shared if in_place or kind is Flatten else output)

    def _make(self, node: fx.Node, memory: int) -> None:
        self.index[node] = len(self.values)
        self.memory.append(memory)
        self.values.append(_sample(node, self.shapes[node]))

    def _alias(self, node: fx.Node, source: Any) -> None:
        self.index[node] = self._read(source)

    def _read(self, node: Any) -> int:
        if not isinstance(node, fx.Node) or node not in self.index:
            raise Uncovered("an operation takes something other than an activation")
        if node in self.stale:
            raise Uncovered(f"{where(node)}: its value is used after it was changed in place")
        return self.index[node]

    def _shape(self, node: Any) -> tuple[int, ...]:
        self._read(node)
        return self.shapes[node]


def _bind(node: fx.Node, *names: str) -> dict[str, Any]:
    """Return a call's arguments by name, the first as "input"."""
    names = ("input", *names)
    bound = {**dict(zip(names, node.args, strict=False)), **node.kwargs}
    if len(node.args) > len(names) or "input" not in bound or not set(bound) <= set(names):
        raise Uncovered(f"{where(node)} has arguments that are not covered")
    return bound


def _sample(node: fx.Node, shape: tuple[int, ...]) -> Value:
    if not 2 <= len(shape) <= 4 or shape[0] != tracing.SAMPLES:
        raise Uncovered(f"{where(node)} makes no tensor of one row, vector or image a sample")
    channels, height, width = (*shape[1:], 1, 1)[:3]
    return Value(channels, height, width)


def _counts_samples(size: Any) -> bool:
    """Return whether a size in a reshape is -1 or the first size of a tensor."""
    if not isinstance(size, fx.Node):
        return bool(size == -1)
    if size.target == "size":
        return list(size.args[1:]) == [0]
    of, *which = size.args if size.target is operator.getitem else (None,)
    return which == [0] and getattr(of, "target", None) in (getattr, "size")


def _strided(size: int, kernel: int, stride: int) -> Windows:
    return tuple((start, start + kernel) for start in range(0, size - kernel + 1, stride))


def _adaptive(size: int, parts: int) -> Windows:
    """Return torch's windows: from floor(i size / parts) to ceil((i + 1) size / parts)."""
    return tuple((i * size // parts, -(-(i + 1) * size // parts)) for i in range(parts))


def _geometry(node: fx.Node, layer: nn.Conv2d | nn.Linear) -> dict[str, Any]:
    if isinstance(layer, nn.Linear):
        sizes = {"out_channels": layer.out_features, "in_channels": layer.in_features, "groups": 1}
        return sizes | {"kernel": (1, 1), "stride": (1, 1), "padding": (0, 0), "dilation": (1, 1)}
    sizes = {n: getattr(layer, n) for n in ("out_channels", "in_channels", "groups")}
    pairs = {n: _pair(getattr(layer, n)) for n in ("stride", "dilation")}
    return sizes | pairs | {"kernel": _pair(layer.kernel_size), "padding": _padding(node, layer)}


def _padding(node: fx.Node, layer: nn.Conv2d) -> Pair:
    if layer.padding_mode != "zeros":
        raise Uncovered(f"{where(node)} has padding mode '{layer.padding_mode}'")
    if layer.padding == "same":
        spans = zip(_pair(layer.kernel_size), _pair(layer.dilation), strict=True)
        vertical, horizontal = ((kernel - 1) * dilation for kernel, dilation in spans)
        if vertical % 2 or horizontal % 2:
            raise Uncovered(f"{where(node)} has padding 'same', and not the same on both sides")
        return vertical // 2, horizontal // 2
    return (0, 0) if layer.padding == "valid" else _pair(layer.padding)


def _pair(size: Any) -> Any:
    """Return a size of both directions as torch reads it: (vertical, horizontal)."""
    sizes = _tuple(size)
    return sizes * 2 if len(sizes) == 1 else sizes


def _tuple(sizes: Any) -> tuple[Any, ...]:
    return tuple(sizes) if isinstance(sizes, tuple | list) else (sizes,)
