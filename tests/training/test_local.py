"""Masked training: pruned weights stay exactly zero, whatever the optimizer."""

from itertools import product

import numpy as np
import pytest
import torch
from torch import nn
from torch.optim.adam import adam
from torch.optim.sgd import sgd

from fedsparse.config import ClientConfig
from fedsparse.data import Dataset
from fedsparse.errors import TrainingError
from fedsparse.sparsity import Mask
from fedsparse.training import local


@pytest.fixture
def data() -> Dataset:
    rng = np.random.default_rng(0)
    x = rng.normal(size=(65, 6)).astype(np.float32)
    return Dataset(x, (x[:, 0] > 0).astype(np.int64), 2)


def net() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(6, 16), nn.BatchNorm1d(16), nn.ReLU(), nn.Linear(16, 2))


def some_mask(model: nn.Module) -> Mask:
    rng = np.random.default_rng(2)
    return Mask.from_arrays(
        {"0.weight": rng.random((16, 6)) < 0.3, "3.weight": rng.random((2, 16)) < 0.3}
    )


def rng() -> np.random.Generator:
    return np.random.default_rng(7)


@pytest.mark.parametrize("optimizer", ["sgd", "adam"])
def test_pruned_weights_and_their_optimizer_state_stay_exactly_zero(data, optimizer):
    model = net()
    mask = some_mask(model)
    mask.apply_({name: model.get_parameter(name).data for name in mask.names})
    settings = ClientConfig(optimizer=optimizer, weight_decay=0.1, batch_size=16, local_epochs=3)
    trained = local.train(model, data, settings, rng=rng(), mask=mask)
    slots = trained.slots()
    assert set(slots) == {
        "sgd": {"momentum_buffer"}, "adam": {"step", "exp_avg", "exp_avg_sq"}
    }[optimizer]  # fmt: skip
    for name in mask.names:
        weight = model.get_parameter(name).detach().numpy()
        assert not weight[~mask[name]].any()
        assert weight[mask[name]].all()
        for values in slots.values():
            if values[name].ndim:
                assert not values[name][~mask[name]].any()


def test_a_full_mask_trains_like_no_mask(data):
    masked, plain = net(), net()
    settings = ClientConfig(batch_size=16)
    full = Mask.full({"0.weight": (16, 6), "3.weight": (2, 16)})
    local.train(masked, data, settings, rng=rng(), mask=full)
    local.train(plain, data, settings, rng=rng())
    assert all(
        torch.equal(a, b) for a, b in zip(masked.parameters(), plain.parameters(), strict=True)
    )


@pytest.mark.parametrize("optimizer", ["sgd", "adam"])
def test_it_is_the_plain_loop_with_masked_gradients(optimizer):
    """Convolutions in channels_last, the optimizer fused, against torch's plain forms."""
    draw = np.random.default_rng(0)
    images = Dataset(draw.normal(size=(20, 3, 6, 6)).astype(np.float32), draw.integers(0, 2, 20), 2)

    def convolutions() -> nn.Module:
        torch.manual_seed(0)
        inner = (nn.Conv2d(3, 4, 3, bias=False), nn.BatchNorm2d(4), nn.ReLU(), nn.Conv2d(4, 6, 1))
        return nn.Sequential(*inner, nn.Flatten(), nn.Linear(96, 2))

    ours = convolutions().to(memory_format=torch.channels_last)
    plain = convolutions()
    bits = torch.from_numpy(draw.random((4, 3, 3, 3)) < 0.5)
    settings = ClientConfig(
        lr=0.01, batch_size=8, local_epochs=2, weight_decay=0.1, optimizer=optimizer
    )
    mask = Mask.from_arrays({"0.weight": bits.numpy()})
    for model in (ours, plain):
        mask.apply_({"0.weight": model[0].weight.data})
    local.train(ours, images, settings, rng=rng(), mask=mask, proximal_mu=0.5)
    x, y = torch.from_numpy(images.x), torch.from_numpy(images.y)
    weights = [p.detach() for p in plain.parameters()]
    start, first, second = ([f(w) for w in weights] for f in (torch.clone, *[torch.zeros_like] * 2))
    steps, each = [torch.tensor(0.0) for _ in weights], {"lr": 0.01, "weight_decay": 0.1}
    generator = rng()
    for index in (b for _ in range(2) for b in local.batches(20, 8, generator)):
        loss = nn.functional.cross_entropy(plain(x[index]), y[index])
        gradients = list(torch.autograd.grad(loss, list(plain.parameters())))
        gradients = [g + 0.5 * (w - s) for g, w, s in zip(gradients, weights, start, strict=True)]
        gradients[0] *= bits
        if optimizer == "adam":
            adam(
                weights, gradients, first, second, [], steps, foreach=False, amsgrad=False,
                beta1=0.9, beta2=0.999, eps=1e-8, maximize=False, **each,
            )  # fmt: skip
        else:
            sgd(
                weights, gradients, first, foreach=False, momentum=0.9, dampening=0.0,
                nesterov=False, maximize=False, **each,
            )  # fmt: skip
    for one, other in zip(ours.parameters(), plain.parameters(), strict=True):
        np.testing.assert_allclose(one.detach(), other.detach(), rtol=1e-4, atol=1e-6)


