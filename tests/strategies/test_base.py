"""What sparse strategies share: which replies count, when a round goes on, who is asked."""

import math

import numpy as np
import pytest
from flwr.app import Array, ArrayRecord, ConfigRecord, Error, Message, RecordDict

from fedsparse import messages, wire
from fedsparse.config import FleetConfig
from fedsparse.errors import TooFewRepliesError
from fedsparse.sparsity import Mask
from strategies.addressing import cohort, require_replies
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


def telling(key, value):
    return with_metrics(**{"num-examples": 10, "loss": 0.5, key: value})


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
    "no samples": (counting(0), "num-examples is 0; it must be an integer from 1"),
    "fewer than no samples": (counting(-1), "num-examples is -1"),
    "half a sample": (counting(1.5), "num-examples is 1.5"),
    "samples without number": (counting(10**30), f"num-examples is {10**30}"),
    "samples by the hundred digits": (counting(10**400), "is an integer of 1329 bits"),
    "a list of samples": (counting([1, 2]), "num-examples is a list"),
    "samples in words": (counting("x"), "the reply lacks 'metrics'"),
    "samples yes": (counting(True), "the reply lacks 'metrics'"),
    "no sample count": (with_metrics(loss=0.5), "the reply lacks 'num-examples'"),
    "no loss": (with_metrics(**{"num-examples": 10}), "the reply lacks 'loss'"),
    "a loss of NaN": (telling("loss", math.nan), "loss is nan; it must be a number"),
    "an infinite loss": (telling("loss", -math.inf), "loss is -inf"),
    "a loss of 400 digits": (telling("loss", -(10**400)), "loss is an integer of 1329 bits"),
    "a list of losses": (telling("loss", [0.5]), "loss is a list"),
    "an accuracy of NaN": (telling("accuracy", math.nan), "accuracy is nan"),
    "a list of accuracies": (telling("accuracy", []), "accuracy is a list"),
    "arithmetic of NaN": (telling("train-flops", math.nan), "train-flops is nan"),
    "infinite arithmetic": (telling("train-flops", math.inf), "train-flops is inf"),
    "arithmetic undone": (telling("train-flops", -1.0), "train-flops is -1.0"),
    "a list of arithmetic": (telling("train-flops", [1.0]), "train-flops is a list"),
    "more memory than there is": (telling("memory-bytes", 2**70), f"memory-bytes is {2**70}"),
    "half a byte": (telling("memory-bytes", 0.5), "memory-bytes is 0.5; it must be an integer"),
    "memory undone": (telling("memory-bytes", -1), "memory-bytes is -1"),
    "a list of memory": (telling("memory-bytes", [1]), "memory-bytes is a list"),
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


def test_figures_at_their_limits_are_taken():
    strategy, _ = prepared()
    told = {"num-examples": 2**53, "loss": 1e300, "accuracy": -3.5}
    told |= {"train-flops": 0, "memory-bytes": 2**63 - 1}
    _, metrics = strategy.aggregate_train(
        1, [reply(strategy, k, payload(strategy, 1.0), told) for k in range(4)]
    )
    assert strategy.failures == {}
    assert dict(metrics) == {"loss": 1e300, "clients": 4}


def test_a_client_that_replies_twice_counts_once_by_its_first_reply():
    strategy, _ = prepared()
    first, second, other = (
        reply(strategy, k, payload(strategy, v)) for k, v in ((0, 1.0), (0, 9.0), (1, 2.0))
    )
    _, metrics = strategy.aggregate_train(1, [first, second, other])
    assert metrics["clients"] == 2
    for name, expected in constant(strategy, 1.5).items():
        np.testing.assert_array_equal(strategy.state[name], expected)


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


UNTESTED = {
    "nothing": ({}, "lacks 'num-examples'"),
    "no accuracy": ({"num-examples": 3, "loss": 0.0}, "lacks 'accuracy'"),
    "no sample count": ({"loss": 0.0, "accuracy": 1.0}, "lacks 'num-examples'"),
    "a list": ({"num-examples": 3, "loss": [0.0], "accuracy": 1.0}, "loss is a list"),
    "NaN": ({"num-examples": 3, "loss": 0.0, "accuracy": math.nan}, "accuracy is nan"),
    "fewer than no samples": (
        {"num-examples": -3, "loss": 0.0, "accuracy": 1.0},
        "num-examples is -3",
    ),
}


@pytest.mark.parametrize("case", UNTESTED)
def test_an_evaluation_that_cannot_be_trusted_is_named_and_left_out(case):
    told, reason = UNTESTED[case]
    strategy, _ = prepared()
    good = reply(strategy, 0, None, {"num-examples": 1, "loss": 2.0, "accuracy": 0.5})
    bad = reply(strategy, 1, None, told)
    assert dict(strategy.aggregate_evaluate(1, [good, bad])) == {"accuracy": 0.5, "loss": 2.0}
    assert list(strategy.failures) == [1]
    assert reason in strategy.failures[1]
    assert strategy.aggregate_evaluate(1, [bad]) is None


def test_an_evaluation_without_metrics_is_left_out():
    strategy, _ = prepared()
    empty = Message(
        RecordDict(), reply_to=Message(RecordDict(), strategy.directory.node_of[2], "evaluate")
    )
    assert strategy.aggregate_evaluate(1, [empty]) is None
    assert strategy.failures == {2: "the reply lacks 'metrics'"}


@pytest.mark.parametrize("cls", [FedAvg, StaticMask])
def test_a_strategy_continues_from_its_state(cls):
    name = {FedAvg: ("strategy.name=fedavg",), StaticMask: HALF}[cls]
    strategy, grid = stage(*name)
    strategy.prepare(grid)
    fresh = cls(Task.of(tiny(*name, "model.name=mlp", "model.width=0.25")))
    fresh.load_state_dict(strategy.state_dict())
    assert wire.unpack(fresh.arrays()) == wire.unpack(strategy.arrays())
    assert fresh.density == strategy.density
