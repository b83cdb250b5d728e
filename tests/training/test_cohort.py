"""Clients trained at once end where each of them ends alone."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import nn

from fedsparse import models
from fedsparse.config import ClientConfig, EngineConfig
from fedsparse.data import Dataset
from fedsparse.errors import ConfigError, ModelError, TrainingError
from fedsparse.sparsity import Mask
from fedsparse.training import cohort, local, padding
from fedsparse.training.cohort import Member, Result

CPU = torch.device("cpu")
SIZES = (9, 24, 13, 16)
"""Samples of each client: unlike numbers of batches of 8, last batches of 1, 8, 5 and 8."""
SETTINGS = ClientConfig(lr=0.02, batch_size=8, local_epochs=2, keep_optimizer=True)


def rng(client: int) -> np.random.Generator:
    return np.random.default_rng([7, client])


def net(name: str, width: float = 1.0, shape: tuple[int, ...] = (1, 8, 8)) -> nn.Module:
    torch.manual_seed(0)
    return models.build(name, input_shape=shape, classes=3, width=width)


def samples(client: int, count: int, shape: tuple[int, ...] = (1, 8, 8)) -> Dataset:
    draw = np.random.default_rng([1, client])
    y = draw.integers(0, 3, count)
    x = draw.normal(size=(count, *shape)) + 0.5 * y.reshape(-1, *(1 for _ in shape))
    return Dataset(x.astype(np.float32), y, 3)


def a_mask(model: nn.Module, client: int) -> Mask:
    draw = np.random.default_rng([2, client])
    shapes = models.shapes(model, models.prunable(model))
    return Mask.from_arrays({name: draw.random(shape) < 0.4 for name, shape in shapes.items()})


def members(model: nn.Module, settings: ClientConfig = SETTINGS, **kwargs) -> list[Member]:
    """Clients of unlike sizes, each with a mask and a state of its own."""
    found = []
    shape = kwargs.get("shape", (1, 8, 8))
    for client, count in enumerate(kwargs.get("sizes", SIZES)):
        mask = a_mask(model, client)
        state = models.get_state(model)
        mask.apply_(state)
        data = samples(client, count, shape)
        found.append(Member(state, data, settings, rng(client), settings.lr, mask))
    return found


def alone(model: nn.Module, member: Member, client: int) -> Result:
    models.load_state(model, member.state)
    trained = local.train(
        model,
        member.data,
        member.settings,
        rng=rng(client),
        mask=member.mask,
        lr=member.lr,
        proximal_mu=member.proximal_mu,
        l1=member.l1,
        optimizer_state=member.optimizer_state,
    )
    return Result(trained, models.get_state(model))


def assert_equal(found: Result, expected: Result, relative: float = 1e-4) -> None:
    assert list(found.state) == list(expected.state)
    for name, value in expected.state.items():
        scale = np.abs(value).max()
        np.testing.assert_allclose(
            found.state[name], value, rtol=relative, atol=relative * scale, err_msg=name
        )
    assert found.trained.loss == pytest.approx(expected.trained.loss, rel=relative)
    assert found.trained.accuracy == pytest.approx(expected.trained.accuracy, abs=1e-6)
    assert found.trained.samples == expected.trained.samples


def assert_cohort_is_as_alone(
    model: nn.Module, together: list[Member], relative: float = 1e-4
) -> None:
    found = cohort.train(model, together, CPU)
    for client, member in enumerate(together):
        result = found[client]
        assert isinstance(result, Result)
        assert_equal(result, alone(model, member, client), relative)
        for layer in member.mask.names:
            assert not result.state[layer][~member.mask[layer]].any()


@pytest.mark.parametrize(
    ("name", "width"),
    [("linear", 1.0), ("mlp", 1.0), ("cnn", 0.5), ("paper-cnn", 0.5), ("leaf-cnn", 0.05)],
)
def test_a_cohort_ends_where_its_members_end_alone(name, width):
    model = net(name, width)
    assert_cohort_is_as_alone(model, members(model))


class Tied(nn.Module):
    """A model whose second layer is the first one again."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Linear(64, 64)
        self.again = nn.Linear(64, 64)
        self.again.weight = self.first.weight
        self.last = nn.Linear(64, 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.last(self.again(torch.relu(self.first(x.flatten(1)))))


@pytest.mark.parametrize("alike", [False, True], ids=["masks of their own", "one mask"])
def test_of_a_masked_tensor_the_kept_values_alone_come_back(alike):
    torch.manual_seed(0)
    model = Tied()
    masks = [Mask.from_arrays({"first.weight": a_mask(model, i)["first.weight"]}) for i in range(4)]
    together = [
        replace(member, mask=masks[0] if alike else mask)
        for member, mask in zip(members(model), masks, strict=True)
    ]
    for result, member in zip(cohort.train(model, together, CPU), together, strict=True):
        assert list(result.kept) == list(models.get_state(model))
        assert result.kept["first.weight"].shape == (member.mask.layer_kept()["first.weight"],)
        assert result.kept["again.weight"].shape == (64, 64)
        whole = result.state
        np.testing.assert_array_equal(whole["again.weight"], whole["first.weight"])
        for name, value in member.mask.take(whole).items():
            np.testing.assert_array_equal(result.kept[name], value)


def test_so_do_deep_models():
    """With small steps: in a deep network, rounding grows with each."""
    small, shape = SETTINGS.model_copy(update={"lr": 1e-3, "local_epochs": 1}), (1, 16, 16)
    model = net("resnet18", 0.25, shape)
    assert_cohort_is_as_alone(model, members(model, small, shape=shape, sizes=(9, 12)))
    model = net("mobilenet-v1", 0.25, shape)
    assert_cohort_is_as_alone(model, members(model, small, shape=shape, sizes=(9, 8)), 1e-3)


@pytest.mark.parametrize(
    "changed",
    [
        {"optimizer": "adam", "weight_decay": 0.1},
        {"momentum": 0.0, "weight_decay": 0.1},
        {"momentum": 0.5, "weight_decay": 0.01},
    ],
)
def test_so_does_every_optimizer_and_its_state_outlives_a_round(changed):
    model, settings = net("mlp"), SETTINGS.model_copy(update=changed)
    first = cohort.train(model, members(model, settings), CPU)
    again = [
        replace(
            member,
            state=result.state,
            optimizer_state=result.trained.slots(),
            proximal_mu=0.1,
            l1=0.01,
        )
        for member, result in zip(members(model, settings), first, strict=True)
    ]
    second = cohort.train(model, again, CPU)
    for client, member in enumerate(again):
        expected = alone(model, member, client)
        assert_equal(second[client], expected)
        slots = second[client].trained.slots()
        assert set(slots) == set(expected.trained.slots())
        for slot, tensors in expected.trained.slots().items():
            for name, value in tensors.items():
                np.testing.assert_allclose(slots[slot][name], value, rtol=1e-4, atol=1e-6)


def test_so_do_regression_and_tokens():
    draw = np.random.default_rng(0)
    settings = SETTINGS.model_copy(update={"keep_optimizer": False})

    def member(data: Dataset, model: nn.Module, client: int) -> Member:
        return Member(models.get_state(model), data, settings, rng(client), settings.lr)

    x = draw.normal(size=(20, 3)).astype(np.float32)
    line = nn.Linear(3, 1)
    together = [
        member(Dataset(x[:size], x[:size].sum(1), 1), line, client)
        for client, size in enumerate((20, 11))
    ]
    text = models.build("transformer", input_shape=(6,), classes=3, width=0.25)
    tokens = draw.integers(0, 256, (20, 6))
    reading = [
        member(Dataset(tokens[:size], tokens[:size, 0] % 3, 3), text, client)
        for client, size in enumerate((20, 11))
    ]
    for model, chosen in ((line, together), (text, reading)):
        for client, result in enumerate(cohort.train(model, chosen, CPU)):
            assert_equal(result, alone(model, chosen[client], client))


def test_cohorts_of_any_size_agree():
    model = net("cnn", 0.5)
    whole = cohort.train(model, members(model), CPU)
    for size in (1, 3):
        for one, other in zip(
            cohort.train(model, members(model), CPU, clients=size), whole, strict=True
        ):
            assert_equal(one, other)


def test_what_stands_in_the_padding_is_of_no_account(monkeypatch):
    model = net("paper-cnn", 0.5)
    whole = cohort.train(model, members(model), CPU)
    table = padding.schedule

    def other(*args: object) -> padding.Schedule:
        made = table(*args)
        last = len(made.index) - 1
        return replace(made, index=torch.where(made.weight > 0, made.index, last))

    monkeypatch.setattr(padding, "schedule", other)
    for one, same in zip(cohort.train(model, members(model), CPU), whole, strict=True):
        for name, value in same.state.items():
            np.testing.assert_array_equal(one.state[name], value)


def test_likes_are_neighbours_and_the_first_ones_train_longest():
    batches = [[np.arange(n)] * steps for steps, n in ((1, 8), (3, 8), (2, 4), (3, 8))]
    places = padding.order(batches, [8, 24, 8, 20])
    assert places == [1, 3, 2, 0]
    table = padding.schedule([batches[i] for i in places], [24, 20, 8, 8], CPU)
    assert table.active == (4, 3, 2)
    assert table.width == (8, 8, 8)
    assert table.padded == pytest.approx(8 / 72)


def test_a_member_that_diverges_fails_alone():
    model = net("cnn", 0.5)
    together = members(model)
    fine = cohort.train(model, together, CPU)
    broken = members(model)
    broken[1].data.x[5] = np.nan
    found = cohort.train(model, broken, CPU)
    assert isinstance(found[1], TrainingError)
    with pytest.raises(TrainingError) as alone_too:
        alone(model, broken[1], 1)
    assert str(found[1]) == str(alone_too.value)
    for place in (0, 2, 3):
        assert_equal(found[place], fine[place], 1e-6)


def test_models_that_a_cohort_cannot_train_are_refused():
    state = nn.Sequential(nn.Linear(4, 8), nn.BatchNorm1d(8, momentum=None), nn.Linear(8, 3))
    with pytest.raises(ModelError, match="'1' averages its statistics"):
        cohort.train(state, members(net("mlp")), CPU)
    drawing = nn.Sequential(net("mlp"), nn.Dropout(0.5))
    together = [replace(m, state=models.get_state(drawing)) for m in members(net("mlp"))]
    with pytest.raises(RuntimeError, match="random"):
        cohort.train(drawing, [replace(m, mask=None) for m in together], CPU)


def test_one_sample_or_batches_of_one_train_alone():
    model = net("mlp")
    member = members(model)[0]
    one = Dataset(member.data.x[:1], member.data.y[:1], 3)
    assert cohort.fits(member)
    assert not cohort.fits(replace(member, data=one))
    single = member.settings.model_copy(update={"batch_size": 1})
    assert not cohort.fits(replace(member, settings=single))


@pytest.mark.skipif(torch.cuda.is_available(), reason="for machines without an accelerator")
def test_a_device_that_is_not_there_is_one_line():
    with pytest.raises(ConfigError, match=r"^engine\.device = cuda: .* set it to cpu"):
        cohort.device_of(EngineConfig(device="cuda"))


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_an_accelerator_ends_where_the_cpu_ends():
    model = net("resnet18", 0.25)
    small = SETTINGS.model_copy(update={"lr": 1e-3, "local_epochs": 1})
    here = cohort.train(model, members(model, small), CPU)
    there = cohort.train(model, members(model, small), torch.device("cuda"))
    for one, other in zip(there, here, strict=True):
        assert_equal(one, other, 1e-3)


def test_bf16_stays_near_f32():
    model = net("cnn", 0.5)
    half = SETTINGS.model_copy(update={"precision": "bf16"})
    exact, near = (cohort.train(model, members(model, each), CPU)[1] for each in (SETTINGS, half))
    assert near.trained.loss != exact.trained.loss
    assert near.trained.loss == pytest.approx(exact.trained.loss, rel=0.05)
    assert near.state["fc1.weight"].dtype == np.float32
