"""Robust rules: worked out by hand, the same in any order, and never led by a minority."""

from types import SimpleNamespace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fedsparse.errors import ConfigError, TooFewRepliesError
from fedsparse.sparsity import Mask
from strategies import robust
from strategies.combining import rule_of
from strategies.replies import Before, Reply
from strategies.stack import Stack
from strategies.sums import mean_of
from strategies.task import Task
from tests.strategies.stage import QUICK, play, stage
from tests.tiny_runs import tiny


def bits(*values):
    return Mask.from_arrays({"w": np.array(values, bool)})


WHOLE = bits(1, 1, 1)
OLD = {"w": np.array([1, 1, 9], np.float32), "bn.running_var": np.array([4], np.float32)}
BEFORE = Before(1, OLD, WHOLE, 0)


def model(client, w, var=4.0, mask=WHOLE, examples=1):
    kept = {"w": np.array(w, np.float32), "bn.running_var": np.array([var], np.float32)}
    return Reply(client, examples, kept, 0.0, None, mask=mask)


def stack(*replies):
    return Stack.of(replies, BEFORE)


FIVE = [
    model(0, [1, 10, 9], 1),
    model(1, [2, 20, 9], 2),
    model(2, [3, 30, 9], 3),
    model(3, [4, 40, 9], 4),
    model(4, [1000, -1000, 9], 1000),
]


def test_the_median_is_taken_entry_by_entry():
    assert robust.coordinate_median(stack(*FIVE)).tolist() == [3, 20, 9, 3]
    assert robust.coordinate_median(stack(*FIVE[:4])).tolist() == [2.5, 25, 9, 2.5]


def test_a_trimmed_mean_leaves_the_ends_out():
    ones = np.ones(5)
    assert robust.trimmed_mean(stack(*FIVE), 1, ones).tolist() == [3, 20, 9, 3]
    weights = np.array([1.0, 1.0, 2.0, 1.0, 1.0])
    assert robust.trimmed_mean(stack(*FIVE), 1, weights).tolist()[0] == (2 + 2 * 3 + 4) / 4


UNLIKE = [
    model(0, [5, 7], mask=bits(1, 1, 0)),
    model(1, [6], mask=bits(1, 0, 0)),
    model(2, [7], mask=bits(1, 0, 0)),
]


@pytest.mark.parametrize(
    "rule", [robust.coordinate_median, lambda s: robust.trimmed_mean(s, 1, np.ones(3))]
)
def test_an_entry_is_made_by_those_that_keep_it_and_stays_where_nobody_does(rule):
    found = stack(*UNLIKE)
    assert found.model(rule(found), BEFORE)["w"].tolist() == [6, 7, 9]


def test_distances_under_unlike_masks_are_those_of_common_entries_scaled():
    ours, theirs = model(0, [0, 0], mask=bits(1, 1, 0)), model(1, [3, 5], mask=bits(1, 0, 1))
    assert robust.distances(stack(ours, theirs))[0, 1] == 4 / 2 * 3**2  # w_0 and the variance
    apart = [
        Reply(k, 1, {"w": np.array([1], np.float32)}, 0.0, None, mask=m)
        for k, m in enumerate((bits(1, 0, 0), bits(0, 1, 0)))
    ]
    before = Before(1, {"w": OLD["w"]}, WHOLE)
    assert robust.distances(Stack.of(apart, before))[0, 1] == np.inf


def test_krum_takes_the_model_with_the_nearest_neighbours():
    models = [model(k, [w, 0, 9]) for k, w in enumerate([0, 1, 3, 7, 1000])]
    squared = robust.distances(stack(*models))
    assert squared[0].tolist() == [0, 1, 9, 49, 1e6]
    assert robust.krum_scores(squared, 1).tolist() == [
        1 + 9,
        1 + 4,
        4 + 9,
        16 + 36,
        993**2 + 997**2,
    ]
    assert robust.krum(stack(*models), 1).tolist() == [1, 0, 9, 4]
    mean = robust.multi_krum(stack(*models), 1, np.ones(5))
    assert mean.tolist() == [(0 + 1 + 3 + 7) / 4, 0, 9, 4]


