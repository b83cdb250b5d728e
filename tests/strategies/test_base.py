"""What sparse strategies share: which replies count, when a round goes on, who is asked."""

import math

import numpy as np
import pytest
from flwr.app import Array, ArrayRecord, ConfigRecord, Error, Message, RecordDict

from fedsparse import messages, wire
from fedsparse.config import FleetConfig
from fedsparse.errors import TooFewRepliesError
from fedsparse.sparsity import Mask
from strategies.addressing import cohort
from strategies.base import require_replies
from strategies.fedavg import FedAvg
from strategies.static_mask import StaticMask
from strategies.task import Task
from tests.strategies.stage import constant, payload, reply, stage
from tests.tiny_runs import tiny

HALF = ("strategy.name=static", "strategy.density=0.5", "strategy.pretrain_epochs=0")


def prepared(*assignments):
    """A static mask at density 0.5 and its metered grid, after `prepare`."""
    strategy, grid = stage(*HALF, *assignments)
    strategy.prepare(grid)
    return strategy, grid


def failing(strategy, client):
    """An error with a traceback, as Flower's engine sends it."""
    error = Error(2, "Traceback (most recent call last):\n  File ...\nValueError: out of memory")
    node = strategy.directory.node_of[client]
    return Message(error, reply_to=Message(RecordDict(), node, messages.TRAIN))


def with_metrics(**metrics):
    return lambda s, k: reply(s, k, payload(s, 9.0), metrics)


def with_payload(make):
    return lambda s, k: reply(s, k, make(s))


def counting(samples):
    return with_metrics(**{"num-examples": samples, "loss": 0.5})


def masked_otherwise(strategy):
    mask = Mask.full(strategy.task.shapes) - strategy.mask
    return wire.encode(constant(strategy, 9.0), mask=mask)


def of_another_model(strategy):
    return wire.encode({**constant(strategy, 9.0), "extra.bias": np.zeros(2, np.float32)})


