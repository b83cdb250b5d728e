"""The graph of a module: it computes what the module does, or says why there is none.

`run` below interprets a graph with torch, operation by operation, and so tells what each of
them means.
"""

import copy
import random

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from fedsparse import models, registry
from fedsparse.kernels import graph as graph_module
from fedsparse.kernels.graph import (
    Add,
    AveragePool,
    Conv,
    Flatten,
    Graph,
    MaxPool,
    Norm,
    Relu,
    Uncovered,
    Value,
    derive,
)

torch.set_num_threads(1)

ZOO = {
    "linear": (20,),
    "mlp": (1, 8, 8),
    "cnn": (1, 12, 11),
    "leaf-cnn": (1, 12, 12),
    "paper-cnn": (1, 12, 12),
    "resnet18": (3, 8, 8),
    "mobilenet-v1": (3, 16, 16),
    "mobilenet-edge": (1, 16, 16),
}
IMAGE = (3, 8, 6)


class Call(nn.Module):
    """A module whose forward pass is the given function of itself and the input."""

    def __init__(self, forward, **layers):
        super().__init__()
        self.called = forward
        for name, layer in layers.items():
            setattr(self, name, layer)

    def forward(self, x):
        return self.called(self, x)


def head(*layers: nn.Module, features: int) -> nn.Sequential:
    return nn.Sequential(*layers, nn.Flatten(), nn.Linear(features, 2))


def called(forward, **layers) -> Call:
    """A module that calls a function on 4x6x4 activations, then flattens them into a layer."""
    layers = {"conv": nn.Conv2d(3, 4, 3), "fc": nn.LazyLinear(2), **layers}
    model = Call(lambda self, x: self.fc(forward(self, self.conv(x)).flatten(1)), **layers)
    model(torch.zeros(2, *IMAGE))  # the lazy layer becomes a linear one
    return model