def test_updates_are_clipped_to_a_length_and_statistics_are_the_median():
    models = [model(0, [4, 5, 9], 1), model(1, [1, 1, 9], 2), model(2, [31, 41, 9], 900)]
    # the updates (3, 4), (0, 0), (30, 40) have lengths 5, 0, 50: the median is 5
    found = robust.norm_clip(stack(*models), np.ones(3), None)
    assert found == pytest.approx([1 + (3 + 0 + 3) / 3, 1 + (4 + 0 + 4) / 3, 9, 2])
    short = robust.norm_clip(stack(*models), np.ones(3), 1.0)
    assert short == pytest.approx([1 + 1.2 / 3, 1 + 1.6 / 3, 9, 2])


def test_trust_goes_by_the_angle_to_the_servers_update_and_takes_its_length():
    own = np.array([3.0, 4.0, 0.0, 0.0])
    along, against, across = [1.6, 1.8, 9], [-29, -39, 9], [1 + 4, 1 - 3, 9]
    found = robust.trust(stack(model(0, along), model(1, against, 5), model(2, across)), own)
    assert found == pytest.approx([1 + 3, 1 + 4, 9, 4])
    alone = robust.trust(stack(model(0, against, 7), model(1, across, 7)), own)
    assert alone == pytest.approx([1 + 3, 1 + 4, 9, 7])


RULES = {
    "median": lambda s: robust.coordinate_median(s),
    "trimmed-mean": lambda s: robust.trimmed_mean(s, 1, np.ones(len(s.clients))),
    "krum": lambda s: robust.krum(s, 1),
    "multi-krum": lambda s: robust.multi_krum(s, 1, np.ones(len(s.clients))),
    "norm-clip": lambda s: robust.norm_clip(s, np.ones(len(s.clients)), None),
    "trust": lambda s: robust.trust(s, np.array([1.0, -1.0, 0.0, 0.0])),
}
values = st.floats(-100, 100, width=32)
cohorts = st.lists(st.lists(values, min_size=3, max_size=3), min_size=5, max_size=9)


@pytest.mark.parametrize("rule", RULES)
@settings(max_examples=40, deadline=None)
@given(rows=cohorts, data=st.data())
def test_no_rule_looks_at_the_order_of_replies(rule, rows, data):
    replies = [model(k, w) for k, w in enumerate(rows)]
    turned = data.draw(st.permutations(replies))
    assert RULES[rule](stack(*replies)).tobytes() == RULES[rule](stack(*turned)).tobytes()


@settings(max_examples=60, deadline=None)
@given(honest=cohorts, data=st.data())
def test_median_and_trimmed_mean_stay_within_what_honest_clients_sent(honest, data):
    f = (len(honest) - 1) // 2
    wild = st.lists(st.sampled_from([-3e38, 0.0, 3e38]), min_size=3, max_size=3)
    bad = data.draw(st.lists(wild, min_size=f, max_size=f))
    replies = [model(k, w) for k, w in enumerate([*honest, *bad])]
    found = stack(*replies)
    low, high = np.min(honest, axis=0), np.max(honest, axis=0)
    for entries in (
        robust.coordinate_median(found),
        robust.trimmed_mean(found, f, np.ones(len(replies))),
    ):
        assert (entries[:3] >= low - 1e-9 * abs(low)).all()
        assert (entries[:3] <= high + 1e-9 * abs(high)).all()


@settings(max_examples=40, deadline=None)
@given(rows=cohorts, data=st.data())
def test_with_nobody_hostile_a_trimmed_mean_is_the_mean(rows, data):
    counts = data.draw(st.lists(st.integers(1, 50), min_size=len(rows), max_size=len(rows)))
    replies = [model(k, w, examples=n) for k, (w, n) in enumerate(zip(rows, counts, strict=True))]
    found = stack(*replies)
    trimmed = robust.trimmed_mean(found, 0, robust.weights_of(found, "samples"))
    exact = mean_of(replies, OLD, WHOLE)
    assert trimmed[:3] == pytest.approx(exact["w"], rel=1e-6, abs=1e-5)


def test_too_few_replies_stop_a_round():
    task = Task.of(tiny(*QUICK, "strategy.name=static", "fleet.clients=5", "robust.rule=krum"))
    rule = rule_of(task)
    with pytest.raises(TooFewRepliesError, match=r"4 usable replies; .*'krum'.* of 5 needs 5"):
        rule(FIVE[:4], Before(1, OLD, WHOLE, 5))


