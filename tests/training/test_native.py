"""A local round by the kernels ends where torch's ends; what is pruned is not there at all."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st
from torch import nn

from fedsparse import models
from fedsparse.config import ClientConfig
from fedsparse.data import Dataset
from fedsparse.errors import DataError, TrainingError
from fedsparse.kernels.graph import derive
from fedsparse.kernels.program import TEST_LANES
from fedsparse.kernels.rule import Rule
from fedsparse.sparsity import Mask, State
from fedsparse.training import growth, local
from fedsparse.training.native import NativeModel
from tests.kernels.passes import DENSE, SPARSE, needs_kernels, random_mask, set_randomly

pytestmark = needs_kernels
FORMS = {"dense": Rule(*DENSE), "sparse": Rule(*SPARSE)}
TOLERANCE = 1e-4
"""Of a tensor's largest value after a round: each step adds the rounding of its gradient."""
ZOO = {"mlp": (1, 8, 8), "cnn": (1, 12, 11), "leaf-cnn": (1, 8, 8), "resnet18": (3, 8, 8)}
OPTIMIZERS = {
    "sgd": {"momentum": 0.0},
    "momentum and decay": {"weight_decay": 0.01},
    "adam": {"optimizer": "adam", "weight_decay": 0.01, "lr": 0.003},
}


def rng() -> np.random.Generator:
    return np.random.default_rng(7)


def dataset(shape: tuple[int, ...], count: int, classes: int = 4) -> Dataset:
    """Return samples whose label shifts their mean: something to learn."""
    drawn = np.random.default_rng(count)
    y = drawn.integers(0, classes, count)
    x = drawn.normal(size=(count, *shape)) + 0.5 * y.reshape(-1, *(1 for _ in shape))
    return Dataset(x.astype(np.float32), y, classes)


def network(name: str = "cnn", density: float = 0.3) -> tuple[nn.Module, Mask | None, State]:
    """Return a small model of the zoo under a mask, and its state."""
    torch.manual_seed(0)
    model = models.build(name, input_shape=ZOO[name], classes=4, width=0.25)
    weights = models.shapes(model, models.prunable(model))
    mask = None if density == 1 else random_mask(weights, density)
    return model, mask, set_randomly(model, mask)


def native(model: nn.Module, mask: Mask | None, state: State, shape, form: str = "sparse"):
    return NativeModel(derive(model, shape), FORMS[form], state, mask)


def assert_close(found: State, expected: State) -> None:
    assert list(found) == list(expected)
    for name, value in expected.items():
        apart = np.abs(found[name] - value).max(initial=0)
        assert apart <= TOLERANCE * max(1e-2, np.abs(value).max(initial=0)), name


def both(
    model: nn.Module, mask: Mask | None, state: State, data: Dataset, settings: ClientConfig, **of
):
    """Train a state natively and by torch; return the native model and both reports."""
    trained = native(model, mask, state, data.x.shape[1:], of.pop("form", "sparse"))
    found = trained.train(data, settings, rng=rng(), **of)
    models.load_state(model, state)
    return trained, found, local.train(model, data, settings, rng=rng(), mask=mask, **of)


# -- a local round ------------------------------------------------------------------------


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("optimizer", OPTIMIZERS)
@pytest.mark.parametrize("name", ["mlp", "leaf-cnn"])
def test_a_round_ends_where_torchs_ends(name, optimizer, form):
    """Two epochs, a short last batch, both terms; weights, report, optimizer's state."""
    model, mask, state = network(name)
    settings = ClientConfig(batch_size=16, local_epochs=2, **OPTIMIZERS[optimizer])
    trained, found, expected = both(
        model, mask, state, dataset(ZOO[name], 57), settings, form=form, proximal_mu=0.1, l1=0.01
    )
    assert_close(trained.whole(), models.get_state(model))
    assert found.loss == pytest.approx(expected.loss, rel=1e-4)
    assert found.accuracy == pytest.approx(expected.accuracy)
    assert found.samples == expected.samples == 114
    slots, torchs = found.slots(), expected.slots()
    assert set(slots) == set(torchs)
    for slot, values in torchs.items():
        assert_close(slots[slot], values)


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("density", [1.0, 0.3])
@pytest.mark.parametrize("name", ["cnn", "resnet18"])
def test_a_round_with_batchnorm_ends_where_torchs_ends(name, density, form):
    """Running statistics included; a last batch of one joins the one before it."""
    model, mask, state = network(name, density)
    settings = ClientConfig(batch_size=16, momentum=0.9, lr=0.01)
    trained, found, expected = both(model, mask, state, dataset(ZOO[name], 49), settings, form=form)
    assert_close(trained.whole(), models.get_state(model))
    assert found.loss == pytest.approx(expected.loss, rel=1e-4)


