"""LotteryFL and Sub-FedAvg: when clients prune, how much, what is rewound, what travels."""

import numpy as np
import pytest
from flwr.app import ConfigRecord

from clients.lottery import rewound
from clients.sub_fedavg import distance
from clients.tickets import prune_smallest
from fedsparse import messages, wire
from fedsparse.sparsity import Mask, allocation
from tests.strategies.stage import constant, play, stage

ALWAYS = (
    "strategy.density=0.5",
    "strategy.accuracy_threshold=0",
    "strategy.prune_rate=0.2",
    "client.local_epochs=2",
)
FEDAVG = ("strategy.name=fedavg", "strategy.density=1.0", "strategy.pretrain_epochs=0")
STILL = ("client.lr=1e-9",)
"""Training that leaves the model, but for a billionth, as it was."""


def started(*assignments):
    strategy, grid = stage(*assignments)
    strategy.prepare(grid)
    return strategy, grid


def kept(*values):
    return Mask.from_arrays({"w": np.array(values, bool)})


def own_tests(strategy, grid):
    """Return what each client's test of its personal model says."""
    asked = strategy.configure_evaluate(1, strategy.arrays(), ConfigRecord(), grid)
    return [dict(r.content.metric_records[messages.METRICS]) for r in grid.send_and_receive(asked)]


def expected(count: int, rate: float, steps: int, least: int) -> int:
    for _ in range(steps):
        count = max(least, count - int(np.ceil(rate * count - 1e-9)))
    return count


# -- one step of pruning ------------------------------------------------------------------


def test_the_smallest_of_what_is_kept_goes_and_at_least_one():
    state = {"w": np.array([0.1, -0.5, 0.3, 0.2, 7.0], np.float32)}
    mask = kept(1, 1, 1, 1, 0)
    assert prune_smallest(state, mask, 0.5, {"w": 1}) == kept(0, 1, 1, 0, 0)
    assert prune_smallest(state, mask, 0.1, {"w": 1}) == kept(0, 1, 1, 1, 0)


def test_no_step_goes_below_what_is_asked_for():
    state = {"w": np.array([0.1, -0.5, 0.3, 0.2], np.float32)}
    assert prune_smallest(state, kept(1, 1, 1, 1), 0.9, {"w": 3}) == kept(0, 1, 1, 1)
    assert prune_smallest(state, kept(0, 1, 1, 1), 0.9, {"w": 3}) == kept(0, 1, 1, 1)


@pytest.mark.parametrize("rate", [0.1, 0.3, 0.7])
def test_steps_lead_to_the_density_and_every_step_is_a_part_of_the_last(rate):
    rng = np.random.default_rng(1)
    state = {"a": rng.normal(size=(13, 7)), "b": rng.normal(size=3)}
    mask, least = Mask.full({"a": (13, 7), "b": (3,)}), {"a": 9, "b": 1}
    for _ in range(60):
        after = prune_smallest(state, mask, rate, least)
        assert after & mask == after
        mask = after
    assert mask.layer_kept() == least
    assert mask["a"].reshape(-1)[np.abs(state["a"]).argsort(axis=None)[-9:]].all()


def test_the_distance_of_masks_is_the_mean_over_layers():
    one = Mask.from_arrays({"a": np.array([1, 1, 0, 0], bool), "b": np.array([1, 0], bool)})
    other = Mask.from_arrays({"a": np.array([1, 0, 1, 0], bool), "b": np.array([1, 0], bool)})
    assert distance(one, one) == 0
    assert distance(one, other) == (2 / 4 + 0) / 2


# -- a run of rounds ------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["lotteryfl", "sub-fedavg"])
@pytest.mark.parametrize("rule", ["uniform", "erk"])
def test_layers_come_down_by_the_rate_to_just_their_share_of_the_density(name, rule):
    more = ("strategy.distance_threshold=0",) if name == "sub-fedavg" else ()
    strategy, grid = started(
        f"strategy.name={name}", *ALWAYS, f"strategy.allocation={rule}", "client.lr=0.1", *more
    )
    shapes = strategy.task.shapes
    least = allocation.layer_counts(shapes, allocation.ALLOCATIONS[rule](shapes, 0.5))
    for number in range(1, 6):
        play(strategy, grid, number)
        assert not strategy.failures
        for mask in strategy.masks.values():
            for layer, count in mask.layer_kept().items():
                size = int(np.prod(shapes[layer]))
                assert count == expected(size, 0.2, number, least[layer])
    assert all(mask.layer_kept() == least for mask in strategy.masks.values())
    assert strategy.density == 720 / 1440
    # LotteryFL's clients prune the global weights: alike, where they prune in the same rounds.
    assert len(set(strategy.masks.values())) == (4 if name == "sub-fedavg" else 1)