def run(graph: Graph, state: dict[str, Tensor], x: Tensor, training: bool) -> Tensor:
    """Interpret a graph over a batch; changes the running statistics in `state`."""
    first = graph.values[0]
    values = [x.reshape(len(x), first.channels, first.height, first.width)]
    for number, node in enumerate(graph.nodes):
        a = values[node.inputs[0]]
        match node:
            case Conv():
                weight = state[node.weight]
                assert node.weight_shape == tuple(weight.shape)
                shape = (node.out_channels, node.in_channels // node.groups, *node.kernel)
                bias = None if node.bias is None else state[node.bias]
                geometry = (node.stride, node.padding, node.dilation, node.groups)
                y = functional.conv2d(a, weight.reshape(shape), bias, *geometry)
            case Norm():
                names = (node.running_mean, node.running_var, node.weight, node.bias)
                values_of = [state[name] for name in names]
                y = functional.batch_norm(a, *values_of, training, node.momentum, node.eps)
            case Relu():
                y = a.clamp(0, node.cap)
            case MaxPool():
                y = functional.max_pool2d(a, node.kernel, node.stride, node.padding)
            case AveragePool():
                rows = [a[:, :, start:end].mean(2) for start, end in node.rows]
                a = torch.stack(rows, 2)
                y = torch.stack([a[..., start:end].mean(3) for start, end in node.columns], 3)
            case Add():
                y = a + values[node.inputs[1]]
            case Flatten():
                y = a.reshape(len(a), -1, 1, 1)
        value = graph.values[node.output]
        assert node.output == number + 1 == len(values)
        assert y.shape[1:] == (value.channels, value.height, value.width)
        values.append(y)
    return values[-1].reshape(len(x), graph.outputs)


def assert_same(model: nn.Module, shape: tuple[int, ...]) -> Graph:
    """Assert that a module's graph gives its outputs and statistics in both modes."""
    for norm in model.modules():
        if isinstance(norm, nn.BatchNorm1d | nn.BatchNorm2d):
            nn.init.normal_(norm.weight)
            nn.init.normal_(norm.bias)
    graph = derive(model, shape)
    state = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    x = torch.randn(5, *shape)
    for training in (True, False):
        expected = model.train(training)(x.clone())
        torch.testing.assert_close(run(graph, state, x, training), expected)
    for name in graph.buffers:
        torch.testing.assert_close(state[name], model.state_dict()[name])
    assert graph.parameters == tuple(dict(model.named_parameters()))
    return graph


def zoo(name: str) -> nn.Module:
    return models.build(name, input_shape=ZOO[name], classes=4, width=0.25)


@pytest.fixture(autouse=True)
def _seed():
    torch.manual_seed(0)


def test_every_model_of_the_zoo_is_here():
    assert {*ZOO, "transformer"} == set(registry.BUILTIN["models"])


@pytest.mark.parametrize("name", ZOO)
def test_a_graph_computes_what_the_model_of_the_zoo_does(name):
    assert_same(zoo(name), ZOO[name])


LAYERS = {
    "pairs": head(nn.Conv2d(3, 4, (3, 2), (2, 1), (0, 1), (2, 1)), features=56),
    "groups": head(nn.Conv2d(3, 6, 3, groups=3), features=144),
    "same": head(nn.Conv2d(3, 4, (3, 5), padding="same", dilation=(2, 1)), features=192),
    "valid": head(nn.Conv2d(3, 4, 3, padding="valid", bias=False), features=96),
    "norm": head(nn.BatchNorm2d(3, eps=0.1, momentum=0.3), features=144),
    "norm of vectors": nn.Sequential(nn.Flatten(), nn.BatchNorm1d(144), nn.Linear(144, 2)),
    "capped": head(nn.Conv2d(3, 4, 1), nn.ReLU6(), features=192),
    "overlapping maximum": head(nn.MaxPool2d(3, 2, 1), features=36),
    "average with a rest": head(nn.AvgPool2d(3, (2, 1)), features=36),
    "every second pixel": head(nn.AvgPool2d(1, 2), features=36),
    "adaptive with overlaps": head(nn.AdaptiveAvgPool2d((5, 4)), features=60),
    "adaptive to more": head(nn.AdaptiveAvgPool2d((None, 9)), features=216),
    "in place": head(nn.Conv2d(3, 4, 1), nn.ReLU(inplace=True), nn.ReLU(True), features=192),
    "nested": head(nn.Sequential(nn.Identity(), nn.Dropout(0.0)), features=144),
}
FUNCTIONS = {
    "sum": lambda m, x: x + torch.add(x, torch.relu(x)),
    "sum with itself": lambda m, x: x + x,
    "sum in place": lambda m, x: functional.relu(x).add_(x),
    "relu": lambda m, x: functional.relu6(x).relu_() + torch.relu_(x + x),
    "mean": lambda m, x: x.mean((2, 3)),
    "mean, kept dimensions": lambda m, x: torch.mean(x, [-1, -2], keepdim=True),
    "view": lambda m, x: x.contiguous().view(x.size(0), -1),
    "reshape": lambda m, x: torch.reshape(x, (x.shape[0], x.shape[1] * 24)),
    "view of rows": lambda m, x: x.view(-1, 96),
    "maximum": lambda m, x: functional.max_pool2d(x, 3, stride=1, padding=1),
    "average": lambda m, x: functional.avg_pool2d(x, 2),
    "adaptive": lambda m, x: functional.adaptive_avg_pool2d(x, (4, 3)),
    "dropout of nothing": lambda m, x: functional.dropout(x, 0.0, m.training),
    "flatten": lambda m, x: torch.flatten(x, 1),
    "a layer called twice": lambda m, x: m.relu(m.relu(x) + x),
}


@pytest.mark.parametrize("name", LAYERS)
def test_a_graph_computes_what_layers_do(name):
    assert_same(copy.deepcopy(LAYERS[name]), IMAGE)


@pytest.mark.parametrize("name", FUNCTIONS)
def test_a_graph_computes_what_functions_and_methods_do(name):
    assert_same(called(FUNCTIONS[name], relu=nn.ReLU()), IMAGE)


def test_rows_of_vectors_are_inputs_too():
    assert_same(nn.Sequential(nn.Flatten(), nn.Linear(12, 3)), (4, 3))


def test_a_graph_says_all_that_a_trainer_needs():
    model = nn.Sequential(nn.Conv2d(1, 2, 3), nn.BatchNorm2d(2), nn.Flatten(), nn.Linear(8, 3))
    graph = derive(model, (1, 4, 4))
    weights = ("0.weight", "0.bias", "1.weight", "1.bias", "3.weight", "3.bias")
    statistics = ("1.running_mean", "1.running_var")
    one, none = (1, 1), (0, 0)
    nodes = (
        Conv((0,), 1, *weights[:2], 2, 1, (3, 3), one, none, one, 1, (2, 1, 3, 3)),
        Norm((1,), 2, *weights[2:4], *statistics, 1e-5, 0.1),
        Flatten((2,), 3),
        Conv((3,), 4, *weights[4:], 3, 8, one, one, none, one, 1, (3, 8)),
    )
    values = (Value(1, 4, 4), Value(2, 2, 2), Value(2, 2, 2), Value(8, 1, 1), Value(3, 1, 1))
    assert graph == Graph(values, nodes, weights, statistics, 3)


def test_adaptive_windows_are_torchs():
    node = derive(head(nn.AdaptiveAvgPool2d((3, 1)), features=3), (1, 7, 4)).nodes[0]
    assert node == AveragePool((0,), 1, rows=((0, 3), (2, 5), (4, 7)), columns=((0, 4),))


def test_what_does_nothing_is_left_out():
    nothing = (nn.Identity(), nn.Dropout(0.0), nn.AdaptiveAvgPool2d((8, 6)), nn.Flatten())
    kinds = [node.kind for node in derive(head(*nothing, features=144), IMAGE).nodes]
    assert kinds == ["flatten", "conv"]


def test_consumers_are_the_nodes_that_take_a_value():
    graph = derive(called(lambda m, x: x.relu() + x), IMAGE)
    assert [node.kind for node in graph.nodes] == ["conv", "relu", "add", "flatten", "conv"]
    assert [graph.consumers(value) for value in range(6)] == [(0,), (1, 2), (2,), (3,), (4,), ()]


def test_equal_models_have_equal_graphs_that_can_be_keys():
    assert len({derive(zoo("resnet18"), ZOO["resnet18"]) for _ in range(2)}) == 1


def test_deriving_leaves_the_model_and_the_random_state_alone():
    def forward(self, x):
        self.calls += 1
        return self.norm(self.fc(x)) + 0 * torch.rand(1)

    model = Call(forward, fc=nn.Linear(4, 2), norm=nn.BatchNorm1d(2), idle=nn.ReLU())
    model.calls = 0
    model.norm.eval()
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    of_torch, of_python = torch.get_rng_state(), random.getstate()
    with pytest.raises(Uncovered):
        derive(model, (4,))
    assert torch.equal(torch.get_rng_state(), of_torch)
    assert random.getstate() == of_python
    assert model.calls == 0
    assert model.training
    assert not model.norm.training
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())