@pytest.mark.parametrize("form", FORMS)
def test_one_sample_alone_is_trained_with_the_running_statistics(form):
    model, mask, state = network()
    trained, found, expected = both(
        model, mask, state, dataset(ZOO["cnn"], 1), ClientConfig(local_epochs=3), form=form
    )
    assert_close(trained.whole(), models.get_state(model))
    assert (found.samples, expected.samples) == (3, 3)
    for name, value in state.items():
        if "running" in name:
            np.testing.assert_array_equal(trained.whole()[name], value)


def test_learning_rate_and_epochs_of_a_message_go_before_the_settings():
    model, mask, state = network("mlp")
    data = dataset(ZOO["mlp"], 20)
    trained, found, _ = both(model, mask, state, data, ClientConfig(), lr=0.2, epochs=4)
    assert found.samples == 80
    assert_close(trained.whole(), models.get_state(model))
    still, nothing, _ = both(model, mask, state, data, ClientConfig(), epochs=0)
    assert nothing.samples == 0
    assert_close(still.whole(), state)


@pytest.mark.parametrize("form", FORMS)
def test_a_regression_is_trained_and_tested_like_torchs(form):
    drawn = np.random.default_rng(0)
    x = drawn.normal(size=(90, 12)).astype(np.float32)
    data = Dataset(x, (x @ drawn.normal(size=12)).astype(np.float32), 1)
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(12, 1))
    mask = random_mask({"0.weight": (1, 12)}, 0.7)
    settings = ClientConfig(batch_size=16, local_epochs=4)
    trained, found, expected = both(
        model, mask, set_randomly(model, mask), data, settings, form=form
    )
    assert_close(trained.whole(), models.get_state(model))
    assert found.accuracy == pytest.approx(expected.accuracy, abs=1e-4)
    tested, torchs = trained.evaluate(data), local.evaluate(model, data)
    assert (tested.loss, tested.accuracy) == pytest.approx((torchs.loss, torchs.accuracy), rel=1e-4)


def test_nothing_pruned_ever_moves_or_is_kept():
    """Neither weight decay, nor momentum, nor Adam reaches it: in the sparse form, it is not."""
    model, mask, state = network("cnn", 0.2)
    for form in FORMS:
        for chosen in OPTIMIZERS.values():
            trained = native(model, mask, state, ZOO["cnn"], form)
            done = trained.train(dataset(ZOO["cnn"], 40), ClientConfig(**chosen), rng=rng())
            whole, kept = trained.whole(), trained.kept()
            assert list(whole) == list(kept) == list(models.get_state(model))
            for name, bits in mask.items():
                assert not whole[name][~bits].any()
                np.testing.assert_array_equal(kept[name], whole[name][bits])
                for slot, values in done.slots().items():
                    assert slot == "step" or not values[name][~bits].any()


# -- the optimizer's state ----------------------------------------------------------------


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("optimizer", ["momentum and decay", "adam"])
def test_the_optimizers_state_goes_on_as_torchs_and_from_torchs(optimizer, form):
    """Two rounds in which the state survives, and a second one that begins with torch's."""
    model, mask, state = network("mlp")
    data, settings = dataset(ZOO["mlp"], 57), ClientConfig(**OPTIMIZERS[optimizer])
    trained, first, torch_first = both(model, mask, state, data, settings, form=form)
    middle = models.get_state(model)
    expected = local.train(
        model, data, settings, rng=rng(), mask=mask, optimizer_state=torch_first.slots()
    )
    trained.train(data, settings, rng=rng(), optimizer_state=first.slots())
    assert_close(trained.whole(), models.get_state(model))
    from_torch = native(model, mask, middle, ZOO["mlp"], form)
    last = from_torch.train(data, settings, rng=rng(), optimizer_state=torch_first.slots())
    assert_close(from_torch.whole(), models.get_state(model))
    for slot, values in expected.slots().items():
        assert_close(last.slots()[slot], values)


# -- tests --------------------------------------------------------------------------------


@pytest.mark.parametrize("count", [1, TEST_LANES + 1, 200])
def test_a_test_is_torchs(count):
    model, mask, state = network("resnet18")
    data = dataset(ZOO["resnet18"], count)
    found = native(model, mask, state, ZOO["resnet18"]).evaluate(data)
    expected = local.evaluate(model, data)
    assert found.loss == pytest.approx(expected.loss, rel=1e-4)
    assert (found.accuracy, found.samples) == pytest.approx((expected.accuracy, count))