def test_a_ticket_that_is_good_enough_is_pruned_and_rewound():
    strategy, grid = started("strategy.name=lotteryfl", *ALWAYS, *STILL)
    initial = {name: value.copy() for name, value in strategy.state.items()}
    strategy.state = constant(strategy, 0.25)
    replies = play(strategy, grid, 1)
    for client, answer in enumerate(replies):
        payload = wire.unpack(answer.content.array_records[messages.ARRAYS])
        decoded = wire.decode(payload, strategy.schema, masks=(Mask.full(strategy.task.shapes),))
        assert decoded.mask == strategy.masks[client]
        for name, value in rewound(initial, decoded.mask).items():
            assert np.allclose(decoded.state[name], value, atol=1e-6), name


def test_a_ticket_that_is_not_good_enough_goes_on_as_it_is():
    strategy, grid = started(
        "strategy.name=lotteryfl", *ALWAYS, *STILL, "strategy.accuracy_threshold=1"
    )
    strategy.state = constant(strategy, 0.25)
    play(strategy, grid, 1)
    assert strategy.density == 1
    assert all(np.allclose(value, 0.25, atol=1e-6) for value in strategy.state.values())


def test_weights_in_nobodys_ticket_stay_as_they_were():
    strategy, grid = started("strategy.name=lotteryfl", *ALWAYS)
    play(strategy, grid, 1)
    before = {name: value.copy() for name, value in strategy.state.items()}
    play(strategy, grid, 2)
    masks = list(strategy.masks.values())
    for name in strategy.task.prunable:
        kept_by = sum(mask[name].astype(int) for mask in masks)
        assert (strategy.state[name][kept_by == 0] == before[name][kept_by == 0]).all()
        assert (strategy.state[name][kept_by > 0] != before[name][kept_by > 0]).any()


def test_only_the_ticket_travels_once_pruning_has_ended():
    strategy, grid = started("strategy.name=lotteryfl", *ALWAYS)
    for number in range(1, 5):
        play(strategy, grid, number)
    asked = list(strategy.configure_train(5, strategy.arrays(), ConfigRecord(), grid))
    least = len(wire.encode(strategy.state, mask=strategy.masks[0], mode="shared"))
    for message in [*asked, *grid.send_and_receive(asked)]:
        assert wire.record_bytes(message.content.array_records[messages.ARRAYS]) == least
    assert least < 4 * (720 + 42) + 64


def test_a_test_of_the_samples_is_paid_for_only_while_there_is_something_to_prune():
    strategy, grid = started("strategy.name=lotteryfl", *ALWAYS, "strategy.accuracy_threshold=1")
    dense, other = started(*FEDAVG, "client.local_epochs=2")
    mine = [flops(r) for r in play(strategy, grid, 1)]
    plain = [flops(r) for r in play(dense, other, 1)]
    assert mine == pytest.approx([value * (1 + 1 / 6) for value in plain])
    strategy, grid = started("strategy.name=lotteryfl", "strategy.density=1.0", *ALWAYS[1:])
    assert [flops(r) for r in play(strategy, grid, 1)] == plain


def flops(message) -> float:
    return message.content.metric_records[messages.METRICS]["train-flops"]


@pytest.mark.parametrize("key", ["accuracy_threshold=1", "distance_threshold=0.9"])
def test_subnetworks_stay_whole_where_a_condition_does_not_hold_and_that_is_fedavg(key):
    training = ("client.local_epochs=3", "client.momentum=0.9", "client.lr=0.1")
    strategy, grid = started("strategy.name=sub-fedavg", *ALWAYS, f"strategy.{key}", *training)
    plain, other = started(*FEDAVG, *training)
    for number in (1, 2):
        play(strategy, grid, number)
        play(plain, other, number)
    assert strategy.density == 1
    assert all(strategy.state[n].tobytes() == v.tobytes() for n, v in plain.state.items())


@pytest.mark.parametrize("epochs", [1, 3])
def test_a_subnetwork_whose_mask_still_moves_is_pruned_after_its_training(epochs):
    strategy, grid = started(
        "strategy.name=sub-fedavg",
        *ALWAYS,
        "strategy.distance_threshold=0",
        f"client.local_epochs={epochs}",
        "client.lr=0.2",
    )
    play(strategy, grid, 1)
    counts = {
        name: expected(int(np.prod(s)), 0.2, 1, 0) for name, s in strategy.task.shapes.items()
    }
    assert [mask.layer_kept() for mask in strategy.masks.values()] == [counts] * 4


def test_a_mask_that_training_does_not_move_is_not_pruned():
    strategy, grid = started("strategy.name=sub-fedavg", *ALWAYS, *STILL)
    play(strategy, grid, 1)
    assert strategy.density == 1


@pytest.mark.parametrize(("name", "same"), [("sub-fedavg", True), ("lotteryfl", False)])
def test_the_personal_model_is_the_subnetwork_as_trained_or_the_ticket_of_the_global(name, same):
    strategy, grid = started(
        f"strategy.name={name}", *ALWAYS, "data.client_test_fraction=0.4", "client.lr=0.1"
    )
    play(strategy, grid, 1)
    before = own_tests(strategy, grid)
    strategy.state = constant(strategy, 0.0)
    after = own_tests(strategy, grid)
    assert (before == after) == same
