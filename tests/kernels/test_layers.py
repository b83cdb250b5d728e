"""Each layer of the kernels, alone and between others, against torch in double precision."""

import copy
from dataclasses import dataclass, field
from functools import cache

import numpy as np
import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st
from torch import nn

from fedsparse import models
from fedsparse.kernels import library
from fedsparse.kernels.graph import derive
from fedsparse.kernels.nodes import Conv, Graph, Value
from fedsparse.kernels.program import Optimizer, Program
from fedsparse.kernels.rule import Rule
from fedsparse.sparsity import Mask, State
from tests.kernels.passes import (
    DENSE,
    SPARSE,
    assert_near,
    clear_of_bends,
    every_isa,
    native_pass,
    needs_kernels,
    random_mask,
    set_randomly,
    torch_pass,
)

pytestmark = needs_kernels
PROPERTY = settings(max_examples=40, derandomize=True, deadline=None, database=None)
FORMS = {"dense": DENSE, "sparse": SPARSE}
KEPT = ("all", "none", "one", 0.02, 0.1, 0.3, 0.9)

# -- convolutions and linear layers -------------------------------------------------------


@dataclass(frozen=True)
class Layer:
    """A convolution, or a linear layer where there is no size, and the samples it sees."""

    inputs: int = 1
    outputs: int = 1
    groups: int = 1
    kernel: tuple[int, int] = (1, 1)
    stride: tuple[int, int] = (1, 1)
    padding: tuple[int, int] = (0, 0)
    dilation: tuple[int, int] = (1, 1)
    size: tuple[int, int] | tuple[()] = ()
    bias: bool = True
    samples: int = 1
    form: str = "dense"
    kept: str | float = "all"
    seed: int = 0
    rng: np.random.Generator = field(init=False, compare=False, repr=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "rng", np.random.default_rng(self.seed))

    def module(self) -> nn.Module:
        torch.manual_seed(self.seed)
        if not self.size:
            return nn.Linear(self.inputs, self.outputs, self.bias)
        geometry = (self.kernel, self.stride, self.padding, self.dilation, self.groups)
        return nn.Conv2d(self.inputs, self.outputs, *geometry, bias=self.bias)

    def mask(self, shape: tuple[int, ...]) -> Mask | None:
        if self.kept == "all":
            return None
        bits = np.zeros(shape, bool)
        if self.kept == "one":
            bits.reshape(-1)[self.rng.integers(bits.size)] = True
        elif self.kept != "none":
            bits = np.asarray(self.rng.random(shape) < self.kept)
        return Mask.from_arrays({"weight": bits})

    def graph(self, shape: tuple[int, ...], output: torch.Size) -> Graph:
        names = ("weight", "bias" if self.bias else None)
        geometry = (self.kernel, self.stride, self.padding, self.dilation, self.groups)
        node = Conv((0,), 1, *names, self.outputs, self.inputs, *geometry, shape)
        source = Value(self.inputs, *(self.size or (1, 1)))
        target = Value(*(*output[1:], 1, 1)[:3])
        parameters = ("weight", "bias") if self.bias else ("weight",)
        return Graph((source, target), (node,), parameters, (), self.outputs)


@st.composite
def convolutions(draw: st.DrawFn) -> Layer:
    groups = draw(st.sampled_from([1, 1, 1, 2, 3, 8]))
    most = 24 if groups == 1 and draw(st.booleans()) else 5
    inputs, outputs = (draw(st.integers(1, most)) for _ in range(2))
    if groups == 8:
        inputs, outputs = 1, draw(st.integers(1, 2))  # depthwise
    kernel, stride, dilation, padding, size = [], [], [], [], []
    for _ in range(2):
        kernel.append(draw(st.integers(1, 5)))
        stride.append(draw(st.integers(1, 3)))
        dilation.append(draw(st.sampled_from([1, 1, 2])))
        padding.append(draw(st.integers(0, 3)))
        least = max(1, dilation[-1] * (kernel[-1] - 1) + 1 - 2 * padding[-1])
        size.append(least + draw(st.integers(0, 7)))
    return Layer(
        inputs=inputs * groups,
        outputs=outputs * groups,
        groups=groups,
        kernel=(kernel[0], kernel[1]),
        stride=(stride[0], stride[1]),
        padding=(padding[0], padding[1]),
        dilation=(dilation[0], dilation[1]),
        size=(size[0], size[1]),
        **draw(COMMON),
    )


