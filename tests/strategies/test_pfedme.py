"""pFedMe: inner and outer steps by hand, the server's mixture, and what is refused."""

import numpy as np
import pytest
import torch
from torch import nn

from clients import pfedme
from clients.program import program_of
from fedsparse import models
from fedsparse.errors import ConfigError
from fedsparse.training import local
from strategies.pfedme import mixture
from tests.clients import visits
from tests.strategies.stage import constant, payload, reply, stage

PROGRAM = program_of("pfedme")


def gap(one, other):
    """The distance between two states."""
    return float(np.sqrt(sum(np.square(one[name] - other[name]).sum() for name in one)))


def by_hand(visit, rate, pull, eta, steps):
    """Return w and theta after one pass of the local data."""
    module = models.build("mlp", input_shape=(64,), classes=10, width=0.25)
    models.load_state(module, visit.received.state)
    theta = list(module.parameters())
    shared = [p.detach().clone() for p in theta]
    data = visit.job.data.train
    x, y = torch.from_numpy(data.x), torch.from_numpy(data.y)
    size = visit.job.settings.batch_size
    for index in list(local.batches(len(y), size, visit.stream("batches"))):
        for _ in range(steps):
            loss = nn.functional.cross_entropy(module(x[index]), y[index])
            gradients = torch.autograd.grad(loss, theta)
            with torch.no_grad():
                for p, g, w in zip(theta, gradients, shared, strict=True):
                    p -= rate * (g + pull * (p - w))
        shared = [w - eta * pull * (w - p.detach()) for w, p in zip(shared, theta, strict=True)]
    names = [name for name, _ in module.named_parameters()]
    return dict(zip(names, shared, strict=True)), models.get_state(module)


def test_a_clients_round_is_inner_and_outer_steps_in_turn():
    """Momentum, which the run has, plays no part in it."""
    strategy = visits.strategy(
        "pfedme", "strategy.personal_lambda=4", "strategy.inner_steps=3", "strategy.outer_lr=0.1",
        "client.momentum=0.9", "client.lr=0.03",
    )  # fmt: skip
    visit = visits.visit(strategy)
    outcome = PROGRAM.train(visit)
    shared, theta = by_hand(visit, 0.03, 4.0, 0.1, 3)
    kept = visit.recall(pfedme.OWN)
    for name, value in theta.items():
        np.testing.assert_allclose(kept[name], value, rtol=1e-4, atol=1e-6)
        np.testing.assert_allclose(outcome.kept[name], shared[name], rtol=1e-4, atol=1e-6)
    assert gap(outcome.kept, kept) > 0.01
    assert outcome.trained.samples == len(visit.job.data.train.y)


def test_an_outer_step_by_hand():
    """w - 0.1 * 3 * (w - theta) for w = 1 and theta = 0, and for w = theta."""
    strategy = visits.strategy("pfedme", "strategy.personal_lambda=3", "strategy.outer_lr=0.1")
    one, zero = {"a": np.ones(1, np.float32)}, {"a": np.zeros(1, np.float32)}
    visit = visits.visit(strategy)
    assert pfedme.outer_step(visit, one, zero)["a"] == pytest.approx(0.7)
    assert pfedme.outer_step(visit, one, one)["a"] == 1


def test_a_whole_outer_step_sends_the_personal_model():
    strategy = visits.strategy("pfedme", "strategy.personal_lambda=5", "strategy.outer_lr=0.2")
    visit = visits.visit(strategy)
    outcome = PROGRAM.train(visit)
    assert gap(outcome.kept, visit.recall(pfedme.OWN)) < 1e-5
    assert gap(outcome.kept, visit.received.state) > 0.01


def test_a_stronger_pull_leaves_the_personal_model_nearer():
    found = []
    for pull in (1, 10, 30):
        strategy = visits.strategy(
            "pfedme", f"strategy.personal_lambda={pull}", "strategy.outer_lr=1e-9"
        )
        _, theta, _ = pfedme.local_rounds(visits.visit(strategy))
        found.append(gap(theta, strategy.shared))
    assert found[0] > 1.5 * found[1] > 1.5 * 1.2 * found[2] > 0


def test_the_kept_model_is_used_and_a_new_client_finds_one():
    strategy = visits.strategy("pfedme", "strategy.inner_steps=2")
    held = visits.context()
    fresh = PROGRAM.personal(visits.visit(strategy, held=held))
    assert visits.visit(strategy, held=held).recall(pfedme.OWN) is None
    PROGRAM.train(visits.visit(strategy, held=held))
    later = visits.visit(strategy, constant(strategy, 0.0), held=held, number=2)
    used = PROGRAM.personal(later)
    assert gap(used.state, fresh.state) == 0  # of round 1, whose streams the fresh one had
    samples = len(later.job.data.train.y)
    assert (used.flops, fresh.flops) == (0, 2 * 3 * samples * 2 * 1440)


@pytest.mark.parametrize(("beta", "expected"), [(0.5, 1.5), (1, 2), (2, 3)])
def test_the_server_mixes_the_mean_with_its_own_model(beta, expected):
    """(1 - beta) 1 + beta 2, 2 being the mean of 0 and 3 by 5 and 10 samples."""
    strategy, _ = stage("strategy.name=pfedme", f"strategy.beta={beta}")
    strategy.state = constant(strategy, 1.0)
    replies = [
        reply(strategy, k, payload(strategy, value), {"num-examples": n, "loss": 0.0})
        for k, (value, n) in enumerate([(0.0, 5), (3.0, 10)])
    ]
    strategy.aggregate_train(1, replies)
    assert all((value == np.float32(expected)).all() for value in strategy.state.values())


def test_a_variance_is_never_mixed_below_zero():
    old, mean = ({"norm.running_var": np.full(1, v, np.float32)} for v in (3.0, 1.0))
    assert mixture(old, mean, 2.0)["norm.running_var"] == 1


def test_what_it_costs():
    """w beside theta, or in the place of momentum; K steps on each batch."""
    for momentum, held in ((0.0, 1440 + 42), (0.9, 0)):
        strategy = visits.strategy("pfedme", f"client.momentum={momentum}")
        assert (strategy.plan(1).held, strategy.plan(1).work) == (held, 5)


def test_steps_that_overshoot_are_refused():
    """lr lambda < 2 without momentum; eta lambda <= 1."""
    with pytest.raises(ConfigError, match=r"personal_lambda = 40: .* lower it below 40, or"):
        visits.strategy("pfedme", "strategy.personal_lambda=40", "strategy.outer_lr=0.001")
    with pytest.raises(ConfigError, match=r"outer_lr = 0.3: .* lower outer_lr to 0.25 or less"):
        visits.strategy("pfedme", "strategy.personal_lambda=4", "strategy.outer_lr=0.3")
