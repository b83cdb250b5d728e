"""KNOT: models by cluster, one at the end, and deletions that repeat one cluster's rounds alone."""

import shutil

import numpy as np
import pytest

from fedsparse.errors import ConfigError, TooFewRepliesError
from fedsparse.runs import RunFolder
from simulations.experiment import resume_experiment
from simulations.state_file import NAME
from strategies import foreign
from strategies.base import Reply
from strategies.knot import in_turn, mean_of
from strategies.sums import mean_of as mean_of_replies
from strategies.task import Task
from tests.strategies.stage import QUICK, play, reply, stage
from tests.tiny_runs import model_bytes, rows, run, tiny

KNOT = (
    *QUICK,
    "strategy.name=knot",
    "strategy.clusters=3",
    "fleet.clients=9",
    "fleet.clients_per_round=3",
    "fleet.evaluate_clients=0",
    "run.rounds=6",
    "run.keep_checkpoints=0",
)
"""Nine clients in three clusters, of which each round asks one of each."""


def states_equal(one, two):
    return all(np.array_equal(one[name], two[name]) for name in one)


# -- clusters ------------------------------------------------------------------------------


def test_clusters_are_as_equal_as_can_be():
    assert in_turn(7, 3, False).tolist() == [0, 1, 2, 0, 1, 2, 0]
    assert in_turn(8, 3, True).tolist() == [0, 1, 2, 2, 1, 0, 0, 1]
    for clients in range(3, 12):
        for turned in (False, True):
            counts = np.bincount(in_turn(clients, 3, turned), minlength=3).tolist()
            assert counts == [clients // 3 + (c < clients % 3) for c in range(3)]


def knot(*assignments):
    return foreign.make(Task.of(tiny(*KNOT, *assignments)))


def test_each_client_has_one_cluster_by_the_runs_seed():
    found = knot().members
    assert sorted(client for own in found for client in own) == list(range(9))
    assert knot().members == found != knot("run.seed=1").members


def test_forgetting_moves_nobody_even_where_sizes_decide():
    sized = "strategy.balance=samples"
    found = knot(sized).members
    total = [sum(knot(sized).task.data.sizes[own]) for own in found]
    plain = [sum(knot().task.data.sizes[own]) for own in knot().members]
    assert np.ptp(total) < np.ptp(plain)
    assert knot(sized, "forget.clients='0,4'").members == found


@pytest.mark.parametrize("balance", ["clients", "samples"])
def test_forgetting_a_client_of_the_pool_changes_nobodys_cluster(balance):
    pool = ("fleet.pool=0.7", "fleet.clients=12", f"strategy.balance={balance}")
    before = knot(*pool).members
    without = knot(*pool, f"forget.clients={before[1][0]}")
    assert without.members == before
    asked = {c for number in range(1, 20) for c in without.choose(None, number, None)}
    assert asked == {c for own in before for c in own} - {before[1][0]}


def test_each_cluster_draws_by_itself():
    strategy = knot()
    whole = [strategy.choose(None, number, None) for number in range(1, 30)]
    out = strategy.members[0][0]
    without = knot(f"forget.clients={out}")
    for number, asked in enumerate(whole, 1):
        others = without.choose(None, number, None)
        same = strategy.members[1] + strategy.members[2]
        assert [c for c in asked if c in same] == [c for c in others if c in same]
        assert out not in others
        if out not in asked:
            assert others == asked
    assert {c for asked in whole for c in asked} == set(range(9))
    assert all(len(asked) == 3 for asked in whole)


# -- rounds ----------------------------------------------------------------------------------


@pytest.mark.parametrize("density", [1.0, 0.3])
def test_models_are_averaged_within_clusters_and_at_the_end_by_samples(density):
    strategy, grid = stage(*KNOT, "fleet.clients_per_round=9", f"strategy.density={density}")
    strategy.prepare(grid)
    start = strategy.state
    assert all(states_equal(model, start) for model in strategy.models)
    replies = play(strategy, grid, 1)
    good = {r.client: r for r in map(strategy_reader(strategy), replies)}
    for own, model in zip(strategy.members, strategy.models, strict=True):
        mean = mean_of_replies([good[c] for c in own], start, strategy.mask)
        assert states_equal(model, mean)
    samples = [sum(good[c].examples for c in own) for own in strategy.members]
    for name, value in strategy.state.items():
        expected = sum(
            n * m[name].astype(np.float64) for n, m in zip(samples, strategy.models, strict=True)
        ) / sum(samples)
        np.testing.assert_allclose(value, expected, rtol=1e-6, atol=1e-7)
    if density < 1:
        assert not any(strategy.state[name][~bits].any() for name, bits in strategy.mask.items())


def strategy_reader(strategy):
    """Return what reads a client's reply as a model of its own."""
    client_of = strategy.directory.client_of

    def read(message) -> Reply:
        return strategy.reader().read(client_of[message.metadata.src_node_id], message)

    return read


def test_each_client_is_sent_its_clusters_model_and_tests_the_mean():
    strategy, grid = stage(*KNOT, "fleet.clients_per_round=9", "fleet.evaluate_clients=9")
    strategy.prepare(grid)
    play(strategy, grid, 1)
    sent = strategy.configure_train(2, strategy.arrays(), None, grid)
    payloads: dict[int, set[bytes]] = {}
    for message in sent:
        client = strategy.directory.client_of[message.metadata.dst_node_id]
        (array,) = message.content["arrays"].values()
        payloads.setdefault(strategy.cluster_of[client], set()).add(bytes(array.data))
    assert [len(found) for found in payloads.values()] == [1, 1, 1]
    assert len(set.union(*payloads.values())) == 3
    tested = {
        bytes(next(iter(message.content["arrays"].values())).data)
        for message in strategy.configure_evaluate(2, strategy.arrays(), None, grid)
    }
    (mean,) = strategy.arrays().values()
    assert tested == {bytes(mean.data)}


def test_a_cluster_with_too_few_replies_stops_the_run_whatever_the_others_have():
    strategy, grid = stage(*KNOT, "fleet.min_replies=0.5", "fleet.clients_per_round=9")
    strategy.prepare(grid)
    asked = strategy.configure_train(1, strategy.arrays(), None, grid)
    lost = strategy.members[1][:2]
    replies = [
        reply(strategy, strategy.directory.client_of[m.metadata.dst_node_id], strategy.arrays())
        for m in asked
        if strategy.directory.client_of[m.metadata.dst_node_id] not in lost
    ]
    before = strategy.models
    with pytest.raises(TooFewRepliesError, match="cluster 1: 1 of 3 clients replied"):
        strategy.aggregate_train(1, replies)
    assert strategy.models is before


def test_a_cluster_that_nobody_is_left_of_has_no_weight():
    models = [{"w": np.full(2, value, np.float32)} for value in (1, 5, 100)]
    assert mean_of(models, [1, 3, 0])["w"].tolist() == [4, 4]
    assert mean_of(models, [0, 0, 0]) is models[0]
    gone = ",".join(map(str, knot().members[2]))
    strategy, grid = stage(*KNOT, f"forget.clients='{gone}'")
    strategy.prepare(grid)
    play(strategy, grid, 1)
    assert strategy.samples[2] == 0
    assert len(strategy.seats) == 2


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        (["strategy.clusters=4"], "strategy.clusters = 4: a round asks 3 clients"),
        (["fleet.profile=phones"], "fleet.profile = 'phones': clusters of 'knot' would wait"),
    ],
)
def test_what_clusters_cannot_do_is_refused(changes, said):
    with pytest.raises(ConfigError, match=said):
        knot(*changes)