COMMON = st.fixed_dictionaries(
    {
        "bias": st.booleans(),
        "samples": st.integers(1, 70),
        "form": st.sampled_from(sorted(FORMS)),
        "kept": st.sampled_from(KEPT),
        "seed": st.integers(0, 9),
    }
)
LINEAR = st.builds(
    lambda inputs, outputs, common: Layer(inputs=inputs, outputs=outputs, **common),
    st.integers(1, 300),
    st.integers(1, 90),
    COMMON,
)


def check(layer: Layer, isa: str) -> None:
    """Compare one layer's outputs and gradients; those of pruned weights are exactly zero."""
    module = layer.module()
    mask = layer.mask(tuple(module.weight.shape))
    state = set_randomly(module, mask)
    x = layer.rng.normal(size=(layer.samples, layer.inputs, *layer.size)).astype(np.float32)
    shape = module(torch.from_numpy(x[:1])).shape
    dy = layer.rng.normal(size=(layer.samples, *shape[1:])).astype(np.float32)
    graph = layer.graph(tuple(module.weight.shape), shape)
    api = library.load(isa)
    program = Program(graph, mask, Rule(*FORMS[layer.form]), api, input_gradient=True)
    found = native_pass(program, state, x, dy)
    assert_near(found, torch_pass(module.double(), x, dy, mask=mask))
    if mask is not None:
        assert not found.gradients["weight"][~mask["weight"]].any()


@every_isa
@PROPERTY
@given(layer=convolutions())
@example(layer=Layer(32, 32, 1, (3, 3), (1, 1), (1, 1), (1, 1), (16, 16), False, 32, "dense"))
@example(layer=Layer(32, 32, 1, (3, 3), (2, 2), (1, 1), (1, 1), (15, 16), False, 48, "sparse", 0.1))
@example(layer=Layer(48, 70, 1, (1, 1), (1, 1), (0, 0), (1, 1), (9, 15), True, 33, "sparse", 0.1))
def test_a_convolution_is_torchs(isa, layer):
    check(layer, isa)


@every_isa
@PROPERTY
@given(layer=LINEAR)
@example(layer=Layer(784, 130, samples=32))
@example(layer=Layer(1500, 70, samples=33, form="sparse", kept=0.05))
@example(layer=Layer(2000, 700, samples=33, form="sparse", kept=0.1))
def test_a_linear_layer_is_torchs(isa, layer):
    check(layer, isa)


# -- layers without a choice of form, and how they are put together -----------------------


class Net(nn.Module):
    """A 3x3 convolution of 3 to 4 channels, then whatever `forward` does, flattened."""

    def __init__(self, forward, **layers: nn.Module) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 4, 3, padding=1)
        self.then = forward
        for name, layer in layers.items():
            setattr(self, name, layer)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.then(self, self.conv(x)).flatten(1)


def conv(kernel: int = 3, padding: int = 1, stride: int = 1, groups: int = 1) -> nn.Conv2d:
    return nn.Conv2d(4, 4, kernel, stride, padding, groups=groups)


def norm() -> nn.BatchNorm2d:
    return nn.BatchNorm2d(4)


def after(*layers: nn.Module) -> Net:
    """A net of the convolution and these layers in sequence."""
    return Net(lambda net, x: net.rest(x), rest=nn.Sequential(*layers))


def shared(net: Net, x: torch.Tensor) -> torch.Tensor:
    y = net.norm(x)
    return net.a(y) + net.b(y) + y