def frozen() -> nn.Module:
    model = head(features=144)
    model[1].bias.requires_grad_(False)
    return model


def tied() -> nn.Module:
    model = nn.Sequential(nn.Flatten(), nn.Linear(144, 144), nn.Linear(144, 144))
    model[1].weight = model[2].weight
    return model


def hooked() -> nn.Module:
    model = head(features=144)
    model[1].register_forward_hook(lambda layer, x, y: 2 * y)
    return model


def hooked_parameter() -> nn.Module:
    model = head(features=144)
    model[1].weight.register_hook(lambda gradient: 2 * gradient)
    return model


def buffered() -> nn.Module:
    model = called(lambda m, x: x)
    model.conv.register_buffer("mean", torch.zeros(3))
    return model


class Still(nn.BatchNorm2d):
    def train(self, mode: bool = True) -> "Still":
        return super().train(False)


class Steadfast(Call):
    def train(self, mode: bool = True) -> "Steadfast":
        super().train(mode)
        self.norm.eval()
        return self


def steadfast() -> nn.Module:
    forward = lambda m, x: m.fc(m.norm(x).flatten(1))
    return Steadfast(forward, norm=nn.BatchNorm2d(3), fc=nn.Linear(144, 2))


@torch.autocast("cpu")
def in_half(m, x):
    return x.relu()


@torch.no_grad()
def silently(m, x):
    return x.relu()


def branch(m, x):
    return x if x.sum() > 0 else -x


def changed(m, x):
    y = x
    x += x
    return x.relu() + y


def changed_view(m, x):
    y = x.view(x.size(0), -1)
    x.relu_()
    return y


def part() -> dict[str, nn.Module]:
    return {"part": nn.Conv2d(4, 4, 1)}


