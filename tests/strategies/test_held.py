"""Masks travel once: who is known to hold one is sent the values, and what changed."""

import numpy as np
import pytest

from fedsparse import messages, wire
from fedsparse.sparsity import Mask
from strategies.held import HeldMasks
from tests.strategies.stage import payload, play, reply, stage

MODE_BYTE = 5
MODES = ("full", "shared", "delta")
STATIC = ("strategy.name=static", "strategy.density=0.1")


def started(*assignments):
    strategy, grid = stage(*assignments)
    strategy.prepare(grid)
    return strategy, grid


def modes(sent) -> list[str]:
    """Return how the model goes to each client."""
    contents = [wire.unpack(m.content.array_records[messages.ARRAYS]) for m in sent]
    return [MODES[content[MODE_BYTE]] for content in contents]


def asked(strategy, grid, number):
    return list(strategy.configure_train(number, strategy.arrays(), None, grid))


def test_a_mask_that_stays_is_sent_in_the_first_round_alone():
    strategy, grid = started(*STATIC)
    assert modes(asked(strategy, grid, 1)) == ["full"] * 4
    play(strategy, grid, 1)
    second = asked(strategy, grid, 2)
    assert modes(second) == ["shared"] * 4
    values = wire.encode(strategy.state, mask=strategy.mask, mode="shared")
    assert wire.unpack(second[0].content.array_records[messages.ARRAYS]) == values


def test_of_a_mask_that_moved_only_the_changed_positions_are_sent():
    strategy, grid = started("strategy.granularity=model")
    play(strategy, grid, 1)
    before, after = next(iter(strategy.held._of.values())), strategy.mask
    assert before != after
    second = asked(strategy, grid, 2)
    assert modes(second) == ["delta"] * 4
    content = wire.unpack(second[0].content.array_records[messages.ARRAYS])
    assert wire.decode(content, strategy.task.schema, masks=(before,)).mask == after
    assert len(content) < len(wire.encode(strategy.state, mask=after))


def test_clients_train_the_same_model_however_it_was_sent():
    strategy, grid = started("strategy.granularity=model")
    play(strategy, grid, 1)
    short = [r.content.array_records for r in play(strategy, grid, 2)]
    again, whole = started("strategy.granularity=model")
    play(again, whole, 1)
    again.held.forget()
    full = [r.content.array_records for r in play(again, whole, 2)]
    assert short == full


def test_who_did_not_reply_is_sent_the_whole_mask_again():
    strategy, grid = started(*STATIC)
    play(strategy, grid, 1)
    list(strategy.configure_train(2, strategy.arrays(), None, grid))
    strategy.aggregate_train(2, [reply(strategy, c, payload(strategy, 1.0)) for c in (0, 1, 3)])
    assert modes(asked(strategy, grid, 3)) == ["shared", "shared", "full", "shared"]


def test_a_client_that_lost_its_mask_fails_once_and_is_then_told_again():
    strategy, grid = started(*STATIC)
    play(strategy, grid, 1)
    grid.inner.load_states({c: s for c, s in grid.inner.states().items() if c != 2})
    play(strategy, grid, 2)
    assert list(strategy.failures) == [2]
    assert "does not hold" in strategy.failures[2]
    play(strategy, grid, 3)
    assert not strategy.failures


def test_each_client_is_sent_the_shortest_form_that_it_can_read():
    rng = np.random.default_rng(0)
    bits = rng.random(5000) < 0.1
    old, new = Mask.from_arrays({"w": np.roll(bits, 1)}), Mask.from_arrays({"w": bits})
    state = {"w": np.where(bits, np.float32(1), np.float32(0))}
    held = HeldMasks()
    held.replied(new, [0, 1], [0])
    held.replied(old, [2], [2])
    sent = held.records(state, new, [0, 1, 2, 3], "f32")
    assert list(sent) == [0, 1, 2, 3]
    lengths = {client: wire.record_bytes(record) for client, record in sent.items()}
    assert lengths[0] < lengths[2] <= lengths[1] == lengths[3]
    assert sent[1] is sent[3]


def test_it_goes_through_a_checkpoint_with_each_mask_once():
    masks = [Mask.from_arrays({"w": np.arange(20) % n == 0}) for n in (2, 3)]
    held = HeldMasks()
    held.replied(masks[0], range(5), [0, 4])
    held.replied(masks[1], [2], [2])
    saved = held.state_dict()
    assert len(saved["masks"]) == 2
    again = HeldMasks()
    again.load_state_dict(saved, masks[0].shapes)
    assert again._of == held._of


def test_a_dense_model_leaves_nothing_to_hold():
    strategy, grid = started("strategy.name=fedavg", "strategy.density=1.0")
    play(strategy, grid, 1)
    assert modes(asked(strategy, grid, 2)) == ["full"] * 4
    assert not strategy.held.state_dict()["clients"]
    assert grid.inner.states() == {}


@pytest.mark.parametrize("name", ["fedtiny", "static"])
def test_flowers_own_loop_runs_our_strategies(name):
    strategy, grid = stage(f"strategy.name={name}", "strategy.density=0.1")
    strategy.directory = None
    result = strategy.start(grid.inner, strategy.arrays(), num_rounds=2)
    final = wire.decode(wire.unpack(result.arrays), strategy.task.schema)
    assert final.mask == strategy.mask
    assert strategy.density == pytest.approx(0.1, abs=1e-3)
    assert len(result.train_metrics_clientapp) == 2