RELU = nn.ReLU
NETS = {
    "maximum": after(nn.MaxPool2d(2)),
    "maximum, overlapping and padded": after(nn.MaxPool2d(3, 2, 1)),
    "maximum, of pairs": after(nn.MaxPool2d((2, 3), (1, 2), (1, 0))),
    "maximum of a convolution's output": after(nn.MaxPool2d(2), conv()),
    "maximum of a ReLU": after(RELU(), nn.MaxPool2d(2), conv()),
    "maximum of a ReLU6, overlapping": after(nn.ReLU6(), nn.MaxPool2d(3, 2, 1)),
    "maximum of a norm's ReLU": after(norm(), RELU(), nn.MaxPool2d(2), conv()),
    "maximum of a ReLU of a value used elsewhere": Net(
        lambda m, x: m.pool(x.relu()) + m.pool(x), pool=nn.MaxPool2d(3, 1, 1)
    ),
    "average with a rest": after(nn.AvgPool2d(3, 2)),
    "adaptive average with overlaps": after(nn.AdaptiveAvgPool2d((5, 4))),
    "adaptive average to more": after(nn.AdaptiveAvgPool2d((11, 9))),
    "global average": after(nn.AdaptiveAvgPool2d(1)),
    "average, then ReLU": after(nn.AvgPool2d(2), RELU(), conv()),
    "norm": after(norm()),
    "norm, ReLU": after(norm(), RELU()),
    "norm, ReLU6": after(norm(), nn.ReLU6(), conv()),
    "norm between convolutions": after(norm(), RELU(), conv(3, 1, 2), norm(), RELU(), conv(1, 0)),
    "norm after norm": after(norm(), norm()),
    "norm of a maximum": after(nn.MaxPool2d(2), norm(), conv()),
    "norm of a ReLU of a value used elsewhere": Net(lambda m, x: m.norm(x.relu()) + x, norm=norm()),
    "norm of a norm's ReLU and more": Net(
        lambda m, x: m.second(m.first(x).relu()) + x, first=norm(), second=norm()
    ),
    "ReLU in place": after(RELU(inplace=True), conv()),
    "ReLU6": after(nn.ReLU6(), conv()),
    "ReLU of a value used elsewhere": Net(lambda m, x: x.relu() + x),
    "ReLU of ReLU": after(RELU(), nn.ReLU6(), conv()),
    "ReLU of a maximum": after(nn.MaxPool2d(2), RELU(), conv()),
    "the same value twice": Net(lambda m, x: m.a(x + x), a=conv()),
    "a sum's ReLU": Net(lambda m, x: (m.a(x) + x).relu(), a=conv()),
    "three readers": Net(lambda m, x: m.a(x) + m.b(x.relu()) + x, a=conv(), b=conv(5, 2)),
    "three readers of a norm": Net(shared, norm=norm(), a=conv(), b=conv(1, 0)),
    "a residual of strides": Net(
        lambda m, x: m.a(x.relu()) + m.b(x), a=conv(3, 1, 2), b=conv(1, 0, 2)
    ),
    "grouped": after(conv(groups=2), RELU(), conv(groups=4)),
    "flattened without a halo": after(nn.MaxPool2d(2), nn.Flatten(), nn.Linear(48, 7)),
    "flattened with a halo": after(nn.Flatten(), nn.Linear(192, 7)),
    "flattened, read twice": Net(
        lambda m, x: m.fc(x.flatten(1)) + m.other(m.a(x).flatten(1)),
        a=conv(),
        fc=nn.Linear(192, 7),
        other=nn.Linear(192, 7),
    ),
    "vectors": after(
        nn.Flatten(), nn.BatchNorm1d(192), nn.ReLU6(), nn.Linear(192, 6), nn.BatchNorm1d(6)
    ),
}
SIZE = (8, 6)


def net_of(name: str) -> nn.Module:
    """Return a net with weights that do not depend on which tests ran before."""
    torch.manual_seed(1)
    net = copy.deepcopy(NETS[name])
    for layer in net.modules():
        if isinstance(layer, nn.Conv2d | nn.Linear):
            layer.reset_parameters()
    return net


@cache
def expected_of(name: str) -> tuple[Graph, Mask, State, list[tuple]]:
    """Return a net's graph, mask and state, and what torch makes of some batches."""
    net = net_of(name)
    graph = derive(net, (3, *SIZE))
    mask = random_mask({"conv.weight": (4, 3, 3, 3)}, 0.5)
    state = set_randomly(net, mask)
    cases = []
    for samples, frozen in ((37, False), (16, False), (5, True), (1, True)):
        of = {"mask": mask, "frozen": frozen}
        drawn = clear_of_bends(net, (3, *SIZE), samples, graph.outputs, **of)
        cases.append((*drawn, frozen))
    return graph, mask, state, cases


@every_isa
@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("name", NETS)
def test_layers_together_are_torchs(name, form, isa):
    """Training and frozen, full vectors of samples and not; the first layer pruned."""
    graph, mask, state, cases = expected_of(name)
    program = Program(graph, mask, Rule(*FORMS[form]), library.load(isa), input_gradient=True)
    for x, dy, expected, frozen in cases:
        assert_near(native_pass(program, state, x, dy, frozen=frozen), expected)


@every_isa
@pytest.mark.parametrize("layer", [nn.MaxPool2d(3, 2, 1), nn.ReLU(), nn.ReLU6()], ids=str)
def test_at_ties_the_gradient_goes_where_torchs_goes(layer, isa):
    """To the first of the largest; and nowhere at the bends of a ReLU, 0 and 6."""
    features = layer(torch.zeros(1, 2, 5, 6)).numel()
    net = nn.Sequential(layer, nn.Flatten(), nn.Linear(features, 2))
    graph = derive(net, (2, 5, 6))
    x = np.random.default_rng(0).integers(-1, 3, (20, 2, 5, 6)).astype(np.float32) * 3
    dy = np.random.default_rng(1).normal(size=(20, 2)).astype(np.float32)
    program = Program(graph, None, Rule(*DENSE), library.load(isa), input_gradient=True)
    found = native_pass(program, set_randomly(net), x, dy)
    assert_near(found, torch_pass(net.double(), x, dy))


