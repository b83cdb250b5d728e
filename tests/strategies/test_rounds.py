"""The round loop: every byte counted, masks that settle, failures named, any Flower strategy."""

import json
import logging
from collections import defaultdict
from itertools import pairwise

import numpy as np
import pytest
from flwr.app import Array, ArrayRecord, MetricRecord
from flwr.serverapp import strategy as flower
from safetensors.numpy import load_file

from fedsparse import messages, wire
from fedsparse.errors import ConfigError, TooFewRepliesError
from fedsparse.runs import RunFolder, checkpoint
from fedsparse.runs.progress import Silent
from fedsparse.sparsity import Mask
from simulations.experiment import CLIENT_APP
from simulations.flower_internals import RAISED, error_reply
from simulations.grid import CohortGrid
from strategies import foreign
from strategies.base import SparseStrategy
from strategies.execute import execute
from strategies.task import Task
from tests.strategies.stage import QUICK
from tests.tiny_runs import Noted, model_bytes, rows, run, tiny


class SpyGrid(CohortGrid):
    """Writes down the length of every array that goes by: (round, kind, way, client, bytes)."""

    def __init__(self, *args, **kwargs):
        super().__init__(*args, **kwargs)
        self.seen = []

    def send_and_receive(self, messages, *, timeout=None):
        """Look at what is sent and at what comes back."""
        sent = list(messages)
        for message in sent:
            self.look(message, "down", message.metadata.dst_node_id, round_of(message))
        replies = list(super().send_and_receive(sent, timeout=timeout))
        for reply in replies:
            self.look(reply, "up", reply.metadata.src_node_id, round_of(sent[0]))
        return replies

    def look(self, message, way, node, number):
        """Measure each array by itself."""
        kind = message.metadata.message_type
        for record in message.content.array_records.values():
            for array in record.values():
                self.seen.append((number, kind, way, self.client_of(node), len(array.data)))


def round_of(message) -> int:
    """Return the round in which a message was sent."""
    return messages.read_config(message.content["config"])[1].round


def carry(out, config, grid, strategy=None) -> RunFolder:
    """Run a configuration on a given grid and return its folder."""
    task = Task.of(config)
    folder = RunFolder.create(out, config, command="test")
    with folder.lock(), grid:
        execute(task, strategy or foreign.make(task), grid, folder, Silent())
    return folder


@pytest.fixture(scope="module")
def spied(tmp_path_factory):
    """A FedTiny run of five rounds, the last two of them after its stop round."""
    config = tiny(
        "run.rounds=5", "run.keep_checkpoints=0", "fleet.clients=5", "fleet.clients_per_round=3"
    )
    grid = SpyGrid(CLIENT_APP, clients=5)
    return carry(tmp_path_factory.mktemp("spied") / "run", config, grid), grid


def masks(folder: RunFolder) -> list[Mask]:
    """Return the mask after each round, the initial one first."""
    shapes = Task.of(folder.config).shapes
    trees = [checkpoint.load(folder.path / "checkpoints", r) for r in folder.checkpoints()]
    return [Mask.from_packed(shapes, tree["strategy"]["mask"]) for tree in trees]


# -- bytes --------------------------------------------------------------------------------


@pytest.mark.parametrize("way", ["up", "down"])
def test_every_rounds_bytes_are_the_lengths_of_the_payloads_that_went_by(spied, way):
    folder, grid = spied
    counted = defaultdict(int)
    for number, kind, direction, _, size in grid.seen:
        if direction == way and kind != messages.EVALUATE:
            counted[number] += size
    last_test = sum(s for _, k, d, _, s in grid.seen if d == way and k == messages.EVALUATE)
    written = {row["round"]: row[f"bytes_{way}"] for row in folder.metrics()}
    assert written == dict(counted)
    assert sorted(written) == [0, 1, 2, 3, 4, 5]
    assert folder.summary()[f"bytes_{way}"] == sum(counted.values()) + last_test
    assert (last_test > 0) == (way == "down")


def test_round_0_holds_both_exchanges_of_the_selection(spied):
    """Candidates down and statistics up, then statistics down and losses (metrics) up."""
    _, grid = spied
    kinds = {(kind, way) for number, kind, way, *_ in grid.seen if number == 0}
    assert kinds == {
        (messages.STATISTICS, "down"),
        (messages.STATISTICS, "up"),
        (messages.LOSSES, "down"),
    }