def test_a_claim_of_many_samples_buys_no_weight():
    for how, expected in (("equal", 2.0), ("samples", (1 + 99 * 3) / 100)):
        found = stack(model(0, [1, 1, 9]), model(1, [3, 1, 9], examples=99))
        weights = robust.weights_of(found, how)
        assert robust.trimmed_mean(found, 0, weights)[0] == pytest.approx(expected)


def test_the_server_trains_on_as_much_as_the_median_client_and_on_other_samples_each_round(
    monkeypatch,
):
    task = Task.of(tiny("robust.rule=trust", "robust.hostile=0", "data.public_samples=60"))
    rule, seen = robust.Robust(task), []
    monkeypatch.setattr(
        task.backend,
        "load",
        lambda state, mask: SimpleNamespace(
            train=lambda data, *_, **__: seen.append(data.x.tobytes()) or None, whole=lambda: state
        ),
    )
    told = [model(k, [2, 1, 9], examples=many) for k, many in enumerate((5, 7, 10**6))]
    for number in (1, 1, 2):
        rule(told, Before(number, OLD, WHOLE, 3))
    assert {len(one) for one in seen} == {7 * task.public.x[0].nbytes}
    assert seen[0] == seen[1] != seen[2]


OWN_WAYS = ("fedspa", "dispfl", "lotteryfl", "pfedgate", "heterofl", "fjord", "knot", "fedbuff")


@pytest.mark.parametrize("name", OWN_WAYS)
def test_a_strategy_that_would_ignore_a_rule_refuses_it(name):
    devices = ("fleet.profile=phones",) if name == "fedbuff" else ()
    with pytest.raises(ConfigError, match=rf"robust\.rule = 'median': '{name}' combines"):
        stage(f"strategy.name={name}", "strategy.density=1.0", "robust.rule=median", *devices)


def test_a_strategy_of_another_maker_refuses_a_rule():
    name = "flwr.serverapp.strategy:FedAvg"
    with pytest.raises(ConfigError, match=r"robust\.rule = 'median'.* by itself"):
        stage(f"strategy.name={name}", "robust.rule=median")


def test_buckets_are_means_of_their_models_and_go_to_the_rule():
    found = robust.bucketed(stack(*FIVE), np.array([3, 0, 1, 2, 4]), 2, "equal")
    assert found.values.tolist() == [[2.5, 25, 9, 2.5], [2.5, 25, 9, 2.5], [1000, -1000, 9, 1000]]
    assert found.examples.tolist() == [2, 2, 1]
    assert robust.coordinate_median(found).tolist() == [2.5, 25, 9, 2.5]
    told = [model(0, [2, 0, 9], examples=1), model(1, [6, 0, 9], examples=3)]
    by = {how: robust.bucketed(stack(*told), np.arange(2), 2, how) for how in ("equal", "samples")}
    assert {how: found.values[0, 0] for how, found in by.items()} == {"equal": 4, "samples": 5}


@pytest.mark.parametrize(("replies", "size"), [(5, 2), (6, 2), (4, 1), (3, 1), (9, 4), (8, 3)])
def test_buckets_are_smaller_where_a_round_has_too_few_replies(replies, size, monkeypatch):
    """With one hostile client of ten a median needs three buckets."""
    sizes = []
    monkeypatch.setattr(robust, "bucketed", lambda s, order, size, how: sizes.append(size) or s)
    keys = ("rule=median", "hostile=0.1", "bucket_size=4")
    rule = robust.Robust(Task.of(tiny("fleet.clients=12", *(f"robust.{one}" for one in keys))))
    rule([model(k, [k, 1, 9]) for k in range(replies)], Before(1, OLD, WHOLE, 10))
    assert sizes == [size] * (size > 1)


def test_buckets_are_alike_in_size():
    found = robust.bucketed(
        stack(*(model(k, [k, 1, 9]) for k in range(7))), np.arange(7), 3, "equal"
    )
    assert found.examples.tolist() == [3, 2, 2]