def test_training_learns(data):
    model = net()
    before = local.evaluate(model, data).accuracy
    local.train(model, data, ClientConfig(batch_size=16, local_epochs=20), rng=rng())
    assert local.evaluate(model, data).accuracy > max(0.9, before)


def test_the_proximal_term_holds_weights_near_their_start(data):
    def moved(mu: float) -> float:
        model = net()
        start = [p.detach().clone() for p in model.parameters()]
        settings = ClientConfig(batch_size=16, local_epochs=5, momentum=0.0)
        local.train(model, data, settings, rng=rng(), proximal_mu=mu)
        return sum(
            float((p.detach() - s).square().sum())
            for p, s in zip(model.parameters(), start, strict=True)
        )

    assert moved(5.0) < 0.5 * moved(0.0)


def test_the_l1_norm_of_all_parameters_joins_the_loss(data):
    """One plain step: w - lr (g + gamma sign(w)), biases and all."""
    settings = ClientConfig(batch_size=len(data), momentum=0.0, lr=0.1)
    plain, shrunk = net(), net()
    start = [p.detach().clone() for p in plain.parameters()]
    local.train(plain, data, settings, rng=rng())
    local.train(shrunk, data, settings, rng=rng(), l1=0.05)
    for without, p, w in zip(plain.parameters(), shrunk.parameters(), start, strict=True):
        torch.testing.assert_close(p, without - 0.1 * 0.05 * w.sign())


def test_a_last_batch_of_one_joins_the_one_before():
    sizes = [len(b) for b in local.batches(65, 16, rng())]
    assert sizes == [16, 16, 16, 17]
    assert [len(b) for b in local.batches(1, 16, rng())] == [1]
    for samples, size in product(range(1, 40), (1, 2, 3, 16)):
        largest = max(len(b) for b in local.batches(samples, size, rng()))
        assert local.largest_batch(samples, size) == largest
    assert sorted(np.concatenate(list(local.batches(65, 16, rng())))) == list(range(65))


def test_a_client_with_one_sample_trains(data):
    one = Dataset(data.x[:1], data.y[:1], 2)
    assert local.train(net(), one, ClientConfig(), rng=rng()).samples == 1


def test_a_loss_or_a_weight_that_is_not_finite_is_a_typed_error(data):
    with pytest.raises(TrainingError, match=r"loss is .*; lower client\.lr"):
        local.train(net(), data, ClientConfig(lr=1e30, local_epochs=5), rng=rng())
    few = Dataset(data.x[:8], data.y[:8], 2)  # one step: its loss was fine
    with pytest.raises(TrainingError, match=r"weights are not finite .*; lower client\.lr"):
        local.train(net(), few, ClientConfig(lr=3e38, weight_decay=100.0), rng=rng())