@pytest.mark.parametrize("way", ["up", "down"])
def test_each_clients_bytes_are_those_of_its_own_payloads(spied, way):
    folder, grid = spied
    counted = defaultdict(int)
    for number, kind, direction, client, size in grid.seen:
        if direction == way and number:
            counted[number, kind, client] += size
    for row in folder.clients():
        assert row[f"bytes_{way}"] == counted[row["round"], row["kind"], row["client"]]


def test_no_dense_model_and_no_dense_gradient_ever_travels(spied):
    """FedTiny's promise: at density 0.1 no payload, either way, is a third of the dense one."""
    folder, grid = spied
    dense = len(wire.encode(Task.of(folder.config).pretrain(0, 0.0)))
    largest = max(size for *_, size in grid.seen)
    assert 0 < largest < dense / 3


class Twice(CohortGrid):
    """A grid on which client 1's replies come twice."""

    def send_and_receive(self, messages, *, timeout=None):
        """Add a reply."""
        replies = list(super().send_and_receive(messages, timeout=timeout))
        return [*replies, replies[1]] if "arrays" in replies[1].content else replies


def test_a_reply_that_comes_twice_is_counted_twice_and_averaged_once(tmp_path):
    """What was sent was sent; the model is that of a run without the second."""
    setting = (*QUICK, "strategy.name=fedavg")
    folder = carry(tmp_path / "twice", tiny(*setting), Twice(CLIENT_APP, clients=4))
    run(tmp_path / "once", *setting)
    assert model_bytes(folder.path) == model_bytes(tmp_path / "once")
    up = [row["bytes_up"] for row in folder.clients() if row["kind"] == "train"]
    assert up[1] == 2 * up[0] == 2 * up[2]


# -- packing ------------------------------------------------------------------------------


def test_a_round_packs_the_model_only_as_it_is_sent(tmp_path, monkeypatch):
    """One payload for all who hold the mask, and none of the whole model that nobody reads."""

    def unasked(self):
        raise AssertionError("nobody is sent this")

    monkeypatch.setattr(SparseStrategy, "arrays", unasked)
    for name in ("fedavg", "static", "fedtiny"):
        out = tmp_path / name
        run(out, *QUICK, f"strategy.name={name}", *["strategy.density=0.5"] * (name != "fedavg"))
        assert RunFolder.open(out).finished


# -- masks --------------------------------------------------------------------------------


def test_the_mask_drifts_from_its_start_and_stays_after_the_stop_round(spied):
    """Gate G6: a block is adjusted once in three rounds, so the overlap can only fall."""
    found = masks(spied[0])
    overlaps = [mask.overlap(found[0]) for mask in found]
    assert overlaps[0] == 1.0
    assert overlaps == sorted(overlaps, reverse=True)
    assert overlaps[2] < 1.0
    assert found[3] == found[4] == found[5]


def test_rows_say_how_much_the_mask_changed(spied):
    folder, _ = spied
    found = masks(folder)
    changed = [after.hamming(before) for before, after in pairwise(found)]
    assert [row["mask_change"] for row in folder.metrics()] == [0, *changed]


# -- failures -----------------------------------------------------------------------------


class Failing(CohortGrid):
    """A grid on which some clients' training ends in an error, and one never replies."""

    bad, silent = {1}, {2}

    def send_and_receive(self, messages, *, timeout=None):
        """Replace some replies."""
        sent = list(messages)
        good = []
        for message, reply in zip(
            sent, super().send_and_receive(sent, timeout=timeout), strict=True
        ):
            client = self.client_of(message.metadata.dst_node_id)
            if message.metadata.message_type == "train" and client in self.bad:
                reply = error_reply(message, RAISED, "out of memory")
            if client not in self.silent:
                good.append(reply)
        return good


def test_clients_that_fail_are_named_and_the_round_goes_on(tmp_path):
    config = tiny(*QUICK, "strategy.name=fedavg", "fleet.clients=4")
    folder = carry(tmp_path / "run", config, Failing(CLIENT_APP, clients=4))
    trained = [row for row in folder.clients() if row["kind"] == "train"]
    assert [row["reason"] for row in trained] == [None, "out of memory", "no reply in time", None]
    assert [row["status"] for row in trained] == ["ok", "failed", "failed", "ok"]
    assert trained[1]["bytes_down"] > 0 == trained[1]["bytes_up"]
    row = folder.metrics()[-1]
    figures = (row["clients_asked"], row["clients_replied"], row["clients_failed"])
    assert figures == (4, 2, 2)
    losses = [(r["loss"], r["examples"]) for r in trained if r["status"] == "ok"]
    total = sum(n for _, n in losses)
    assert row["train_loss"] == pytest.approx(sum(loss * n for loss, n in losses) / total)


