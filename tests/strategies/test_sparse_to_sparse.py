"""FedSpa and DisPFL: masks that move, what is sent under which, and who averages with whom."""

from math import cos, pi

import numpy as np
import pytest
from flwr.app import ConfigRecord

from clients.sparse_to_sparse import moved_mask
from fedsparse import messages, wire
from fedsparse.sparsity import Mask, allocation
from strategies.sums import Weighted
from strategies.task import masked
from tests.strategies.stage import constant, play, reply, stage

SPARSE = ("strategy.density=0.3", "run.rounds=5", "data.client_test_fraction=0.3")
BOTH = pytest.mark.parametrize("name", ["fedspa", "dispfl"])


def started(name, *assignments):
    strategy, grid = stage(f"strategy.name={name}", *SPARSE, *assignments)
    strategy.prepare(grid)
    return strategy, grid


def asked(strategy, grid, number):
    return list(strategy.configure_train(number, strategy.arrays(), ConfigRecord(), grid))


def payload_of(message, record=messages.ARRAYS):
    return wire.unpack(message.content.array_records[record])


# -- moves ------------------------------------------------------------------------------------


def test_the_smallest_weights_are_dropped_and_the_largest_gradients_grow():
    state = {"w": np.array([0.5, 0.1, -0.9, 0.0, 0.0, 0.0], np.float32)}
    mask = Mask.from_arrays({"w": np.array([1, 1, 1, 0, 0, 0], bool)})
    gradients = {"w": (np.array([3, 5]), np.array([0.2, -0.7], np.float32))}
    moved = moved_mask(state, mask, gradients, {"w": 1})
    assert moved["w"].tolist() == [True, False, True, False, False, True]
    moved = moved_mask(state, mask, gradients, {"w": 2})
    assert moved["w"].tolist() == [False, False, True, True, False, True]
    assert moved_mask(state, mask, {}, {}) == mask


def test_how_many_move_follows_the_cosine_as_far_as_there_are_any():
    strategy, _ = started("fedspa", "strategy.alpha=0.5")
    sizes = {name: int(np.prod(shape)) for name, shape in strategy.task.shapes.items()}
    first, *_ = sizes
    kept = dict.fromkeys(sizes, 100)
    assert sizes[first] == 1024
    for number in range(1, 6):
        rate = 0.25 * (1 + cos(pi * (number - 1) / 5))
        assert strategy.moves(number, kept)[first] == int(np.ceil(rate * 100 - 1e-9))
    nearly = {name: size - 3 for name, size in sizes.items()}
    assert set(strategy.moves(1, nearly).values()) == {3}
    assert strategy.moves(1, sizes) == {}
    assert strategy.moves(1, dict.fromkeys(sizes, 1)) == {}


def test_masks_move_in_the_rounds_that_are_due():
    strategy, grid = started("fedspa", "strategy.adjust_every=2")
    masks = []
    for number in range(1, 5):
        replies = play(strategy, grid, number)
        assert all((messages.GROWTH in r.content) == (number % 2 == 0) for r in replies)
        masks.append(dict(strategy.masks))
    assert masks[0] == {client: strategy.first_mask(client) for client in range(4)}
    assert masks[0] != masks[1] == masks[2] != masks[3]


@BOTH
@pytest.mark.parametrize("masks", ["common", "own"])
@pytest.mark.parametrize("rule", ["erk", "uniform"])
def test_every_clients_layers_keep_just_their_number_at_all_times(name, masks, rule):
    more = (f"strategy.masks={masks}", f"strategy.allocation={rule}", "fleet.clients_per_round=3")
    strategy, grid = started(name, *more)
    shapes = strategy.task.shapes
    counts = allocation.layer_counts(shapes, allocation.ALLOCATIONS[rule](shapes, 0.3))
    firsts = {strategy.first_mask(client) for client in range(4)}
    assert len(firsts) == (1 if masks == "common" else 4)
    for number in range(1, 6):
        before = {client: strategy.mask_of(client) for client in range(4)}
        play(strategy, grid, number)
        assert not strategy.failures
        for client in range(4):
            assert strategy.mask_of(client).layer_kept() == counts
            moved = strategy.mask_of(client).hamming(before[client])
            limit = 2 * sum(strategy.asked.values()) if client in strategy.seats else 0
            assert moved == limit
    assert strategy.density == sum(counts.values()) / 1440
    assert sum(counts.values()) == round(0.3 * 1440)