def test_optimizer_state_goes_round(data):
    settings = ClientConfig(batch_size=16, optimizer="adam")
    straight, broken = net(), net()
    generator = rng()
    local.train(straight, data, settings, rng=generator)
    first = local.train(broken, data, settings, rng=rng())
    slots = first.slots()
    assert set(slots) == {"step", "exp_avg", "exp_avg_sq"}
    again, fresh = net(), net()
    local.train(again, data, settings, rng=rng(), optimizer_state=slots)
    local.train(fresh, data, settings, rng=rng())
    assert not torch.equal(again[0].weight, fresh[0].weight)


def test_regression_reports_r_squared():
    x = np.linspace(-1, 1, 50, dtype=np.float32)[:, None]
    data = Dataset(x, (2 * x[:, 0]).astype(np.float32), 1)
    model = nn.Sequential(nn.Linear(1, 1))
    with torch.no_grad():
        model[0].weight.fill_(2.0)
        model[0].bias.zero_()
    result = local.evaluate(model, data)
    assert result.loss == pytest.approx(0.0, abs=1e-9)
    assert result.accuracy == pytest.approx(1.0)


def test_training_reports_r_squared_of_a_regression():
    x = np.linspace(-1, 1, 50, dtype=np.float32)[:, None]
    data = Dataset(x, (2 * x[:, 0]).astype(np.float32), 1)
    settings = ClientConfig(lr=0.3, local_epochs=20, batch_size=10)
    trained = local.train(nn.Sequential(nn.Linear(1, 1)), data, settings, rng=rng())
    assert trained.accuracy == pytest.approx(1 - trained.loss / np.var(data.y), rel=1e-4)
    assert trained.accuracy > 0.99


def test_dropout_depends_on_the_stream_alone_and_leaves_torchs_generator(data):
    def trained(before: int) -> torch.Tensor:
        model = nn.Sequential(net(), nn.Dropout(0.5))
        torch.manual_seed(before)
        drawn = torch.get_rng_state()
        local.train(model, data, ClientConfig(), rng=rng())
        assert torch.equal(torch.get_rng_state(), drawn)
        return model[0][0].weight.detach()

    assert torch.equal(trained(1), trained(2))


def test_batches_of_one_and_batchnorm_are_refused_with_the_remedy(data):
    with pytest.raises(TrainingError, match=r"raise client\.batch_size"):
        local.train(net(), data, ClientConfig(batch_size=1), rng=rng())
    local.train(nn.Sequential(nn.Linear(6, 2)), data, ClientConfig(batch_size=1), rng=rng())