def damaged(strategy):
    whole = bytearray(payload(strategy, 9.0))
    whole[len(whole) // 2] ^= 1
    return bytes(whole)


def plain(strategy):
    return ArrayRecord({n: Array(a) for n, a in constant(strategy, 9.0).items()})


SHARED_OF_ANOTHER_MASK = with_payload(
    lambda s: wire.encode(constant(s, 9.0), mask=Mask.full(s.task.shapes) - s.mask, mode="shared")
)
UNTRUSTED = {
    "error": (failing, "ValueError: out of memory"),
    "masked otherwise": (with_payload(masked_otherwise), "masked unlike the model that was sent"),
    "values of another mask": (SHARED_OF_ANOTHER_MASK, "which this side does not hold"),
    "not masked": (
        with_payload(lambda s: wire.encode(constant(s, 9.0))),
        "masked unlike the model that was sent",
    ),
    "another model": (with_payload(of_another_model), "of another model"),
    "truncated": (with_payload(lambda s: payload(s, 9.0)[:-5]), "damaged"),
    "cut to nothing": (with_payload(lambda s: b""), "cut short"),
    "a bit flipped": (with_payload(damaged), "checksum does not match"),
    "not a number": (with_payload(lambda s: payload(s, math.nan)), "NaN or infinity"),
    "infinite": (with_payload(lambda s: payload(s, math.inf)), "NaN or infinity"),
    "plain arrays": (with_payload(plain), "no fedsparse payload"),
    "no model": (with_payload(lambda s: None), "the reply lacks 'arrays'"),
    "no samples": (counting(0), "counts 0 samples"),
    "fewer than no samples": (counting(-1), "counts -1 samples"),
    "half a sample": (counting(1.5), "counts 1.5 samples"),
    "samples in words": (counting("x"), "the reply lacks 'metrics'"),
    "samples yes": (counting(True), "the reply lacks 'metrics'"),
    "no sample count": (with_metrics(loss=0.5), "the reply lacks 'num-examples'"),
    "no loss": (with_metrics(**{"num-examples": 10}), "the reply lacks 'loss'"),
    "a loss of NaN": (with_metrics(**{"num-examples": 10, "loss": math.nan}), "loss is nan"),
}  # fmt: skip


@pytest.mark.parametrize("case", UNTRUSTED)
def test_a_reply_that_cannot_be_trusted_is_named_and_left_out(case):
    make, reason = UNTRUSTED[case]
    strategy, _ = prepared()
    mask = strategy.mask
    good = [reply(strategy, k, payload(strategy, value)) for k, value in ((0, 1.0), (3, 2.0))]
    _, metrics = strategy.aggregate_train(1, [good[0], make(strategy, 1), good[1]])
    assert list(strategy.failures) == [1]
    assert reason in strategy.failures[1]
    assert "\n" not in strategy.failures[1]
    assert metrics["clients"] == 2
    assert strategy.mask == mask
    for name, expected in constant(strategy, 1.5).items():
        np.testing.assert_array_equal(strategy.state[name], expected)


@pytest.mark.parametrize("case", UNTRUSTED)
def test_too_few_replies_leave_model_and_mask_as_before(case):
    make, _ = UNTRUSTED[case]
    strategy, _ = prepared("fleet.min_replies=0.75")
    before = strategy.state_dict()
    replies = [reply(strategy, 0, payload(strategy, 1.0)), make(strategy, 1), make(strategy, 2)]
    with pytest.raises(TooFewRepliesError, match=r"1 of 4 clients replied.*asks for 3; client 1"):
        strategy.aggregate_train(1, replies)
    after = strategy.state_dict()
    for part in ("state", "mask"):
        assert all(np.array_equal(before[part][n], after[part][n]) for n in before[part])


def test_failures_are_those_of_the_last_round():
    strategy, _ = prepared()
    good = [reply(strategy, k, payload(strategy, 1.0)) for k in range(3)]
    strategy.aggregate_train(1, [*good, failing(strategy, 3)])
    assert strategy.failures == {3: "ValueError: out of memory"}
    strategy.aggregate_train(2, good)
    assert strategy.failures == {}


@pytest.mark.parametrize(
    ("least", "asked", "enough"),
    [(0.5, 4, 2), (0.5, 5, 3), (1.0, 7, 7), (0.01, 4, 1), (0.55, 100, 55), (0.07, 100, 7)],
)
def test_the_least_number_of_replies_is_the_fraction_rounded_up(least, asked, enough):
    """Also where the product is a hair above a whole number, as 0.55 * 100 is."""
    require_replies(enough, asked, least, {})
    with pytest.raises(TooFewRepliesError, match=f"{enough - 1} of {asked} .* asks for {enough}"):
        require_replies(enough - 1, asked, least, {})


def test_nobody_is_never_enough():
    with pytest.raises(TooFewRepliesError, match="0 of 4 clients replied"):
        require_replies(0, 4, 0.001, {})


FLEET = FleetConfig(clients=20, clients_per_round=6)


def rounds(seed, fleet=FLEET):
    return [cohort(fleet, seed, number) for number in range(1, 31)]


def test_a_cohort_has_each_client_at_most_once_and_changes_from_round_to_round():
    drawn = rounds(0)
    assert all(clients == sorted(set(clients)) and len(clients) == 6 for clients in drawn)
    assert len({tuple(clients) for clients in drawn}) > 25
    assert {client for clients in drawn for client in clients} == set(range(20))


def test_a_seed_draws_the_same_cohorts_again_and_another_seed_others():
    assert rounds(3) == rounds(3)
    assert rounds(3) != rounds(4)


def test_everybody_takes_part_where_no_number_is_given():
    assert cohort(FleetConfig(clients=5), 0, 1) == [0, 1, 2, 3, 4]
    assert cohort(FleetConfig(clients=5, clients_per_round=5), 0, 1) == [0, 1, 2, 3, 4]


def test_two_strategies_with_one_seed_ask_the_same_clients():
    """Gate G6: comparisons are fair only if cohorts don't depend on the method."""

    def asked(seed, *assignments):
        strategy, grid = stage(
            "fleet.clients=12", "fleet.clients_per_round=4", f"run.seed={seed}", *assignments
        )
        strategy.prepare(grid)
        return [
            [
                grid.directory.client_of[message.metadata.dst_node_id]
                for message in strategy.configure_train(n, strategy.arrays(), ConfigRecord(), grid)
            ]
            for n in range(1, 6)
        ]

    tiny_ = asked(0, "strategy.name=fedtiny", "strategy.selection=none")
    assert tiny_ == asked(0, "strategy.name=fedavg") == asked(0, *HALF)
    assert tiny_ != asked(1, "strategy.name=fedavg")


def test_all_of_a_cohort_get_the_same_model_and_plan():
    strategy, grid = prepared()
    asked = strategy.configure_train(1, strategy.arrays(), ConfigRecord(), grid)
    assert [m.metadata.message_type for m in asked] == ["train"] * 4
    assert [grid.directory.client_of[m.metadata.dst_node_id] for m in asked] == [0, 1, 2, 3]
    for message in asked:
        decoded = wire.decode(wire.unpack(message.content["arrays"]), strategy.task.schema)
        assert decoded.mask == strategy.mask
        config, plan = messages.read_config(message.content["config"])
        assert config == strategy.task.config
        assert plan.round == 1


def test_evaluation_is_the_mean_over_clients_samples():
    strategy, _ = prepared()
    tested = [
        reply(strategy, k, None, {"num-examples": n, "loss": loss, "accuracy": accuracy})
        for k, (n, loss, accuracy) in enumerate([(1, 4.0, 0.0), (3, 0.0, 1.0)])
    ]
    metrics = strategy.aggregate_evaluate(1, [*tested, failing(strategy, 2)])
    assert dict(metrics) == {"accuracy": 0.75, "loss": 1.0}
    assert strategy.aggregate_evaluate(1, [failing(strategy, 0)]) is None


@pytest.mark.parametrize("cls", [FedAvg, StaticMask])
def test_a_strategy_continues_from_its_state(cls):
    name = {FedAvg: ("strategy.name=fedavg",), StaticMask: HALF}[cls]
    strategy, grid = stage(*name)
    strategy.prepare(grid)
    fresh = cls(Task.of(tiny(*name, "model.name=mlp", "model.width=0.25")))
    fresh.load_state_dict(strategy.state_dict())
    assert wire.unpack(fresh.arrays()) == wire.unpack(strategy.arrays())
    assert fresh.density == strategy.density
