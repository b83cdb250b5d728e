"""FedEM: EM by hand, components that differ and travel together, and mixtures at use."""

import math

import numpy as np
import pytest
import torch

from clients import fedem
from clients.program import program_of
from fedsparse import models, wire
from fedsparse.errors import FedSparseError
from fedsparse.models.parts import copied, copy_of
from fedsparse.training import local
from tests.clients import visits
from tests.strategies.stage import play, stage

PROGRAM = program_of("fedem")


def two(number, other):
    """Return the state of two components."""
    state = {copied(0, name): value for name, value in number.items()}
    return state | {copied(1, name): value for name, value in other.items()}


@pytest.mark.parametrize(
    ("weights", "expected"),
    [
        ((0.5, 0.5), (0.75, 0.25)),  # e^0 : e^-ln3 = 3 : 1
        ((0.25, 0.75), (0.5, 0.5)),  # 1 * 3 : 3 * 1
        ((0.0, 1.0), (0.0, 1.0)),
    ],
)
def test_responsibilities_by_hand(weights, expected):
    found = fedem.responsibilities(np.array([[0.0, math.log(3)]]), np.array(weights))
    np.testing.assert_allclose(found, [expected], rtol=1e-12)


def test_responsibilities_of_huge_losses_are_finite():
    found = fedem.responsibilities(np.array([[5000.0, 5000.0], [0.0, 9e9]]), np.full(2, 0.5))
    np.testing.assert_allclose(found, [[0.5, 0.5], [1.0, 0.0]])


def test_the_mixture_and_what_a_sample_counts_by_hand():
    shares = np.array([[0.75, 0.25], [0.25, 0.75], [0.8, 0.2]])
    np.testing.assert_allclose(fedem.mixture(shares), [0.6, 0.4])
    np.testing.assert_allclose(fedem.sample_weights(shares, 1), [0.5, 1.5, 0.4], rtol=1e-6)


def test_each_component_is_trained_by_its_responsibilities():
    strategy = visits.strategy("fedem", "strategy.components=2")
    visit = visits.visit(strategy)
    outcome = PROGRAM.train(visit)
    parts, job = fedem.components_of(visit), visit.job
    shares = fedem.responsibilities(fedem.losses(visit, parts), np.full(2, 0.5))
    module = models.build("mlp", input_shape=(64,), classes=10, width=0.25)
    for number in (0, 1):
        models.load_state(module, parts[number])
        weights = 2 * shares[:, number].astype(np.float32)
        local.train(
            module, job.data.train, job.settings, rng=visit.stream("batches"),
            problem=local.Problem(weights=weights),
        )  # fmt: skip
        for name, value in models.get_state(module).items():
            assert (outcome.kept[copied(number, name)] == value).all()
    kept = fedem.recall_mixture(visit)
    np.testing.assert_allclose(kept, shares.mean(0), rtol=1e-6)
    assert kept.sum() == pytest.approx(1, abs=1e-6)


def test_the_loss_of_a_sample_is_that_of_the_component():
    visit = visits.visit(visits.strategy("fedem", "strategy.components=2"))
    parts, data = fedem.components_of(visit), visit.job.data.train
    found = fedem.losses(visit, parts)
    assert found.shape == (len(data.y), 2)
    for number, state in enumerate(parts):
        models.load_state(visit.job.model, state)
        tested = local.evaluate(visit.job.model, data)
        assert found[:, number].mean() == pytest.approx(tested.loss, rel=1e-5)


def trained(visit, state):
    """Return a model after much training on the client's data."""
    model = visit.job.model
    models.load_state(model, state)
    local.train(
        model, visit.job.data.train, visit.job.settings, rng=np.random.default_rng(0), epochs=30
    )
    return models.get_state(model)


def test_a_client_comes_to_use_the_component_that_knows_its_data():
    strategy = visits.strategy("fedem", "strategy.components=2")
    plain = visits.visit(strategy)
    first, _ = fedem.components_of(plain)
    expert = trained(plain, first)
    held = visits.context()
    visit = visits.visit(strategy, two(first, expert), held=held)
    newcomer = PROGRAM.test(visit)
    assert fedem.recall_mixture(visit) is None
    assert newcomer.flops == 2 * len(visit.job.data.train.y) * 2 * 1440
    PROGRAM.train(visit)
    assert fedem.recall_mixture(visit)[1] > 0.8
    models.load_state(visit.job.model, expert)
    alone = local.evaluate(visit.job.model, visit.job.data.test)
    for tested in (newcomer, PROGRAM.test(visit)):
        assert tested.result.accuracy == pytest.approx(alone.accuracy, abs=0.1)
    assert PROGRAM.test(visit).flops == 0