@pytest.mark.parametrize("settings", [{}, {"optimizer": "adam"}])
def test_a_parameter_that_no_gradient_reaches_stays_as_it_is(data, settings):
    class Idle(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.used, self.idle = nn.Linear(6, 2), nn.Linear(6, 2)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.used(x)

    model = Idle()
    mask = Mask.full({"used.weight": (2, 6), "idle.weight": (2, 6)})
    before = model.idle.weight.detach().clone()
    trained = local.train(
        model, data, ClientConfig(**settings), rng=rng(), mask=mask, proximal_mu=0.1
    )
    assert torch.equal(model.idle.weight, before)
    for values in trained.slots().values():
        assert list(values) == [name for name, _ in model.named_parameters()]


ONE_STEP = {"lr": 0.1, "momentum": 0.0, "batch_size": 65}


def parameters(model: nn.Module) -> dict[str, np.ndarray]:
    return {name: p.detach().numpy().copy() for name, p in model.named_parameters()}


def test_the_proximal_term_pulls_to_the_anchor(data):
    """One step differs from the plain one by -lr mu (w - a): 0.1 * 2 * 3 upwards for a = w + 3."""
    pulled, plain = net(), net()
    anchor = {name: value + 3 for name, value in parameters(pulled).items()}
    settings, problem = ClientConfig(**ONE_STEP), local.Problem(anchor=anchor)
    local.train(pulled, data, settings, rng=rng(), proximal_mu=2.0, problem=problem)
    local.train(plain, data, settings, rng=rng())
    for name, value in parameters(plain).items():
        np.testing.assert_allclose(parameters(pulled)[name], value + 0.6, atol=1e-6)


def test_an_anchor_at_the_start_is_the_start(data):
    given, plain = net(), net()
    problem = local.Problem(anchor=parameters(given))
    for model, posed in ((given, problem), (plain, local.WHOLE)):
        local.train(
            model, data, ClientConfig(batch_size=16), rng=rng(), proximal_mu=1.0, problem=posed
        )
    for name, value in parameters(plain).items():
        assert (parameters(given)[name] == value).all()


@pytest.mark.parametrize("optimizer", ["sgd", "adam"])
def test_frozen_parameters_stay_and_may_be_trained_afterwards(data, optimizer):
    model = net()
    before = parameters(model)
    settings = ClientConfig(optimizer=optimizer, weight_decay=0.1, batch_size=16)
    problem = local.Problem(frozen=frozenset({"0.weight", "0.bias", "1.running_mean"}))
    local.train(model, data, settings, rng=rng(), problem=problem)
    moved = {name for name, value in parameters(model).items() if (value != before[name]).any()}
    assert moved == {"1.weight", "1.bias", "3.weight", "3.bias"}
    assert all(p.requires_grad for p in model.parameters())


def test_frozen_parameters_are_freed_after_an_error(data):
    model, problem = net(), local.Problem(frozen=frozenset({"0.weight"}))
    with pytest.raises(TrainingError):
        local.train(model, data, ClientConfig(lr=1e30, local_epochs=5), rng=rng(), problem=problem)
    assert all(p.requires_grad for p in model.parameters())


@pytest.mark.parametrize("optimizer", ["sgd", "adam"])
def test_entries_outside_of_the_movable_stay_to_the_bit(optimizer):
    """Whatever the memory layout, the decay and the momentum; all others move."""
    draw = np.random.default_rng(0)
    images = Dataset(draw.normal(size=(20, 3, 6, 6)).astype(np.float32), draw.integers(0, 2, 20), 2)
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.Flatten(), nn.Linear(64, 2))
    model = model.to(memory_format=torch.channels_last)
    before = parameters(model)
    bits = draw.random((4, 3, 3, 3)) < 0.5
    settings = ClientConfig(
        lr=0.01, batch_size=8, local_epochs=2, weight_decay=0.1, optimizer=optimizer
    )
    problem = local.Problem(movable=Mask.from_arrays({"0.weight": bits}))
    local.train(model, images, settings, rng=rng(), problem=problem)
    after = parameters(model)
    assert ((after["0.weight"] != before["0.weight"]) == bits).all()
    assert (after["2.weight"] != before["2.weight"]).all()


def test_a_mask_of_all_entries_as_movable_changes_nothing(data):
    given, plain = net(), net()
    movable = Mask.full({"0.weight": (16, 6), "3.weight": (2, 16)})
    settings = ClientConfig(batch_size=16)
    local.train(given, data, settings, rng=rng(), problem=local.Problem(movable=movable))
    local.train(plain, data, settings, rng=rng())
    for name, value in parameters(plain).items():
        assert (parameters(given)[name] == value).all()


@pytest.mark.parametrize("classes", [1, 2])
def test_samples_count_as_much_as_they_weigh(classes):
    """(2 l_0 + 0 l_1) / 2 is the loss of sample 0 alone."""
    draw = np.random.default_rng(0)
    x, y = draw.normal(size=(2, 6)).astype(np.float32), np.array([1, 0])
    both = Dataset(x, y.astype(np.float32) if classes == 1 else y, classes)
    torch.manual_seed(0)
    weighted, alone = nn.Sequential(nn.Linear(6, classes)), nn.Sequential(nn.Linear(6, classes))
    alone.load_state_dict(weighted.state_dict())
    settings = ClientConfig(**ONE_STEP)
    problem = local.Problem(weights=np.array([2, 0], np.float32))
    first = local.train(weighted, both, settings, rng=rng(), problem=problem)
    first_alone = Dataset(both.x[:1], both.y[:1], classes)
    second = local.train(alone, first_alone, settings, rng=rng())
    for name, value in parameters(alone).items():
        np.testing.assert_allclose(parameters(weighted)[name], value, rtol=1e-6)
    assert first.loss == pytest.approx(second.loss)
