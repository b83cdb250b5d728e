"""Clients with masks of their own: the mean over keepers, whose mask is whose, what is refused."""

import numpy as np
import pytest

from fedsparse import messages, wire
from fedsparse.errors import ConfigError
from fedsparse.sparsity import Mask
from strategies.replies import Reply
from strategies.sums import Weighted, mean_of, own_mask_mean
from tests.strategies.stage import play, reply, stage

LOTTERY = (
    "strategy.name=lotteryfl",
    "strategy.density=0.5",
    "strategy.accuracy_threshold=0",
    "strategy.prune_rate=0.2",
)
FEDAVG = ("strategy.name=fedavg", "strategy.density=1.0", "strategy.pretrain_epochs=0")
MODE_BYTE, FULL, SHARED = 5, 0, 1


def started(*assignments):
    strategy, grid = stage(*assignments)
    strategy.prepare(grid)
    return strategy, grid


def bits(*values):
    return Mask.from_arrays({"w": np.array(values, bool)})


def model(mask, w, b, weight=1):
    kept = {"w": np.array(w, np.float32), "b": np.array([b], np.float32)}
    return Weighted(kept, mask, weight)


OLD = {"w": np.full(3, 9, np.float32), "b": np.zeros(1, np.float32)}
TWO = [model(bits(1, 1, 0), [2, 4], 1, 1), model(bits(0, 1, 0), [8], 5, 3)]


def test_the_mean_is_over_those_that_keep_a_weight_by_samples():
    mean = own_mask_mean(TWO, OLD)
    assert mean["w"].tolist() == [2, (4 + 3 * 8) / 4, 9]
    assert mean["b"].tolist() == [(1 + 3 * 5) / 4]


def test_those_that_prune_a_weight_may_count_as_if_it_had_stayed():
    mean = own_mask_mean(TWO, OLD, absent_stay=True)
    assert mean["w"].tolist() == [(2 + 3 * 9) / 4, (4 + 3 * 8) / 4, 9]
    assert mean["b"].tolist() == [4]


def test_no_models_leave_the_old_one():
    for stay in (False, True):
        assert own_mask_mean([], OLD, absent_stay=stay)["w"].tolist() == [9, 9, 9]


@pytest.mark.parametrize("stay", [False, True])
def test_the_mean_does_not_depend_on_the_order(stay):
    rng = np.random.default_rng(0)
    old = {"w": rng.normal(size=500).astype(np.float32)}
    models = []
    for weight in range(1, 9):
        mask = Mask.from_arrays({"w": rng.random(500) < 0.3})
        kept = {"w": rng.normal(size=mask.kept).astype(np.float32) * 10.0 ** rng.integers(-6, 6)}
        models.append(Weighted({"w": kept["w"].astype(np.float32)}, mask, weight))
    mean = own_mask_mean(models, old, absent_stay=stay)["w"]
    again = own_mask_mean(models[::-1], old, absent_stay=stay)["w"]
    assert mean.tobytes() == again.tobytes()
    if not stay:  # the same mean as where a sum is held for each mask
        replies = [Reply(k, m.weight, m.kept, 0.0, None, mask=m.mask) for k, m in enumerate(models)]
        assert mean.tobytes() == mean_of(replies, old, None)["w"].tobytes()


def test_a_client_that_was_not_asked_keeps_its_mask():
    strategy, grid = started(*LOTTERY, "fleet.clients_per_round=2")
    play(strategy, grid, 1)
    first = dict(strategy.masks)
    play(strategy, grid, 2)
    assert len(first) == 2
    asked = set(strategy.seats)
    for client, mask in first.items():
        assert (strategy.masks[client] == mask) == (client not in asked)


def test_figures_are_the_mean_over_all_clients_also_of_those_not_heard_of():
    strategy, grid = started(*LOTTERY, "fleet.clients_per_round=1")
    assert strategy.density == 1
    play(strategy, grid, 1)
    (mask,) = strategy.masks.values()
    assert strategy.density == pytest.approx((mask.density + 3) / 4, abs=1e-12)
    layers = mask.layer_density()
    assert strategy.layer_density == pytest.approx({n: (d + 3) / 4 for n, d in layers.items()})