# -- deletion --------------------------------------------------------------------------------


def trained(out):
    """Return who was asked in each round."""
    found: dict[int, set[int]] = {}
    for row in RunFolder.open(out).clients():
        found.setdefault(row["round"], set()).add(row["client"])
    return found


@pytest.mark.parametrize("density", [(), ("strategy.density=0.3",)])
def test_a_deletion_repeats_one_cluster_alone_and_ends_with_the_bits_of_a_fresh_run(
    tmp_path, density
):
    setting = (*KNOT, *density)
    run(tmp_path / "parent", *setting)
    asked = trained(tmp_path / "parent")
    client = min(c for c in asked[3] if c not in asked[1] | asked[2])
    forget = f"forget.clients={client}"
    run(tmp_path / "fresh", *setting, forget)
    child = RunFolder.create(tmp_path / "child", tiny(*setting, forget), command="tiny")
    spliced(RunFolder.open(tmp_path / "parent"), child, 2, frozenset({client}))
    resume_experiment(child.path)
    assert model_bytes(child.path) == model_bytes(tmp_path / "fresh")
    strategy = foreign.make(Task.of(child.config))
    own = set(strategy.members[strategy.cluster_of[client]])
    for number in range(3, 7):
        assert trained(child.path)[number] == trained(tmp_path / "fresh")[number] & own
    assert rows(child.path)[-1]["accuracy"] == rows(tmp_path / "fresh")[-1]["accuracy"]


def spliced(parent, child, number, forgotten):
    """Let a run go on from the end of another's round, as `Knot.splice` says."""
    strategy = foreign.make(Task.of(child.config))
    tree, last = parent.checkpoint(number), parent.checkpoint(6)
    made = strategy.splice(tree["strategy"], last["strategy"], forgotten)
    for row in parent.metrics()[: number + 1]:
        child.append_metrics(row)
    child.append_clients([row for row in parent.clients() if row["round"] <= number])
    if tree["clients"]:  # masks that clients hold
        shutil.copy(parent.path / NAME, child.path / NAME)
    child.save_checkpoint(number, {**tree, "strategy": made})


def test_a_client_that_was_never_asked_changes_nothing(tmp_path):
    setting = (*KNOT, "run.rounds=1")
    run(tmp_path / "parent", *setting)
    never = min(set(range(9)) - trained(tmp_path / "parent")[1])
    run(tmp_path / "fresh", *setting, f"forget.clients={never}")
    assert model_bytes(tmp_path / "fresh") == model_bytes(tmp_path / "parent")


def test_nothing_is_spliced_for_clients_of_no_cluster():
    earlier, last = {"models": [1, 2, 3]}, {"models": [4, 5, 6]}
    assert knot().splice(earlier, last, frozenset()) is earlier
