"""Ditto: FedAvg's model to the bit, and beside it personal models that never travel."""

import numpy as np
import pytest

from clients import ditto
from clients.program import program_of
from fedsparse import models
from fedsparse.errors import ConfigError
from fedsparse.training import local
from fedsparse.training.local import Problem
from tests.clients import visits
from tests.tiny_runs import model_bytes, rows, run

PROGRAM = program_of("ditto")


def gap(one, other):
    """The distance between two states."""
    return float(np.sqrt(sum(np.square(one[name] - other[name]).sum() for name in one)))


@pytest.mark.parametrize("pull", [0.0, 1.0])
def test_the_global_model_and_its_traffic_are_fedavgs_to_the_bit(tmp_path, pull):
    found = []
    for name, more in (
        ("fedavg", ("strategy.pretrain_epochs=0",)),
        ("ditto", (f"strategy.personal_lambda={pull}",)),
    ):
        out = tmp_path / name
        run(out, f"strategy.name={name}", "fleet.clients_per_round=2", *more)
        told = ("accuracy", "train_loss", "bytes_up", "bytes_down")
        found.append((model_bytes(out), [[row[key] for key in told] for row in rows(out)]))
    assert found[0] == found[1]


def test_the_personal_model_goes_on_where_it_was_left_and_is_pulled_to_the_received_one():
    strategy = visits.strategy(
        "ditto", "strategy.personal_lambda=0.5", "strategy.personal_epochs=2"
    )
    held, received = visits.context(), dict(strategy.shared)
    module = models.build("mlp", input_shape=(64,), classes=10, width=0.25)
    expected = received
    for number in (1, 2):
        received = {name: value + 0.01 * (number - 1) for name, value in strategy.shared.items()}
        visit = visits.visit(strategy, received, held=held, number=number)
        models.load_state(module, expected)
        local.train(
            module, visit.job.data.train, visit.job.settings, rng=visit.stream("personal"),
            epochs=2, proximal_mu=0.5, problem=Problem(anchor=received),
        )  # fmt: skip
        expected = models.get_state(module)
        PROGRAM.train(visit)
        kept = PROGRAM.personal(visit)
        assert all((kept.state[name] == value).all() for name, value in expected.items())
        assert kept.flops == 0


def test_without_a_pull_the_personal_model_knows_of_no_other():
    strategy = visits.strategy("ditto", "strategy.personal_lambda=0")
    held, other = visits.context(), visits.context()
    for number, away in ((1, 0.0), (2, 1.0)):
        for memory, shift in ((held, 0.0), (other, away)):
            state = {name: value + np.float32(shift) for name, value in strategy.shared.items()}
            PROGRAM.train(visits.visit(strategy, state, held=memory, number=number))
    one, two = (visits.visit(strategy, held=m).recall(ditto.OWN) for m in (held, other))
    assert gap(one, two) == 0


def test_a_stronger_pull_leaves_the_personal_model_nearer():
    found = []
    for pull in (0.0, 1.0, 10.0):
        strategy = visits.strategy(
            "ditto", f"strategy.personal_lambda={pull}", "strategy.personal_epochs=5"
        )
        found.append(gap(ditto.fit_personal(visits.visit(strategy)), strategy.shared))
    assert found[0] > 1.1 * found[1] > 1.1 * 1.1 * found[2] > 0


def test_a_client_without_a_model_of_its_own_trains_one_for_its_use():
    strategy = visits.strategy("ditto", "strategy.personal_epochs=3")
    visit = visits.visit(strategy)
    used = PROGRAM.personal(visit)
    assert visit.recall(ditto.OWN) is None
    assert gap(used.state, ditto.fit_personal(visit)) == 0
    assert used.flops == 3 * 3 * len(visit.job.data.train.y) * 2 * 1440


def test_what_it_costs():
    """The other model's 1482 numbers, and 3 epochs beside 2."""
    strategy = visits.strategy("ditto", "client.local_epochs=2", "strategy.personal_epochs=3")
    assert strategy.plan(1).held == 1440 + 42
    assert strategy.plan(1).work == 2.5


def test_a_pull_that_overshoots_is_refused():
    """lr lambda < 2 (1 + 0.9): below 76 for lr = 0.05."""
    visits.strategy("ditto", "strategy.personal_lambda=75.9")
    with pytest.raises(ConfigError, match=r"personal_lambda = 76: .* lower it below 76, or"):
        visits.strategy("ditto", "strategy.personal_lambda=76")
