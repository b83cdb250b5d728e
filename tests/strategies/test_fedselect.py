"""FedSelect: who keeps which weights, how they are trained in turn, and who averages the rest."""

import math

import numpy as np
import pytest
from flwr.app import ConfigRecord

from clients import fedselect
from clients.program import program_of
from fedsparse import wire
from fedsparse.sparsity import Mask
from tests.clients import visits
from tests.strategies.stage import constant, play, reply, stage
from tests.tiny_runs import model_bytes, rows, run

PROGRAM = program_of("fedselect")
WEIGHTS = ("fc1.weight", "fc2.weight", "fc3.weight")
BIASES = ("fc1.bias", "fc2.bias", "fc3.bias")


def row(*values):
    """Return a layer of one row."""
    return {"a": np.array([values], np.float32)}


def bits(text):
    """Return a mask of one row from ones and zeros."""
    return Mask.from_arrays({"a": np.array([[c == "1" for c in text]])})


def half(strategy):
    """Return a mask that shares half of the weights."""
    rng = np.random.default_rng(1)
    shapes = strategy.task.shapes
    return Mask.from_arrays({name: rng.random(shape) < 0.5 for name, shape in shapes.items()})


@pytest.mark.parametrize(
    ("shared", "after", "rate", "limit", "expected"),
    [
        ("11111", (0, -3, 2, 0, 1), 0.4, 1.0, "10011"),  # the two that moved most
        ("10111", (0, -3, 2, 0, 1), 0.4, 1.0, "10010"),  # what is own already is no choice
        ("11111", (1, 1, 1, 1, 1), 0.2, 1.0, "01111"),  # the first of equals
        ("11111", (0, -3, 2, 0, 1), 0.3, 1.0, "10011"),  # 1.5 weights are two
        ("11111", (0, -3, 2, 0, 1), 0.4, 0.3, "10111"),  # a limit of 1.5 weights is one
        ("10111", (0, -3, 2, 0, 1), 0.4, 0.3, "10111"),  # which is reached
        ("11111", (0, -3, 2, 0, 1), 0.0, 1.0, "11111"),
        ("11111", (0, -3, 2, 0, 1), 1.0, 1.0, "00000"),
    ],
)
def test_what_moved_most_turns_personal(shared, after, rate, limit, expected):
    before = row(*np.zeros(5))
    found = fedselect.selected(before, row(*after), bits(shared), rate, limit)
    assert found == bits(expected)


def test_at_a_rate_of_zero_it_is_fedavg_to_the_bit(tmp_path):
    found = []
    for name, more in (
        ("fedavg", "strategy.pretrain_epochs=0"),
        ("fedselect", "strategy.personal_rate=0"),
    ):
        run(tmp_path / name, f"strategy.name={name}", more, "run.rounds=2")
        told = [(r["train_loss"], r["train_flops"]) for r in rows(tmp_path / name)]
        found.append((model_bytes(tmp_path / name), told))
    assert found[0] == found[1]


def test_own_and_shared_weights_are_trained_in_turn():
    strategy = visits.strategy("fedselect", "strategy.personal_epochs=2", "client.weight_decay=0.1")
    shared = half(strategy)
    visit = visits.visit(strategy, mask=shared)
    start = fedselect.merged(visit, shared)
    between = fedselect.fit_own(visit, start, shared)
    after, _ = fedselect.fit_shared(visit, between, shared)
    for name in WEIGHTS:
        ours = ~shared[name]
        assert (between[name][~ours] == start[name][~ours]).all()
        assert (after[name][ours] == between[name][ours]).all()
        assert (between[name][ours] != start[name][ours]).mean() > 0.9
        assert (after[name][~ours] != between[name][~ours]).mean() > 0.9
    for name in BIASES:
        assert (between[name] == start[name]).all()
        assert (after[name] != between[name]).any()