def test_a_rule_leaves_out_so_many_buckets_as_clients_may_be_hostile():
    """Two of ten, whatever buckets they are dealt to: two of five, not a fifth of five."""
    keys = ("robust.rule=trimmed-mean", "robust.hostile=0.2", "robust.bucket_size=2")
    rule = robust.Robust(Task.of(tiny("fleet.clients=10", *keys)))
    lies = [model(k, [1e6 if k < 2 else 3, 3, 9]) for k in range(10)]
    for number in range(1, 20):
        assert rule(lies, Before(number, OLD, WHOLE, 10))["w"][0] == 3


def test_a_bucket_keeps_what_any_of_its_clients_keeps():
    found = robust.bucketed(stack(*UNLIKE), np.array([0, 1, 2]), 2, "equal")
    assert found.values.tolist() == [[5.5, 7, 4], [7, 0, 4]]
    assert found.has.tolist() == [[True, True, True], [True, False, True]]


@settings(deadline=None)
@given(seed=st.integers(0, 999), size=st.integers(1, 4), hostile=st.integers(0, 3))
def test_so_many_hostile_clients_spoil_so_many_buckets_at_most(seed, size, hostile):
    """Fewer than half of the least buckets, so that the median stays with the honest."""
    asked = 40
    told = (f"bucket_size={size}", f"hostile={hostile / asked}", "rule=median")
    needed = robust.needed_replies(tiny(*(f"robust.{one}" for one in told)).robust, asked, size)
    lies = [model(k, [1e6 if k < hostile else 3, 3, 9]) for k in range(needed)]
    order = np.random.default_rng(seed).permutation(needed)
    found = robust.bucketed(stack(*lies), order, size, "equal")
    assert robust.coordinate_median(found)[0] == 3


def test_buckets_without_a_rule_are_a_mistake():
    with pytest.raises(ConfigError, match=r"the mean of means is the mean; set robust.rule"):
        stage("strategy.name=static", "robust.bucket_size=2")
    with pytest.raises(ConfigError, match=r"robust.bucket_size = 2: strategy '.*' judges"):
        stage("strategy.name=flwr.serverapp.strategy:FedAdagrad", "robust.bucket_size=2")


def test_a_rule_needs_more_clients_than_may_be_hostile():
    with pytest.raises(ConfigError, match=r"needs 5 clients a round, there are 4"):
        stage("strategy.name=static", "robust.rule=krum")
    with pytest.raises(ConfigError, match=r"in buckets of robust.bucket_size = 2 needs 5 clients"):
        stage("strategy.name=static", "robust.rule=median", "robust.bucket_size=2")
    with pytest.raises(ConfigError, match=r"'fedper' \(split\); choose another rule"):
        stage("strategy.name=fedper", "strategy.density=1.0", "robust.rule=trust")


def test_buckets_are_dealt_anew_each_round_and_alike_in_each_run(monkeypatch):
    buckets = (
        "strategy.name=static",
        "fleet.clients=5",
        "robust.rule=median",
        "robust.hostile=0.1",
    )

    def end(*more):
        strategy, grid = stage(*buckets, *more)
        strategy.prepare(grid)
        for number in (1, 2):
            play(strategy, grid, number)
        return np.concatenate([v.reshape(-1) for n, v in strategy.state.items()])

    twice = [end("robust.bucket_size=2") for _ in range(2)]
    assert (twice[0] == twice[1]).all()
    assert (twice[0] != end()).any()
    orders = []
    dealt = robust.bucketed
    monkeypatch.setattr(robust, "bucketed", lambda s, o, *_: orders.append([*o]) or dealt(s, o, *_))
    end("robust.bucket_size=2")
    assert len(orders) == 2
    assert orders[0] != orders[1]


@pytest.mark.parametrize("rule", RULES)
def test_hostile_clients_move_the_mean_and_no_robust_rule(rule):
    """Five clients, one of which sends its update a thousand times as long, and the other way."""

    def end(*more):
        strategy, grid = stage("strategy.name=static", "fleet.clients=5", *more)
        strategy.prepare(grid)
        play(strategy, grid, 1)
        return np.concatenate([v.reshape(-1) for n, v in strategy.state.items()])

    attack = ("attack.clients=2", "attack.updates=scaled", "attack.scale=1000")
    clean = end()
    robustly = np.abs(end(f"robust.rule={rule}", *attack) - clean).max()
    assert robustly < 0.2 < 10 * 0.2 < np.abs(end(*attack) - clean).max()
