"""What a client must know of a model, without its module: a few hundred bytes of JSON.

A server that has torch describes the model; a node trains by the native kernels with what it is
told, and never imports torch. The kernels check nothing, so that all is checked here: a
description names the operations, and every shape, offset and cost is worked out from them.
"""

import math
import zlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from fedsparse.errors import ModelError
from fedsparse.kernels import nodes
from fedsparse.kernels.nodes import Graph, Node, Value
from fedsparse.parts import chosen, copies
from fedsparse.sparsity.cost import LayerCost, ModelCost
from fedsparse.wire import Schema

if TYPE_CHECKING:
    from torch import nn

MOST_BYTES, MOST_TEXT = 2**16, 2**20
"""Of a description as it travels, and unpacked."""
MOST_ENTRIES = 2**31 - 1
"""Of one activation, and of all parameters together: kernels count within it in 32 bits."""

Name = Annotated[str, Field(min_length=1, max_length=200, pattern=r"^[^\n]+$")]
Size = Annotated[int, Field(ge=1, le=2**20)]
Step = Annotated[int, Field(ge=1, le=4096)]
Steps = tuple[Step, Step]
Padding = tuple[Annotated[int, Field(ge=0, le=4096)], Annotated[int, Field(ge=0, le=4096)]]
Windows = Annotated[tuple[tuple[int, int], ...], Field(min_length=1, max_length=4096)]
Place = Annotated[int, Field(ge=0, le=4096)]


class _Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)


class _Of(_Strict):
    """An operation on one value."""

    of: Place


class _Conv(_Of):
    kind: Literal["conv"] = "conv"
    weight: Name
    bias: Name | None
    shape: tuple[Size, Size] | tuple[Size, Size, Step, Step]
    stride: Steps
    padding: Padding
    dilation: Steps
    groups: Size


class _Norm(_Of):
    kind: Literal["norm"] = "norm"
    weight: Name
    bias: Name
    running_mean: Name
    running_var: Name
    eps: Annotated[float, Field(gt=0, le=1, allow_inf_nan=False)]
    momentum: Annotated[float, Field(ge=0, le=1, allow_inf_nan=False)]


class _Relu(_Of):
    kind: Literal["relu"] = "relu"
    cap: Annotated[float, Field(gt=0, allow_inf_nan=False)] | None


class _MaxPool(_Of):
    kind: Literal["max_pool"] = "max_pool"
    kernel: Steps
    stride: Steps
    padding: Padding


class _AveragePool(_Of):
    kind: Literal["average_pool"] = "average_pool"
    rows: Windows
    columns: Windows


class _Add(_Of):
    kind: Literal["add"] = "add"
    other: Place


class _Flatten(_Of):
    kind: Literal["flatten"] = "flatten"


_Operation = Annotated[
    _Conv | _Norm | _Relu | _MaxPool | _AveragePool | _Add | _Flatten, Field(discriminator="kind")
]


class _Text(_Strict):
    """A description as it travels; `tensors` are the model's, in state-dict order."""

    version: Literal[1] = 1
    input: tuple[Size, Size, Size]
    operations: Annotated[tuple[_Operation, ...], Field(min_length=1, max_length=4096)]
    tensors: Annotated[tuple[Name, ...], Field(min_length=1, max_length=4096)]
    activations: Annotated[int, Field(ge=0, le=2**53)]


@dataclass(frozen=True)
class Description:
    """A model that the kernels cover: its tensors, its operations, what it costs."""

    schema: Schema
    graph: Graph
    cost: ModelCost

    @classmethod
    def of(cls, model: "nn.Module", input_shape: tuple[int, ...]) -> "Description":
        """Describe a module; raises Uncovered for one that the kernels do not cover."""
        from fedsparse import models
        from fedsparse.kernels.graph import derive

        schema = Schema.of(models.get_state(model))
        return cls(schema, derive(model, input_shape), ModelCost.of(model, input_shape))

    @cached_property
    def shapes(self) -> Mapping[str, tuple[int, ...]]:
        """Shapes of the prunable weights by name, in state-dict order."""
        weights = {node.weight for node in self.graph.nodes if isinstance(node, nodes.Conv)}
        return {name: shape for name, shape in self.schema.tensors if name in weights}

    @cached_property
    def parameters(self) -> Mapping[str, tuple[int, ...]]:
        """Shapes of all that is trained, by name."""
        return {name: self.schema.shape(name) for name in self.graph.parameters}

    def part(self, rule: str) -> Schema:
        """Return the schema of a part of the model; raises ConfigError as `models.part` does."""
        shapes = self.schema.shapes
        if (several := copies(shapes, rule)) is not None:
            return Schema(tuple(several.items()))
        norms = [node.weight for node in self.graph.nodes if isinstance(node, nodes.Norm)]
        prefixes = tuple(name.removesuffix("weight") for name in norms)
        names = chosen(tuple(shapes), list(self.shapes)[-1].removesuffix("weight"), prefixes, rule)
        return Schema(tuple((name, shapes[name]) for name in names))