@BOTH
def test_what_was_trained_is_sent_as_values_alone_and_the_moves_beside_it(name):
    strategy, grid = started(name)
    play(strategy, grid, 1)
    before = dict(strategy.masks)
    messages_sent = asked(strategy, grid, 2)
    for client, message in enumerate(grid.send_and_receive(messages_sent)):
        sent = before[client]
        assert payload_of(messages_sent[client])[5] == payload_of(message)[5] == 1  # shared
        assert wire.decode(payload_of(message), strategy.schema, masks=(sent,)).mask == sent
        flips = wire.decode_mask(payload_of(message, messages.GROWTH), sent.shapes)
        assert flips.kept == 2 * sum(strategy.asked.values()) > 0


@BOTH
def test_moves_that_were_not_asked_for_are_refused(name):
    strategy, grid = started(name, "fleet.min_replies=0.1")
    play(strategy, grid, 1)
    before = dict(strategy.masks)
    answers = grid.send_and_receive(asked(strategy, grid, 2))
    flips = [np.zeros(strategy.task.shapes[n], bool) for n in strategy.task.shapes]
    none = Mask.from_arrays(dict(zip(strategy.task.shapes, flips, strict=True)))
    answers[0].content[messages.GROWTH] = wire.pack(wire.encode_mask(none))
    every = Mask.full(strategy.task.shapes)
    answers[1].content[messages.GROWTH] = wire.pack(wire.encode_mask(every))
    answers[2] = reply(strategy, 2, payload_of(answers[2]))
    strategy.aggregate_train(2, answers)
    assert sorted(strategy.failures) == [0, 1, 2]
    assert "drops 0 weights" in strategy.failures[0]
    assert "were asked for" in strategy.failures[1]
    assert strategy.failures[2] == "the reply lacks 'growth'"
    assert {c: strategy.masks[c] == before[c] for c in range(4)} == {0: 1, 1: 1, 2: 1, 3: 0}


@BOTH
def test_a_lost_reply_leaves_both_sides_with_the_mask_that_the_server_knows(name):
    strategy, grid = started(name)
    play(strategy, grid, 1)
    known = strategy.masks[1]
    answers = grid.send_and_receive(asked(strategy, grid, 2))
    strategy.aggregate_train(2, [answers[0], *answers[2:]])
    assert strategy.masks[1] == known
    again = asked(strategy, grid, 3)
    assert [payload_of(m)[5] for m in again] == [1, 0, 1, 1]  # values alone, but for client 1
    assert wire.decode(payload_of(again[1]), strategy.schema).mask == known
    strategy.aggregate_train(3, grid.send_and_receive(again))
    assert not strategy.failures
    assert strategy.masks[1] != known


# -- FedSpa -----------------------------------------------------------------------------------


def test_fedspa_adds_masked_updates_to_a_dense_model():
    strategy, grid = started("fedspa", "strategy.masks=own", "strategy.alpha=0")
    old = {name: value.copy() for name, value in strategy.state.items()}
    replies = play(strategy, grid, 1)
    samples = [r.content.metric_records[messages.METRICS]["num-examples"] for r in replies]
    name = strategy.task.prunable[0]
    expected = old[name].astype(np.float64)
    for client, message in enumerate(replies):
        mask = strategy.first_mask(client)
        trained = wire.decode(payload_of(message), strategy.schema, masks=(mask,)).state[name]
        expected += samples[client] / sum(samples) * mask[name] * (trained - old[name])
    assert np.allclose(strategy.state[name], expected, atol=1e-6)
    assert np.count_nonzero(strategy.state[name]) > 0.9 * 1024
    assert strategy.mask is None


def test_fedspa_with_one_mask_that_stays_is_masked_fedavg_to_the_bit():
    strategy, grid = started("fedspa", "strategy.alpha=0")
    static, other = stage("strategy.name=static", *SPARSE, "strategy.pretrain_epochs=0")
    static.prepare(other)
    static.mask = strategy.first_mask(0)
    static.state = masked(strategy.state, static.mask)
    for number in (1, 2):
        play(strategy, grid, number)
        play(static, other, number)
    mine = masked(strategy.state, static.mask)
    assert all(mine[name].tobytes() == value.tobytes() for name, value in static.state.items())


# -- DisPFL -----------------------------------------------------------------------------------