def test_a_test_of_nothing_is_not_a_number():
    model, mask, state = network()
    found = native(model, mask, state, ZOO["cnn"]).evaluate(dataset(ZOO["cnn"], 0))
    assert math.isnan(found.loss)
    assert found.samples == 0


# -- what goes wrong ----------------------------------------------------------------------


@pytest.mark.parametrize("label", [-1, 4, 2**40])
def test_a_label_out_of_range_is_a_typed_error(label):
    model, mask, state = network()
    data = dataset(ZOO["cnn"], 20)
    data.y[3] = label
    client = native(model, mask, state, ZOO["cnn"])
    for act in (
        lambda: client.train(data, ClientConfig(), rng=rng()),
        lambda: client.evaluate(data),
        lambda: client.top_gradients(data, {"conv1.weight": 2}),
    ):
        with pytest.raises(DataError, match=f"label {label} is not one of 0 to 3"):
            act()


def test_samples_of_another_model_are_a_typed_error():
    model, mask, state = network()
    client = native(model, mask, state, ZOO["cnn"])
    for data in (
        dataset((1, 12, 10), 20),
        Dataset(np.ones((9, 1, 12, 11), np.float32), np.ones(9, np.float32), 1),
    ):
        with pytest.raises(DataError, match="do not fit a model"):
            client.train(data, ClientConfig(), rng=rng())


def test_a_loss_that_is_not_finite_is_a_typed_error_with_its_epoch():
    model, mask, state = network("mlp")
    settings = ClientConfig(lr=1e30, local_epochs=5, batch_size=16)
    data = dataset(ZOO["mlp"], 57)
    with pytest.raises(TrainingError) as torchs:
        local.train(model, data, settings, rng=rng(), mask=mask)
    with pytest.raises(TrainingError) as found:
        native(model, mask, state, ZOO["mlp"]).train(data, settings, rng=rng())
    assert str(torchs.value).startswith(
        "the loss is nan after epoch 1; lower client.lr (now 1e+30)"
    )
    assert str(found.value).partition("after")[2] == str(torchs.value).partition("after")[2]
    again = native(model, mask, state, ZOO["mlp"])
    again.train(data, ClientConfig(), rng=rng())
    assert all(np.isfinite(value).all() for value in again.whole().values())


def test_weights_that_are_not_finite_are_a_typed_error():
    """The loss of the last batch was still a number, the step after it went too far."""
    model = nn.Sequential(nn.Linear(3, 2))
    state = set_randomly(model)
    data = Dataset(np.full((8, 3), 1e10, np.float32), np.zeros(8, np.int64), 2)
    data.y[0] = 1
    with pytest.raises(TrainingError, match=r"weights are not finite after training; lower a\.key"):
        native(model, None, state, (3,)).train(
            data, ClientConfig(lr=1e30), rng=rng(), lr_key="a.key"
        )


@pytest.mark.parametrize("name", ZOO)
@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_a_sample_that_is_not_finite_fails_its_client_alone(name, bad):
    """Even behind ReLUs and maxima, which compare; the next client's round is as ever."""
    model, mask, state = network(name)
    fine, settings = dataset(ZOO[name], 40), ClientConfig()
    before = native(model, mask, state, ZOO[name])
    before.train(fine, settings, rng=rng())
    broken = dataset(ZOO[name], 40)
    broken.x[5] = bad
    with pytest.raises(TrainingError, match=r"lower client\.lr"):
        native(model, mask, state, ZOO[name]).train(broken, settings, rng=rng())
    after = native(model, mask, state, ZOO[name])
    after.train(fine, settings, rng=rng())
    for key, value in before.whole().items():
        np.testing.assert_array_equal(after.whole()[key], value)


def test_batchnorm_needs_batches_of_two():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(6, 8), nn.BatchNorm1d(8), nn.Linear(8, 4))
    client = native(model, None, set_randomly(model), (6,))
    with pytest.raises(TrainingError, match=r"raise client\.batch_size \(now 1\)"):
        client.train(dataset((6,), 9), ClientConfig(batch_size=1), rng=rng())
    plain = nn.Sequential(nn.Linear(6, 4))
    native(plain, None, set_randomly(plain), (6,)).train(
        dataset((6,), 9), ClientConfig(batch_size=1), rng=rng()
    )


# -- growth -------------------------------------------------------------------------------