def written(description: Description) -> bytes:
    """Return a description as it travels, compressed."""
    first = description.graph.values[0]
    text = _Text(
        input=(first.channels, first.height, first.width),
        operations=tuple(_operation(node) for node in description.graph.nodes),
        tensors=description.schema.names,
        activations=description.cost.activation_elements,
    )
    return zlib.compress(text.model_dump_json().encode(), 9)


def described(model: "nn.Module", input_shape: tuple[int, ...]) -> bytes | None:
    """Return the description of a module, or None where there is none that says all of it."""
    try:
        description = Description.of(model, input_shape)
        content = written(description)
        return content if read(content) == description else None
    except (nodes.Uncovered, ValidationError, ModelError):
        return None


def read(content: bytes) -> Description:
    """Return what `written` wrote; raises ModelError for anything that is no whole model."""
    try:
        unpacking = zlib.decompressobj()
        text = unpacking.decompress(content[:MOST_BYTES], MOST_TEXT)
        if not unpacking.eof or len(content) > MOST_BYTES:
            raise ModelError("the model's description is cut off or too long")
        told = _Text.model_validate_json(text)
    except zlib.error:
        raise ModelError("the model's description cannot be unpacked") from None
    except ValidationError as error:
        first = error.errors(include_input=False, include_url=False)[0]
        where = ".".join(map(str, first["loc"]))
        raise ModelError(f"the model's description: {where}: {first['msg']}") from None
    return _Reading(told).description()


def _operation(node: Node) -> Any:
    """Return an operation of the graph as it travels."""
    match node:
        case nodes.Conv():
            return _Conv(
                of=node.inputs[0],
                weight=node.weight,
                bias=node.bias,
                shape=node.weight_shape,  # type: ignore[arg-type]
                stride=node.stride,
                padding=node.padding,
                dilation=node.dilation,
                groups=node.groups,
            )
        case nodes.Norm():
            names = ("weight", "bias", "running_mean", "running_var", "eps", "momentum")
            return _Norm(of=node.inputs[0], **{name: getattr(node, name) for name in names})
        case nodes.Relu():
            return _Relu(of=node.inputs[0], cap=node.cap)
        case nodes.MaxPool():
            return _MaxPool(
                of=node.inputs[0], kernel=node.kernel, stride=node.stride, padding=node.padding
            )
        case nodes.AveragePool():
            return _AveragePool(of=node.inputs[0], rows=node.rows, columns=node.columns)
        case nodes.Add():
            return _Add(of=node.inputs[0], other=node.inputs[1])
        case _:
            return _Flatten(of=node.inputs[0])