def ready(*assignments):
    """Return DisPFL with clients 0 to 2 that have models of 1, 3 and 8 under unlike masks."""
    strategy, grid = started("dispfl", "strategy.masks=own", *assignments)
    for client, value in enumerate((1.0, 3.0, 8.0)):
        mask = strategy.first_mask(client)
        strategy.models[client] = Weighted(mask.take(constant(strategy, value)), mask, 1)
    return strategy, grid


def test_dispfl_averages_each_weight_over_those_that_keep_it_and_masks_the_mean():
    strategy, _ = ready()
    own, near, far = (strategy.first_mask(c) for c in range(3))
    strategy.masks[0] = strategy.first_mask(3)  # moved since client 0 trained
    mean = strategy.mean_for(0, 2)
    name = strategy.task.prunable[0]
    keepers = own[name].astype(int) + near[name] + far[name]
    total = own[name] * 1.0 + near[name] * 3.0 + far[name] * 8.0
    expected = np.where(keepers > 0, total / np.maximum(keepers, 1), 0.0)
    expected[~strategy.masks[0][name]] = 0.0
    assert np.allclose(mean[name], expected, atol=1e-6)
    bias = next(n for n in mean if n.endswith("bias"))
    assert np.allclose(mean[bias], 4.0)


def test_a_client_of_dispfl_that_has_not_trained_is_no_part_of_a_mean():
    strategy, _ = ready()
    mean, name = strategy.mean_for(3, 2), strategy.task.prunable[0]
    masks = [strategy.first_mask(c)[name] for c in range(3)]
    keepers = sum(mask.astype(int) for mask in masks)
    total = masks[0] * 1.0 + masks[1] * 3.0 + masks[2] * 8.0
    expected = np.where(keepers > 0, total / np.maximum(keepers, 1), strategy.initial[name])
    expected[~strategy.first_mask(3)[name]] = 0.0
    assert np.allclose(mean[name], expected, atol=1e-6)


def test_neighbours_are_drawn_anew_among_others_that_have_trained():
    strategy, _ = started("dispfl", "strategy.neighbours=2", "fleet.clients=12")
    model = Weighted({}, None, 1)
    strategy.models = dict.fromkeys(range(10), model)
    drawn = {tuple(strategy.neighbours_of(4, number)) for number in range(1, 9)}
    assert all(len(set(each)) == 2 and 4 not in each and max(each) < 10 for each in drawn)
    assert len(drawn) > 3
    assert strategy.neighbours_of(4, 1) == strategy.neighbours_of(4, 1)
    strategy.models = dict.fromkeys((1, 4, 7), model)
    assert strategy.neighbours_of(4, 1) == [1, 7]


def test_a_client_without_neighbours_goes_on_from_its_own_model():
    strategy, grid = started("dispfl", "strategy.neighbours=0", "strategy.alpha=0")
    replies = play(strategy, grid, 1)
    for client, message in enumerate(asked(strategy, grid, 2)):
        mask = strategy.masks[client]
        sent = wire.decode(payload_of(message), strategy.schema, masks=(mask,)).state
        had = wire.decode(payload_of(replies[client]), strategy.schema, masks=(mask,)).state
        assert all(np.array_equal(sent[name], had[name]) for name in had)


def test_in_round_one_each_client_has_the_initial_model_under_its_mask():
    strategy, grid = started("dispfl", "strategy.masks=own")
    for client, message in enumerate(asked(strategy, grid, 1)):
        decoded = wire.decode(payload_of(message), strategy.schema)
        assert decoded.mask == strategy.first_mask(client)
        expected = masked(strategy.initial, decoded.mask)
        assert all(np.array_equal(decoded.state[n], v) for n, v in expected.items())


def test_a_client_tests_the_model_that_it_trained_last():
    strategy, grid = started("dispfl", "fleet.clients_per_round=3")
    play(strategy, grid, 1)
    (absent,) = set(range(4)) - set(strategy.models)
    tests = list(strategy.configure_evaluate(5, strategy.arrays(), ConfigRecord(), grid))
    for client, message in enumerate(tests):
        held = strategy.masks.get(client)
        decoded = wire.decode(
            payload_of(message), strategy.schema, masks=() if held is None else (held,)
        )
        if client == absent:
            assert decoded.mask == strategy.first_mask(client)
            continue
        own = strategy.models[client]
        assert decoded.mask == own.mask != held
        assert all(np.array_equal(v, own.mask.take(decoded.state)[n]) for n, v in own.kept.items())
    answers = grid.send_and_receive(tests)
    assert not any(answer.has_error() for answer in answers)