def sent(messages_sent):
    return [wire.unpack(m.content.array_records[messages.ARRAYS]) for m in messages_sent]


def test_a_lost_reply_leaves_both_sides_with_the_mask_that_the_server_knows():
    strategy, grid = started(*LOTTERY)
    play(strategy, grid, 1)
    known = strategy.masks[2]
    asked = list(strategy.configure_train(2, strategy.arrays(), None, grid))
    assert [content[MODE_BYTE] for content in sent(asked)] == [SHARED] * 4
    replies = grid.send_and_receive(asked)  # each client prunes on; one reply is lost
    strategy.aggregate_train(2, [*replies[:2], replies[3]])
    assert strategy.masks[2] == known != strategy.masks[1]
    asked = list(strategy.configure_train(3, strategy.arrays(), None, grid))
    contents = sent(asked)
    assert [content[MODE_BYTE] for content in contents] == [SHARED, SHARED, FULL, SHARED]
    assert wire.decode(contents[2], strategy.schema).mask == known
    strategy.aggregate_train(3, grid.send_and_receive(asked))
    assert not strategy.failures
    assert strategy.masks[2].density < known.density


def test_a_reply_under_a_denser_mask_or_none_is_refused():
    strategy, grid = started(*LOTTERY, "fleet.min_replies=0.1")
    play(strategy, grid, 1)
    list(strategy.configure_train(2, strategy.arrays(), None, grid))
    state, mask = strategy.state, strategy.masks[0]
    other = Mask.from_arrays({n: b for n, b in mask.items() if n != mask.names[0]})
    answers = [
        reply(strategy, 0, wire.encode(state, mask=Mask.full(mask.shapes))),
        reply(strategy, 1, wire.encode(state)),
        reply(strategy, 2, wire.encode(state, mask=other)),
        reply(strategy, 3, wire.encode(state, mask=strategy.masks[3])),
    ]
    strategy.aggregate_train(2, answers)
    assert list(strategy.failures) == [0, 1, 2]
    assert "keeps 1024 weights" in strategy.failures[0]
    assert "other tensors" in strategy.failures[1]
    assert "other tensors" in strategy.failures[2]
    assert strategy.masks[0] == mask


@pytest.mark.parametrize("name", ["lotteryfl", "sub-fedavg", "fedspa", "dispfl"])
def test_a_smaller_share_of_a_mask_is_refused_in_one_line(name):
    with pytest.raises(ConfigError, match="or one that each chooses itself") as told:
        stage(f"strategy.name={name}", "strategy.density=0.3", "fleet.fit=density")
    assert "\n" not in str(told.value)


@pytest.mark.parametrize("name", ["lotteryfl", "sub-fedavg", "fedspa", "dispfl"])
def test_masks_and_models_go_through_a_checkpoint(name):
    settings = (f"strategy.name={name}", "strategy.density=0.3", "fleet.clients_per_round=3")
    strategy, grid = started(*settings)
    for number in (1, 2):
        play(strategy, grid, number)
    again, _ = stage(*settings)
    again.load_state_dict(strategy.state_dict())
    assert again.masks == strategy.masks != {}
    for mine, other in zip(
        sent(strategy.configure_train(3, strategy.arrays(), None, grid)),
        sent(again.configure_train(3, again.arrays(), None, grid)),
        strict=True,
    ):
        assert mine == other


@pytest.mark.parametrize("backend", ["auto", "torch"])
@pytest.mark.parametrize("name", ["lotteryfl", "sub-fedavg", "fedspa"])
def test_with_every_weight_kept_it_is_fedavg_to_the_bit(name, backend):
    training = ("client.local_epochs=3", "client.momentum=0.9", f"client.backend={backend}")
    mine, grid = started(f"strategy.name={name}", "strategy.density=1.0", *training)
    plain, other = started(*FEDAVG, *training)
    for number in (1, 2):
        play(mine, grid, number)
        play(plain, other, number)
    assert mine.density == 1
    for tensor, value in plain.state.items():
        assert mine.state[tensor].tobytes() == value.tobytes(), tensor