def test_what_is_tested_is_the_mixture_of_probabilities():
    visit = visits.visit(visits.strategy("fedem", "strategy.components=2"))
    first, other = fedem.components_of(visit)
    sharp = {name: 5 * value for name, value in other.items()}
    found = fedem.evaluate(visit, [first, sharp], np.array([0.7, 0.3]))
    data, mixed = visit.job.data.test, 0.0
    for weight, state in ((0.7, first), (0.3, sharp)):
        models.load_state(visit.job.model, state)
        with torch.no_grad():
            mixed = mixed + weight * visit.job.model(torch.from_numpy(data.x)).softmax(1).numpy()
    assert found.loss == pytest.approx(
        -np.log(mixed[np.arange(len(data.y)), data.y]).mean(), rel=1e-5
    )
    assert found.accuracy == pytest.approx((mixed.argmax(1) == data.y).mean())
    assert found.samples == len(data.y)


def test_a_regression_mixes_outputs():
    strategy = visits.strategy(
        "fedem", "strategy.components=2", "data.name=synthetic-regression", "model.name=linear",
        "data.partition=iid", small=("data.samples=200",),
    )  # fmt: skip
    visit = visits.visit(strategy)
    first, other = fedem.components_of(visit)
    halves = {name: (first[name] + other[name]) / 2 for name in first}
    found = fedem.evaluate(visit, [first, other], np.array([0.5, 0.5]))
    models.load_state(visit.job.model, halves)
    between = local.evaluate(visit.job.model, visit.job.data.test)  # outputs of a linear model
    assert found.loss == pytest.approx(between.loss, rel=1e-4)
    assert found.accuracy == pytest.approx(between.accuracy, rel=1e-4)
    assert np.isfinite(PROGRAM.train(visit).trained.loss)


def test_all_components_travel_as_one_payload_and_begin_unlike_each_other():
    strategy, grid = stage("strategy.name=fedem", "strategy.components=3")
    strategy.prepare(grid)
    initial = models.get_state(strategy.task.model)
    names = [copied(number, name) for number in range(3) for name in initial]
    assert list(strategy.state) == names
    parts = [copy_of(number, strategy.state) for number in range(3)]
    assert all((parts[0][name] == value).all() for name, value in initial.items())
    weights = [part["fc1.weight"] for part in parts]
    assert not any((weights[i] == weights[j]).any() for i, j in ((0, 1), (0, 2), (1, 2)))
    for one in play(strategy, grid, 1):
        content = wire.unpack(one.content.array_records["arrays"])
        assert list(wire.decode(content, strategy.schema).state) == names
    assert list(strategy.state) == names
    assert 3 * 4 * 1482 < len(wire.unpack(strategy.arrays())) < 3 * 4 * 1482 + 200


def test_one_component_is_fedavg_but_for_rounding():
    found = []
    for name, more in (
        ("fedavg", "strategy.pretrain_epochs=0"),
        ("fedem", "strategy.components=1"),
    ):
        strategy, grid = stage(f"strategy.name={name}", more, "client.backend=torch")
        strategy.prepare(grid)
        for number in (1, 2):
            play(strategy, grid, number)
        found.append(strategy.state)
    for name, value in found[0].items():
        np.testing.assert_allclose(found[1][copied(0, name)], value, rtol=1e-4, atol=1e-6)


def test_it_has_no_single_model():
    visit = visits.visit(visits.strategy("fedem"))
    with pytest.raises(FedSparseError, match=r"no single model.*choose another"):
        PROGRAM.personal(visit)


def test_what_it_costs():
    """Two more models of 1482 numbers; 3 trainings and 3 forward passes, a third of an epoch."""
    strategy = visits.strategy("fedem", "client.local_epochs=2")
    assert strategy.plan(1).held == 2 * 1482
    assert strategy.plan(1).work == pytest.approx(3 + 3 / 6)