def test_a_client_uses_its_own_weights_where_it_shares_none():
    strategy = visits.strategy("fedselect", "strategy.personal_rate=0.2")
    held = visits.context()
    outcome = PROGRAM.train(visits.visit(strategy, mask=strategy.first_mask(0), held=held))
    sevens = constant(strategy, 7.0)
    visit = visits.visit(strategy, sevens, outcome.mask, held=held, number=2)
    own = visit.recall(fedselect.OWN)
    used = PROGRAM.personal(visit).state
    for name in WEIGHTS:
        shared = outcome.mask[name]
        assert (~shared).sum() == math.ceil(0.2 * shared.size)
        assert (used[name][shared] == 7).all()
        assert (used[name][~shared] == own[name][~shared]).all()
        assert (own[name][~shared] != 7).all()
        assert not own[name][shared].any()  # no more is kept than what is its own
        assert len(outcome.kept[name]) == shared.sum()  # nor sent than what is shared
    assert all((used[name] == 7).all() for name in BIASES)


def test_a_client_that_lost_its_memory_begins_anew_from_the_initial_weights():
    strategy = visits.strategy("fedselect")
    shared = half(strategy)
    visit = visits.visit(strategy, constant(strategy, 7.0), shared)
    found = fedselect.merged(visit, shared)
    for name in WEIGHTS:
        assert (found[name][shared[name]] == 7).all()
        assert (found[name] == visit.job.initial[name])[~shared[name]].all()


def test_a_weight_is_the_mean_over_those_that_share_it():
    """(1 * 10 + 4 * 20) / 30 = 3 where both do, else what one sent, or the old value."""
    strategy, grid = stage("strategy.name=fedselect")
    strategy.state = constant(strategy, 9.0)
    list(strategy.configure_train(1, strategy.arrays(), ConfigRecord(), grid))
    masks = []
    for seed in (0, 1):
        rng = np.random.default_rng(seed)
        shapes = strategy.task.shapes
        masks.append(Mask.from_arrays({n: rng.random(s) < 0.5 for n, s in shapes.items()}))
    replies = []
    for client, (value, examples) in enumerate([(1.0, 10), (4.0, 20)]):
        content = wire.encode(constant(strategy, value), mask=masks[client])
        told = {"num-examples": examples, "loss": 0.0}
        replies.append(reply(strategy, client, content, told))
    strategy.aggregate_train(1, replies)
    for name in WEIGHTS:
        one, other = masks[0][name], masks[1][name]
        expected = np.where(one & other, 3, np.where(one, 1, np.where(other, 4, 9)))
        assert (strategy.state[name] == expected).all()
    assert all((strategy.state[name] == 3).all() for name in BIASES)
    assert strategy.masks == {0: masks[0], 1: masks[1]}


def test_own_weights_grow_to_the_limit_and_replies_shrink():
    strategy, grid = stage(
        "strategy.name=fedselect", "strategy.personal_rate=0.2", "strategy.personal_limit=0.5"
    )
    strategy.prepare(grid)
    sizes, before = [], None
    for number in range(1, 5):
        replies = play(strategy, grid, number)
        assert len(strategy.masks) == 4
        sizes.append(sum(wire.record_bytes(r.content.array_records["arrays"]) for r in replies))
        for name, shape in strategy.task.shapes.items():
            size = math.prod(shape)
            most = min(number * math.ceil(0.2 * size), size // 2)
            assert strategy.masks[0].layer_kept()[name] == size - most
        if before is not None:
            assert (strategy.masks[0] - before).kept == 0  # once own, always own
        before = strategy.masks[0]
    assert sizes[0] > sizes[1] > sizes[2]
    assert strategy.masks[0] != strategy.masks[1]
    assert (strategy.density, strategy.kept()) == (1.0, None)


def test_what_it_costs():
    """1440 weights before the round and a bit for each; 3 epochs beside 2, where any is own."""
    strategy = visits.strategy("fedselect", "client.local_epochs=2", "strategy.personal_epochs=3")
    plan = strategy.plan(1)
    assert (plan.held, plan.work) == (1440 + 45, 2.5)
    first, later = strategy.first_mask(0), half(strategy)
    costs = [PROGRAM.train(visits.visit(strategy, mask=mask)).price for mask in (first, later)]
    samples = len(visits.visit(strategy, mask=first).job.data.train.y)
    assert [cost.flops for cost in costs] == [3 * samples * 2 * 2880, 2.5 * 3 * samples * 2 * 2880]