def test_a_run_with_too_few_replies_stops_unfinished_and_can_go_on(tmp_path):
    config = tiny(*QUICK, "strategy.name=fedavg", "fleet.min_replies=0.75")
    with pytest.raises(TooFewRepliesError, match=r"2 of 4 clients replied.*asks for 3"):
        carry(tmp_path / "run", config, Failing(CLIENT_APP, clients=4))
    folder = RunFolder.open(tmp_path / "run")
    assert not folder.finished
    assert [row["round"] for row in folder.metrics()] == [0]
    reasons = [row["reason"] for row in folder.clients()]
    assert reasons == [None, "out of memory", "no reply in time", None]
    task = Task.of(config)
    with folder.lock(), CohortGrid(CLIENT_APP, clients=4) as grid:
        execute(task, foreign.make(task), grid, folder, Silent())
    run(tmp_path / "whole", *QUICK, "strategy.name=fedavg", "fleet.min_replies=0.75")
    assert model_bytes(tmp_path / "run") == model_bytes(tmp_path / "whole")
    assert folder.clients() == RunFolder.open(tmp_path / "whole").clients()


class Lying(CohortGrid):
    """A grid on which some clients tell other figures than they have."""

    def __init__(self, lies):
        super().__init__(CLIENT_APP, clients=4)
        self.lies = lies

    def send_and_receive(self, messages, *, timeout=None):
        """Change the figures of the named clients."""
        replies = list(super().send_and_receive(messages, timeout=timeout))
        for reply in replies:
            for key, value in self.lies.get(self.client_of(reply.metadata.src_node_id), {}).items():
                reply.content["metrics"][key] = value
        return replies


LIES = {
    0: {"train-flops": float("nan"), "memory-bytes": 2**70},
    1: {"train-flops": [1.0, 2.0], "accuracy": [0.5]},
    2: {"memory-bytes": -1, "loss": float("inf")},
}


def test_no_figures_of_a_reply_stop_a_run(tmp_path):
    """In training and in the last test: who lies is left out and named, the others go on."""
    config = tiny(*QUICK, "strategy.name=fedavg", "fleet.min_replies=0.25")
    folder = carry(tmp_path / "run", config, Lying(LIES | {2: {"num-examples": 10**400}}))
    assert folder.finished
    for kind in ("train", "evaluate"):
        found = [row for row in folder.clients() if row["kind"] == kind]
        assert [row["status"] for row in found] == ["rejected"] * 3 + ["ok"]
        assert [row["train_flops"] is None for row in found[:3]] == [True] * 3
        assert "train-flops is nan" in found[0]["reason"]
        assert "is a list" in found[1]["reason"]
        assert "num-examples is an integer of 1329 bits" in found[2]["reason"]
    assert folder.summary()["train_flops"] > 0


def test_of_another_makers_replies_the_figures_that_fit_are_written_down(tmp_path):
    config = tiny(*QUICK, PATH + "FedMedian", "data.client_test_fraction=0.0")
    median = flower.FedMedian(train_metrics_aggr_fn=lambda *_: MetricRecord())
    folder = carry(tmp_path / "run", config, Lying(LIES), median)
    assert folder.finished
    columns = ("loss", "accuracy", "train_flops", "memory_bytes")
    missing = [{c for c in columns if row[c] is None} for row in folder.clients()]
    assert missing == [
        {"train_flops", "memory_bytes"},
        {"train_flops", "accuracy"},
        {"memory_bytes", "loss"},
        set(),
    ]
    assert [row["status"] for row in folder.clients()] == ["ok"] * 4
    told = [(row["loss"], row["examples"]) for row in folder.clients() if row["loss"] is not None]
    total = sum(n for _, n in told)
    expected = sum(loss * n for loss, n in told) / total
    assert folder.metrics()[1]["train_loss"] == pytest.approx(expected)