class Grouped(nn.Module):
    """Convolutions with and without groups, BatchNorm, a linear layer."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(2, 8, 3, padding=1, stride=2, bias=False)
        self.norm = nn.BatchNorm2d(8)
        self.relu = nn.ReLU()
        self.group = nn.Conv2d(8, 12, 3, padding=1, groups=4)
        self.depth = nn.Conv2d(12, 12, 3, padding=1, groups=12)
        self.head = nn.Linear(12 * 16, 5)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.relu(self.norm(self.conv(x)))
        return self.head(self.relu(self.depth(self.relu(self.group(x)))).flatten(1))


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("samples", [1, 2, 33])
def test_the_largest_gradients_of_pruned_weights_are_torchs(samples, form):
    """All layers at once; one is asked for more than is pruned, one for nothing."""
    torch.manual_seed(0)
    model = Grouped()
    mask = random_mask(models.shapes(model, models.prunable(model)), 0.5, seed=1)
    state, data = set_randomly(model, mask), dataset((2, 8, 8), samples, 5)
    counts = {"head.weight": 40, "conv.weight": 10_000, "group.weight": 9, "depth.weight": 0}
    client = native(model, mask, state, (2, 8, 8), form)
    found = client.top_gradients(data, counts)
    expected = growth.top_gradients(model, mask, data, counts)
    assert set(found) == set(expected) == set(counts) - {"depth.weight"}
    for name, (position, value) in expected.items():
        assert found[name][0].tolist() == position.tolist()
        assert (found[name][0].dtype, found[name][1].dtype) == (np.int64, np.float32)
        np.testing.assert_allclose(found[name][1], value, rtol=1e-3, atol=1e-6)
    unchanged = client.whole()
    assert all(np.array_equal(unchanged[name], value) for name, value in state.items())


# -- any small net ------------------------------------------------------------------------


@st.composite
def nets(draw: st.DrawFn) -> tuple[nn.Module, tuple[int, ...]]:
    """Return a sequence of layers drawn at random, and the shape of a sample."""
    shape = (draw(st.integers(1, 3)), draw(st.integers(5, 9)), draw(st.integers(5, 9)))
    layers: list[nn.Module] = []
    channels, size = shape[0], shape[1:]
    for _ in range(draw(st.integers(1, 3))):
        groups = draw(st.sampled_from([1, 1, channels]))
        wide, kernel = groups * draw(st.integers(1, 4)), draw(st.sampled_from([1, 3]))
        stride, padding = draw(st.integers(1, 2)), draw(st.integers(0, 1))
        if min(size) + 2 * padding < kernel:
            continue
        layers.append(nn.Conv2d(channels, wide, kernel, stride, padding, groups=groups))
        size = tuple((side + 2 * padding - kernel) // stride + 1 for side in size)
        channels = wide
        if draw(st.booleans()):
            layers[-1].bias = None  # BatchNorm takes it away
            layers.append(nn.BatchNorm2d(channels))
        layers += draw(st.sampled_from([[], [nn.ReLU()], [nn.ReLU6()]]))
        pools = [None, nn.MaxPool2d(2), nn.MaxPool2d(3, 1, 1), nn.AvgPool2d(2)]
        if min(size) >= 3 and (pool := draw(st.sampled_from(pools))) is not None:
            layers.append(pool)
            size = tuple(pool(torch.zeros(1, *size)).shape[1:])
    layers.append(nn.Flatten())
    features = channels * math.prod(size)
    if draw(st.booleans()):
        layers += [nn.Linear(features, 9), nn.ReLU()]
        features = 9
    return nn.Sequential(*layers, nn.Linear(features, 3)), shape


@hypothesis_settings(max_examples=30, derandomize=True, deadline=None, database=None)
@given(
    net=nets(),
    density=st.sampled_from([0.05, 0.3, 0.7, 1.0]),
    linear=st.sampled_from([0.0, 0.5, 2.0]),
    conv=st.sampled_from([0.0, 0.5, 2.0]),
    samples=st.integers(20, 60),
    seed=st.integers(0, 5),
)
def test_any_net_trained_natively_under_a_mask_is_the_masked_net_of_torch(
    net, density, linear, conv, samples, seed
):
    model, shape = net
    torch.manual_seed(seed)
    for layer in model:
        if hasattr(layer, "reset_parameters"):
            layer.reset_parameters()
    mask = random_mask(models.shapes(model, models.prunable(model)), density, seed)
    state, data = set_randomly(model, mask), dataset(shape, samples, 3)
    settings = ClientConfig(batch_size=16, lr=0.02, local_epochs=2)
    client = NativeModel(derive(model, shape), Rule(linear, conv), state, mask)
    found = client.train(data, settings, rng=rng())
    expected = local.train(model, data, settings, rng=rng(), mask=mask)
    assert found.loss == pytest.approx(expected.loss, rel=1e-3)
    assert_close(client.whole(), models.get_state(model))
    assert client.evaluate(data).loss == pytest.approx(local.evaluate(model, data).loss, rel=1e-3)