REFUSED = {
    "layer '0' is a LayerNorm": head(nn.LayerNorm(6), features=144),
    "layer '1' is a Softmax": head(nn.Conv2d(3, 3, 1), nn.Softmax(1), features=144),
    "layer '0' is a ConvTranspose2d": head(nn.ConvTranspose2d(3, 3, 1), features=144),
    "layer '0' is a Still": head(Still(3), features=144),
    "layer 'norm' does not follow train": steadfast(),
    "the model is a Linear": nn.Linear(3, 2),
    "layer '0' is a Linear over a tensor of 4 dimensions": nn.Sequential(nn.Linear(6, 2)),
    "layer '0' has padding mode 'circular'": head(
        nn.Conv2d(3, 3, 3, padding=1, padding_mode="circular"), features=144
    ),
    "layer '0' has padding 'same'": head(nn.Conv2d(3, 3, 2, padding="same"), features=144),
    "layer '0' has no weights": head(nn.BatchNorm2d(3, affine=False), features=144),
    "layer '0' has no weights, running statistics": head(
        nn.BatchNorm2d(3, track_running_stats=False), features=144
    ),
    "running statistics or momentum": head(nn.BatchNorm2d(3, momentum=None), features=144),
    "layer '0' has ceil_mode": head(nn.MaxPool2d(3, 2, ceil_mode=True), features=36),
    "return_indices or dilation": head(nn.MaxPool2d(2, 1, dilation=2), features=72),
    "layer '0' has ceil_mode, divisor_override or padding": head(
        nn.AvgPool2d(3, 1, 1), features=144
    ),
    "layer '0' draws random numbers": head(nn.Dropout(0.1), features=144),
    "operation 'dropout' draws random": called(lambda m, x: functional.dropout(x, 0.1, m.training)),
    "layer 'part' is called more than once": called(lambda m, x: m.part(m.part(x)), **part()),
    "parameter '1.bias' is frozen": frozen(),
    "parameters '1.weight' and '2.weight' share": tied(),
    "layer '1' has hooks": hooked(),
    "parameter '1.weight' has hooks": hooked_parameter(),
    "parameter '1.weight' is of torch.float64": head(features=144).double(),
    "'part.weight' is of no layer that is used": called(lambda m, x: x, **part()),
    "'part.weight' is used outside of a layer": called(
        lambda m, x: x + m.part.weight.sum(), **part()
    ),
    "the output does not depend on 'part.weight'": called(lambda m, x: (m.part(x), x)[1], **part()),
    "the model is a Call with 'scale'": called(
        lambda m, x: m.scale * x, scale=nn.Parameter(torch.ones(1))
    ),
    "operation 'relu' runs without gradients": called(silently),
    "gradients or under autocast": called(in_half),
    "'conv.mean' is of no layer that is used": buffered(),
    "torch.fx cannot trace the model: symbolically traced": called(branch),
    "other layers in training": called(lambda m, x: x.relu() if m.training else x),
    "its value is used after it was changed in place": called(changed),
    "layer 'conv': its value is used after": called(lambda m, x: torch.relu_(x) + x),
    "operation 'view': its value": called(changed_view),
    "operation 'mul' is not covered": called(lambda m, x: 2 * x),
    "operation 'add' is not of two tensors of one shape": called(lambda m, x: x + 1),
    "operation 'add' has a factor": called(lambda m, x: torch.add(x, x, alpha=2)),
    "operation 'mean' is not over the rows": called(lambda m, x: x.mean(1, keepdim=True)),
    "operation 'reshape' does not have the samples": called(lambda m, x: x.reshape(2, -1)),
    "operation 'view' makes no vector": called(lambda m, x: x.view(-1, 8, 3, 4)),
    "the model's output is not one": nn.Sequential(nn.Conv2d(3, 2, 1)),
    "output is not one tensor of": Call(lambda m, x: (m.conv(x), x), conv=nn.Conv2d(3, 2, 1)),
    "the model has no parameters": nn.Flatten(),
}


@pytest.mark.parametrize("reason", REFUSED)
def test_what_is_not_covered_is_named(reason):
    with pytest.raises(Uncovered) as caught:
        derive(REFUSED[reason], IMAGE)
    assert reason in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("draw", [lambda: torch.rand(1), random.random, np.random.rand])
def test_branches_on_random_numbers_are_not_covered(draw):
    """As in stochastic depth: a trace shows one of the ways."""
    forward = lambda m, x: x + m.part(x) if not m.training or draw() >= 0 else x
    model = called(forward, **part())
    with pytest.raises(Uncovered, match=r"^the model draws random numbers$"):
        derive(model, IMAGE)


def test_the_transformer_is_not_covered():
    model = models.build("transformer", input_shape=(12,), classes=4, width=0.25)
    with pytest.raises(Uncovered, match="layer 'embedding' is an Embedding"):
        derive(model, (12,))


def test_inputs_of_another_shape_are_not_covered():
    with pytest.raises(Uncovered, match=r"shape \(1, 2, 3, 4\) is no vector and no image"):
        derive(nn.Flatten(), (1, 2, 3, 4))
    with pytest.raises(Uncovered, match="cannot trace the model"):
        derive(zoo("resnet18"), (1, 8, 8))


def test_another_threads_draws_are_not_the_models(monkeypatch):
    """In a deployment Flower's threads draw while the model is looked at."""
    looks, plain = [], graph_module.tracing.trace

    def drawn_meanwhile(*given):
        looks.append(given)
        if len(looks) <= 2:
            random.random()
        return plain(*given)

    monkeypatch.setattr(graph_module.tracing, "trace", drawn_meanwhile)
    model = nn.Sequential(nn.Linear(4, 2))
    assert graph_module.derive(model, (4,)).outputs == 2
    assert len(looks) > 2