class _Reading:
    """Works out a graph from a text, operation by operation, and refuses what does not fit."""

    def __init__(self, text: _Text) -> None:
        self.text = text
        self.values = [_bounded(Value(*text.input))]
        self.nodes: list[Node] = []
        self.tensors: dict[str, tuple[int, ...]] = {}
        self.statistics: set[str] = set()
        for operation in text.operations:
            self._take(operation)

    def description(self) -> Description:
        """Return the model; raises ModelError unless all of it is used and nothing lacks."""
        names, graph_nodes = self.text.tensors, tuple(self.nodes)
        if len(names) != len(self.tensors) or set(names) != set(self.tensors):
            raise _unfit("its tensors are not those of its operations")
        last = self.values[-1]
        if (last.height, last.width) != (1, 1):
            raise _unfit("its output is no vector")
        read = {place for node in graph_nodes for place in node.inputs}
        if read != set(range(len(graph_nodes))):
            raise _unfit("not every value is used")
        if sum(math.prod(shape) for shape in self.tensors.values()) > MOST_ENTRIES:
            raise _unfit("it has 2^31 parameters or more")
        trained = tuple(name for name in names if name not in self.statistics)
        kept = tuple(name for name in names if name in self.statistics)
        graph = Graph(tuple(self.values), graph_nodes, trained, kept, last.channels)
        schema = Schema(tuple((name, self.tensors[name]) for name in names))
        if not any(isinstance(node, nodes.Conv) for node in graph_nodes):
            raise _unfit("it has no layer with weights")
        return Description(schema, graph, _cost(graph, schema, self.text.activations))

    def _take(self, told: Any) -> None:
        if told.of >= len(self.values):
            raise _unfit(f"operation {len(self.nodes)} reads a value that is not made yet")
        given, inputs, output = self.values[told.of], (told.of,), len(self.values)
        match told:
            case _Conv():
                node, made = self._conv(told, given, inputs, output)
            case _Norm():
                node, made = self._norm(told, given, inputs, output), given
            case _Relu():
                node, made = nodes.Relu(inputs, output, told.cap), given
            case _MaxPool():
                if any(2 * p > k for p, k in zip(told.padding, told.kernel, strict=True)):
                    raise _unfit("a maximum's padding is over half of its window")
                made = _slid(given, given.channels, told.kernel, told.stride, told.padding)
                node = nodes.MaxPool(inputs, output, told.kernel, told.stride, told.padding)
            case _AveragePool():
                _check_windows(told.rows, given.height)
                _check_windows(told.columns, given.width)
                made = Value(given.channels, len(told.rows), len(told.columns))
                node = nodes.AveragePool(inputs, output, told.rows, told.columns)
            case _Add():
                if told.other >= output or self.values[told.other] != given:
                    raise _unfit("a sum is not of two values of one shape")
                node, made = nodes.Add((told.of, told.other), output), given
            case _:
                made = Value(given.channels * given.height * given.width, 1, 1)
                node = nodes.Flatten(inputs, output)
        self.nodes.append(node)
        self.values.append(_bounded(made))

    def _conv(
        self, told: _Conv, given: Value, inputs: tuple[int, ...], output: int
    ) -> tuple[Node, Value]:
        out, each, *rest = told.shape
        kernel = (rest[0], rest[1]) if rest else (1, 1)
        if each * told.groups != given.channels or out % told.groups:
            raise _unfit(
                f"'{told.weight}' does not fit the {given.channels} channels that it reads"
            )
        steps = (told.stride, told.padding, told.dilation, told.groups)
        if not rest and (given.height, given.width, *steps) != (1, 1, (1, 1), (0, 0), (1, 1), 1):
            raise _unfit(f"'{told.weight}' is of a linear layer over something else than a vector")
        self._name(told.weight, tuple(told.shape))
        if told.bias is not None:
            self._name(told.bias, (out,))
        made = _slid(given, out, kernel, told.stride, told.padding, told.dilation)
        node = nodes.Conv(
            inputs,
            output,
            weight=told.weight,
            bias=told.bias,
            out_channels=out,
            in_channels=given.channels,
            kernel=kernel,
            stride=told.stride,
            padding=told.padding,
            dilation=told.dilation,
            groups=told.groups,
            weight_shape=tuple(told.shape),
        )
        return node, made

    def _norm(self, told: _Norm, given: Value, inputs: tuple[int, ...], output: int) -> Node:
        names = (told.weight, told.bias, told.running_mean, told.running_var)
        for name in names:
            self._name(name, (given.channels,))
        self.statistics |= {told.running_mean, told.running_var}
        return nodes.Norm(inputs, output, *names, eps=told.eps, momentum=told.momentum)

    def _name(self, name: str, shape: tuple[int, ...]) -> None:
        if name in self.tensors:
            raise _unfit(f"'{name}' is used twice")
        self.tensors[name] = shape


def _slid(
    given: Value,
    channels: int,
    kernel: tuple[int, int],
    stride: tuple[int, int],
    padding: tuple[int, int],
    dilation: tuple[int, int] = (1, 1),
) -> Value:
    """Return what a window that slides over a value makes."""
    sizes = (given.height, given.width)
    made = [
        (size + 2 * pad - apart * (window - 1) - 1) // step + 1
        for size, window, step, pad, apart in zip(
            sizes, kernel, stride, padding, dilation, strict=True
        )
    ]
    return Value(channels, *made)


def _bounded(value: Value) -> Value:
    sizes = (value.channels, value.height, value.width)
    if min(sizes) < 1 or math.prod(sizes) > MOST_ENTRIES:
        raise _unfit(f"a value of shape {sizes} is empty or too large")
    return value


def _check_windows(windows: tuple[tuple[int, int], ...], size: int) -> None:
    ordered = list(windows) == sorted(windows)
    if not ordered or any(not 0 <= start < end <= size for start, end in windows):
        raise _unfit(f"a mean's windows do not lie within {size} pixels")


def _cost(graph: Graph, schema: Schema, activations: int) -> ModelCost:
    """Return what the model costs, as `ModelCost.of` measures it."""
    layers = tuple(sorted(_layer_costs(graph), key=lambda each: schema.names.index(each.name)))
    sizes = {name: math.prod(shape) for name, shape in schema.tensors}
    prunable = sum(layer.weights for layer in layers)
    others = sum(sizes[name] for name in graph.parameters) - prunable
    return ModelCost(layers, others, sum(sizes[name] for name in graph.buffers), activations)


def _layer_costs(graph: Graph) -> Iterator[LayerCost]:
    for node in graph.nodes:
        if isinstance(node, nodes.Conv):
            made = graph.values[node.output]
            outputs = made.channels * made.height * made.width
            flops = 2 * outputs * math.prod(node.weight_shape[1:])
            yield LayerCost(node.weight, math.prod(node.weight_shape), flops, outputs)


def _unfit(why: str) -> ModelError:
    return ModelError(f"the model's description: {why}")