@every_isa
@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize(
    "name",
    ["maximum, overlapping and padded", "adaptive average with overlaps", "norm, ReLU6",
     "average, then ReLU", "ReLU in place", "ReLU6", "ReLU of a maximum", "a sum's ReLU",
     "maximum of a ReLU", "flattened with a halo"],
)  # fmt: skip
def test_what_is_not_a_number_stays_in_its_sample_and_is_not_lost(name, bad, form, isa):
    """A comparison, as in a ReLU, would make NaN zero, and a diverged client would seem fine."""
    net = net_of(name)
    graph = derive(net, (3, *SIZE))
    program = Program(graph, None, Rule(*FORMS[form]), library.load(isa), input_gradient=True)
    x = np.random.default_rng(0).normal(size=(18, 3, *SIZE)).astype(np.float32)
    x[[2, 17], 1, 3, 2] = bad
    dy = np.zeros((18, graph.outputs), np.float32)
    found = native_pass(program, set_randomly(net), x, dy, frozen=True).output
    expected = torch_pass(net, x, dy, frozen=True).output
    np.testing.assert_array_equal(np.isnan(found), np.isnan(expected))
    fine = np.isfinite(expected)
    np.testing.assert_allclose(found[fine], expected[fine], rtol=1e-4, atol=1e-4)


# -- what an earlier batch left -----------------------------------------------------------


def poisoned(program: Program, samples: int, purpose: int) -> None:
    """Fill the memory of a pass with NaN, save the halos of values that are kept."""
    room = program._room(samples, purpose)
    room.arena[:] = np.nan
    room.gradients[:] = np.nan
    for tensor in program.plan.tensors[program.plan.tensors["maker"] < 0]:
        halo, plane, channels = (int(tensor[name]) for name in ("halo", "plane", "channels"))
        high, wide = (int(tensor[side]) + 2 * halo for side in ("height", "width"))
        start, count = int(tensor["value"]) * room.lanes, channels * plane * room.lanes
        planes = room.arena[start : start + count].reshape(channels, plane, room.lanes)
        framed = planes[:, : high * wide].reshape(channels, high, wide, room.lanes)
        framed[:] = 0
        framed[:, halo : high - halo, halo : wide - halo] = np.nan


@every_isa
@pytest.mark.parametrize("form", FORMS)
def test_nothing_is_read_that_this_batch_has_not_written(form, isa):
    """NaN in all memory changes no bit of a round, a test or a search for gradients."""
    torch.manual_seed(0)
    net = models.build("resnet18", input_shape=(3, 9, 8), classes=5, width=0.1)
    graph = derive(net, (3, 9, 8))
    mask = random_mask(models.shapes(net, models.prunable(net)), 0.4)
    state = set_randomly(net, mask)
    rng = np.random.default_rng(0)
    x = rng.normal(size=(57, 3, 9, 8)).astype(np.float32)
    y = rng.integers(0, 5, 57)
    edges = np.array([0, 5, 45, 57], np.int64)  # batches below, over and at full vectors
    order = rng.permutation(57)[None]
    found = []
    for dirty in (False, True):
        program = Program(graph, mask, Rule(*FORMS[form]), library.load(isa))
        values, sgd = program.pack(state), Optimizer("momentum", 0.05, 0.9)
        if dirty:
            poisoned(program, 40, library.TRAINING)
            poisoned(program, 57, library.EVALUATING)
            poisoned(program, 57, library.GROWING)
        program.train(values, x, y, order, edges, sgd, program.slots(sgd))
        tested, outputs = program.evaluate(values, x, y, outputs=True)
        largest = program.grow(values, x, y, {"conv.weight": 9, "fc.weight": 7})
        found.append((values, tested, outputs, largest))
    (values, tested, outputs, largest), (others, retested, same, again) = found
    assert np.isfinite(values.parameters).all()
    np.testing.assert_array_equal(values.parameters, others.parameters)
    np.testing.assert_array_equal(values.buffers, others.buffers)
    assert tested == retested
    np.testing.assert_array_equal(outputs, same)
    for name, (position, value) in largest.items():
        np.testing.assert_array_equal(position, again[name][0])
        np.testing.assert_array_equal(value, again[name][1])