def test_a_candidate_that_one_client_cannot_judge_does_not_stop_the_selection(tmp_path):
    """FedTiny before round 1: broken statistics are left out, as broken models are."""

    class Broken(CohortGrid):
        def send_and_receive(self, messages, *, timeout=None):
            replies = list(super().send_and_receive(messages, timeout=timeout))
            if replies[0].metadata.message_type == "query.statistics":
                array = replies[1].content["arrays"]["0"]
                array.data = array.data[:-1]
            return replies

    config = tiny("run.rounds=1", "fleet.clients=4")
    grid = Broken(CLIENT_APP, clients=4)
    folder = carry(tmp_path / "run", config, grid)
    assert folder.finished
    assert folder.metrics()[0]["density"] == pytest.approx(0.1, abs=1e-3)


# -- strategies that are not ours -----------------------------------------------------------

PATH = "strategy.name=flwr.serverapp.strategy:"


@pytest.mark.parametrize(
    "settings",
    [
        ("FedAvg",),
        ("FedAdam", "strategy.eta=0.01"),
        ("Krum", "strategy.num_malicious_nodes=1"),
        ("FedMedian",),
    ],
    ids=lambda settings: settings[0],
)
def test_flowers_strategies_run_in_our_round_loop(tmp_path, settings):
    name, *more = settings
    out = tmp_path / "run"
    summary = run(out, *QUICK, "run.rounds=3", PATH + name, *more, "client.lr=0.1")
    folder = RunFolder.open(out)
    assert folder.finished
    assert summary["strategy"] == f"flwr.serverapp.strategy:{name}"
    assert summary["density"] == 1.0
    found = rows(out)
    assert [row["clients_replied"] for row in found] == [0, 4, 4, 4]
    assert found[3]["train_loss"] < found[1]["train_loss"]
    dense = wire.record_bytes(foreign.initial_arrays(Task.of(folder.config)))
    assert 4 * 1482 < dense < 8 * 1482
    assert [row["bytes_up"] for row in found] == [0, *[4 * dense] * 3]
    assert found[1]["bytes_down"] == 4 * dense
    double = name == "FedAdam"  # it computes, and so sends, in double precision
    assert found[2]["bytes_down"] == 4 * (dense + double * 4 * 1482)
    again = tmp_path / "again"
    run(again, *QUICK, "run.rounds=3", PATH + name, *more, "client.lr=0.1")
    assert model_bytes(again) == model_bytes(out)


def test_flowers_fedavg_and_ours_are_one_method(tmp_path):
    """Same start, same clients, same mean, up to the order of additions."""
    run(tmp_path / "ours", *QUICK, "strategy.name=fedavg", "strategy.pretrain_epochs=0")
    run(tmp_path / "flower", *QUICK, PATH + "FedAvg")
    ours, flowers = (load_file(tmp_path / n / "model.safetensors") for n in ("ours", "flower"))
    assert list(ours) == list(flowers)
    for name, value in ours.items():
        np.testing.assert_allclose(value, flowers[name], rtol=1e-5, atol=1e-7)


def private(task: Task, noise: float) -> flower.DifferentialPrivacyServerSideFixedClipping:
    """Return a wrapper around a strategy, which no configuration can express."""
    return flower.DifferentialPrivacyServerSideFixedClipping(
        foreign.make(task), noise_multiplier=noise, clipping_norm=0.5, num_sampled_clients=4
    )


def test_a_privacy_wrapper_runs_in_our_round_loop_to_a_finished_folder(tmp_path):
    config = tiny(*QUICK, "run.rounds=2", PATH + "FedAvg")
    models = {}
    for place, noise in (("a", 0.1), ("b", 0.1), ("c", 0.0)):
        wrapped = private(Task.of(config), noise)
        folder = carry(tmp_path / place, config, CohortGrid(CLIENT_APP, clients=4), wrapped)
        assert folder.finished
        assert [row["clients_replied"] for row in folder.metrics()] == [0, 4, 4]
        models[place] = model_bytes(folder.path)
    assert models["a"] == models["b"]
    assert models["a"] != models["c"]


def test_a_privacy_wrapper_starts_by_itself_on_our_grid():
    """Flower's own loop, Flower's own wrapper, our clients: clipped to norm 0.5 a round."""
    config = tiny(*QUICK, PATH + "FedAvg", "client.lr=1.0")
    task = Task.of(config)
    start = foreign.initial_arrays(task)
    said = messages.write_config(config, messages.Plan())
    del said[messages.PLAN_KEY]
    with CohortGrid(CLIENT_APP, clients=4) as grid:
        result = private(task, 0.0).start(
            grid=grid, initial_arrays=start, num_rounds=1, train_config=said, evaluate_config=said
        )
    moved = sum(float(((result.arrays[n].numpy() - start[n].numpy()) ** 2).sum()) for n in start)
    assert 0 < moved**0.5 <= 0.5 * (1 + 1e-5)


def test_a_wrapper_that_needs_a_strategy_object_is_refused_by_name():
    config = tiny(*QUICK, PATH + "DifferentialPrivacyServerSideFixedClipping")
    with pytest.raises(ConfigError, match=r"refused its settings: .*'strategy'"):
        foreign.make(Task.of(config))


def test_what_a_foreign_strategy_learnt_is_in_the_checkpoint(tmp_path):
    run(tmp_path / "run", *QUICK, PATH + "FedAdam", "strategy.eta=0.01")
    folder = RunFolder.open(tmp_path / "run")
    attributes = checkpoint.load(folder.path / "checkpoints", 1)["strategy"]["attributes"]
    moments = {n: v for n, v in attributes.items() if n in ("m_t", "v_t")}
    assert set(moments) == {"m_t", "v_t"}
    assert any(np.any(part) for part in moments["m_t"].values())
    assert json.loads((tmp_path / "run" / "summary.json").read_text())["rounds"] == 1


class Keeping(flower.FedAvg):
    """Keeps state in every form that there is."""

    def __init__(self, value, **settings):
        super().__init__(**settings)
        self.kept = value


KEPT = {
    "a tuple": (1, (2.5, "x")),
    "whole numbers as keys": {3: {"a": 1}, 4: None},
    "a numpy scalar": np.float32(1.5),
    "bytes": b"\x00\xff",
    "infinity": [float("inf")],
    "Flower's arrays": ArrayRecord({"w": Array(np.arange(3.0))}),
    "a dict that counts": defaultdict(int, {"seen": 3}),
}


@pytest.mark.parametrize("kind", KEPT)
def test_what_a_foreign_strategy_keeps_comes_back_as_it_was(tmp_path, kind):
    saved = foreign.state_dict(Keeping(KEPT[kind]), ArrayRecord())
    checkpoint.save(tmp_path, 1, {"strategy": saved}, keep=1)
    again = Keeping(type(KEPT[kind])(int) if "counts" in kind else None)
    foreign.load_state_dict(again, checkpoint.load(tmp_path, 1)["strategy"])
    assert again.kept == KEPT[kind]
    assert type(again.kept) is type(KEPT[kind])
    assert foreign.lost(again) == []


def test_what_no_checkpoint_can_hold_is_named_once(tmp_path):
    """Also of a wrapped strategy; what is no state, such as functions, is not."""
    config = tiny(*QUICK, "run.rounds=3", PATH + "FedAvg")
    task = Task.of(config)
    inner = Keeping({"drawn by": np.random.default_rng(0)}, train_metrics_aggr_fn=None)
    inner.log, inner.draw, inner.library = logging.getLogger("x"), lambda: 0, np
    strategy = flower.DifferentialPrivacyServerSideFixedClipping(inner, 0.0, 0.5, 4)
    folder, watcher = RunFolder.create(tmp_path / "run", config, command="test"), Noted()
    with folder.lock(), CohortGrid(CLIENT_APP, clients=4) as grid:
        execute(task, strategy, grid, folder, watcher)
    (note,) = watcher.notes
    assert "FixedClipping.kept: no checkpoint can hold this" in note
    assert "\n" not in note


def test_what_a_wrapped_strategy_learnt_is_in_the_checkpoint_and_comes_back(tmp_path):
    config = tiny(*QUICK, PATH + "FedAdam", "strategy.eta=0.01")
    wrapped = private(Task.of(config), 0.0)
    folder = carry(tmp_path / "run", config, CohortGrid(CLIENT_APP, clients=4), wrapped)
    saved = checkpoint.load(folder.path / "checkpoints", 1)["strategy"]
    again = private(Task.of(config), 0.0)
    foreign.load_state_dict(again, saved)
    assert any(np.any(part) for part in again.strategy.m_t.values())
    for name, part in wrapped.strategy.m_t.items():
        np.testing.assert_array_equal(again.strategy.m_t[name], part)
