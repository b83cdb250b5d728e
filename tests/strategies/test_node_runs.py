"""A run on the nodes' own data: the bits of the same samples dealt by the server, and who fits."""

import numpy as np
import pytest
from flwr.app import ConfigRecord

from fedsparse.data import schema
from fedsparse.errors import ConfigError, GridError
from fedsparse.runs import RunFolder
from simulations import report
from simulations.experiment import run_experiment
from strategies import foreign
from strategies.execute import execute
from strategies.task import Task
from tests.data.test_node_data import write_csv, write_npz
from tests.node_grid import NodeGrid, parts
from tests.tiny_runs import Noted, model_bytes, rows, tiny

QUICK = (
    *("model.name=mlp", "model.width=0.25", "run.rounds=2", "data.client_test_fraction=0.2"),
    *("data.samples=240", "data.public_samples=40", "fleet.clients=3"),
)
SERVER_LESS = (
    *("data.name=nodes", "data.shape=1x8x8", "data.classes=10", "model.name=mlp"),
    *("model.width=0.25", "run.rounds=2", "fleet.clients=3", "strategy.name=fedavg"),
    "strategy.pretrain_epochs=0",
)


def play(out, config, grid):
    """Run a configuration over a grid of nodes and return its summary and notes."""
    task, noted = Task.of(config), Noted()
    folder = RunFolder.create(out, task.config, command="test")
    with folder.lock():
        return execute(task, foreign.make(task), grid, folder, noted), noted.notes


@pytest.fixture
def nodes(tmp_path):
    """What three nodes are told, each with its part of the digits as .npz or CSV."""
    told = []
    for client, samples in enumerate(parts(tiny(*QUICK))):
        place = tmp_path / f"node-{client}"
        place.mkdir()
        path = (write_csv if client == 1 else write_npz)(place, samples)
        told.append({"data-path": str(path), "cache-path": str(place / "kept")})
    return told


@pytest.mark.parametrize("strategy", ["fedtiny", "ditto"])
def test_samples_at_the_nodes_make_the_model_that_dealt_ones_make(tmp_path, nodes, strategy):
    config = tiny(*QUICK, f"strategy.name={strategy}")
    run_experiment(config, tmp_path / "dealt", command="test")
    play(tmp_path / "own", config, NodeGrid(nodes))
    assert model_bytes(tmp_path / "own") == model_bytes(tmp_path / "dealt")
    own, dealt = rows(tmp_path / "own"), rows(tmp_path / "dealt")
    described = 3 * len(Task.of(config).described)  # with each message to each of three nodes
    for mine, theirs in zip(own, dealt, strict=True):
        assert (mine.pop("bytes_down") - theirs.pop("bytes_down")) % described == 0
        assert mine == theirs


def accuracies_at(out):
    """What clients' own tests of their personal models found."""
    found = [row for row in RunFolder.open(out).clients() if row["kind"] == "evaluate"]
    return [(row["client"], row["loss"], row["accuracy"]) for row in found]


def test_nodes_that_restart_before_every_message_change_nothing(tmp_path, nodes):
    config = tiny(*QUICK, "strategy.name=ditto")
    run_experiment(config, tmp_path / "dealt", command="test")
    play(tmp_path / "forgetful", config, NodeGrid(nodes, restarting=True))
    assert accuracies_at(tmp_path / "forgetful") != accuracies_at(tmp_path / "dealt")
    keeping = [{**told, "state-path": str(tmp_path / "states")} for told in nodes]
    play(tmp_path / "keeping", config, NodeGrid(keeping, restarting=True))
    assert accuracies_at(tmp_path / "keeping") == accuracies_at(tmp_path / "dealt")
    assert model_bytes(tmp_path / "keeping") == model_bytes(tmp_path / "dealt")


def test_nodes_may_have_what_the_server_has_not(tmp_path, nodes):
    summary, _ = play(tmp_path / "run", tiny(*SERVER_LESS), NodeGrid(nodes))
    assert summary["accuracy"] is None
    assert summary["accuracy_personal_mean"] > 0.1
    told = RunFolder.open(tmp_path / "run").read_json("partition.json")
    assert [n["samples"] for n in told["nodes"].values()] == [len(p) for p in parts(tiny(*QUICK))]
    pytest.importorskip("jinja2", reason="needs the extra 'report'")
    page = report.write_report([tmp_path / "run"]).read_text()
    assert "lies at the nodes of 3 clients" in page


def test_the_server_s_file_tests_the_model_and_makes_the_mask(tmp_path, nodes):
    config = tiny(*QUICK)
    samples = parts(config)[0]
    (tmp_path / "server").mkdir()
    path = write_npz(tmp_path / "server", samples)
    changes = (f"data.path={path}", "data.public_samples=20", "strategy.name=static")
    summary, _ = play(
        tmp_path / "run", tiny(*SERVER_LESS, *changes, "strategy.criterion=snip"), NodeGrid(nodes)
    )
    assert summary["accuracy"] is not None


def test_what_needs_data_of_the_server_says_how_to_give_some(tmp_path, nodes):
    config = tiny(*SERVER_LESS, "strategy.name=fedtiny", "strategy.pretrain_epochs=1")
    with pytest.raises(ConfigError, match=r"set data\.path to a file at the server"):
        play(tmp_path / "run", config, NodeGrid(nodes))
    config = tiny(*SERVER_LESS, "run.target_accuracy=0.5")
    with pytest.raises(ConfigError, match="no test data to reach it on"):
        play(tmp_path / "target", config, NodeGrid(nodes))


def test_a_simulation_has_no_nodes(tmp_path):
    with pytest.raises(ConfigError, match="these data lie at real nodes"):
        run_experiment(tiny(*SERVER_LESS), tmp_path / "run", command="test")


MISFITS = {
    "another shape": ({"x": np.zeros((9, 1, 7, 7), np.float32)}, "samples are 1x7x7"),
    "another class": ({"y": np.full(9, 12)}, "highest label is 12, the run's classes are 0 to 9"),
    "tokens": ({"x": np.zeros((9, 64), np.int64)}, "samples are tokens, as integers are"),
    "real targets": ({"y": np.full(9, 0.5)}, "labels are no whole numbers"),
    "nothing": ({"x": np.zeros((0, 64)), "y": np.zeros(0, int)}, "holds no samples"),
    "not a number": ({"x": np.full((9, 64), np.nan)}, "NaN"),
}


@pytest.mark.parametrize("name", MISFITS)
def test_a_node_that_does_not_fit_is_left_out_and_named(tmp_path, nodes, name):
    changes, told = MISFITS[name]
    good = {"x": np.zeros((9, 1, 8, 8), np.float32), "y": np.zeros(9, np.int64)}
    np.savez(tmp_path / "wrong.npz", **{**good, **changes})
    nodes[1]["data-path"] = str(tmp_path / "wrong.npz")
    grid = NodeGrid(nodes)
    summary, notes = play(tmp_path / "run", tiny(*SERVER_LESS), grid)
    assert summary["rounds"] == 2
    assert len(notes) == 1
    assert notes[0].startswith("the node of client 1 is left out: ")
    assert told in notes[0]
    assert {client for kind, client in grid.asked if kind == "train"} == {0, 2}
    (row,) = [r for r in RunFolder.open(tmp_path / "run").clients() if r["status"] != "ok"]
    assert (row["client"], row["round"], row["status"]) == (1, 0, "failed")
    assert told in row["reason"]
    said = RunFolder.open(tmp_path / "run").read_json("partition.json")["left_out"]
    assert said == {"1": row["reason"]}


def test_too_few_that_fit_stop_the_run_before_its_first_round(tmp_path, nodes):
    for told in nodes[:2]:
        told["data-path"] += ".gone"
    grid = NodeGrid(nodes)
    with pytest.raises(GridError, match=r"1 of 3 clients .*asks for 2; .*client 0: .*at this node"):
        play(tmp_path / "run", tiny(*SERVER_LESS), grid)
    assert {kind for kind, _ in grid.asked} == {"query"}


def test_what_a_broken_node_tells_ends_no_run(tmp_path, nodes, monkeypatch):
    plain = schema.Schema.record

    def boastful(self):
        record = plain(self)
        return ConfigRecord({**record, "samples": -5}) if self.samples == wrong else record

    wrong = len(parts(tiny(*QUICK))[2])
    monkeypatch.setattr(schema.Schema, "record", boastful)
    _, notes = play(tmp_path / "run", tiny(*SERVER_LESS), NodeGrid(nodes))
    assert notes == [
        "the node of client 2 is left out: it tells impossible numbers of its data; "
        "install the same fedsparse there"
    ]


def test_what_a_hostile_node_says_is_wrong_moves_no_cursor(tmp_path, nodes, monkeypatch):
    said = ConfigRecord({"problem": "\x1b]0;mine\x07\x1b[2J" + "all is well " * 100})
    monkeypatch.setattr(schema, "problem_record", lambda text: said)
    nodes[1]["data-path"] += ".gone"
    _, (note,) = play(tmp_path / "run", tiny(*SERVER_LESS), NodeGrid(nodes))
    (row,) = [r for r in RunFolder.open(tmp_path / "run").clients() if r["status"] != "ok"]
    for shown in (note, row["reason"]):
        assert shown.isprintable()
        assert len(shown) < 350
        assert "?]0;mine??[2Jall is well" in shown


KEEPING = {
    "a model of its own": ("strategy.name=ditto",),
    "an optimizer's state": ("client.keep_optimizer=true", "client.momentum=0.9"),
}


@pytest.mark.parametrize("kept", KEEPING)
def test_nodes_that_would_lose_what_the_run_keeps_there_are_named(tmp_path, nodes, kept):
    quick = (*QUICK, "run.rounds=1")
    config = tiny(*quick, *KEEPING[kept])
    nodes[1]["state-path"] = str(tmp_path / "states")
    _, (note,) = play(tmp_path / "run", config, NodeGrid(nodes))
    assert note.startswith("the nodes of clients 0, 2 keep what this run needs in memory alone")
    assert note.endswith("; give each a state-path")
    assert play(tmp_path / "plain", tiny(*quick), NodeGrid(nodes))[1] == []
    for told in nodes:
        told["state-path"] = str(tmp_path / "others")
    assert play(tmp_path / "keeping", config, NodeGrid(nodes))[1] == []


def test_a_simulation_is_told_of_no_nodes(tmp_path):
    noted = Noted()
    run_experiment(
        tiny(*QUICK, "run.rounds=1", *KEEPING["a model of its own"]),
        tmp_path / "run",
        command="test",
        progress=noted,
    )
    assert not [note for note in noted.notes if "state-path" in note]


class Failing(NodeGrid):
    """A grid whose nodes are gone from the second round of training on."""

    def send_and_receive(self, messages, *, timeout=None):
        sent = list(messages)
        trained = sum(kind == "train" for kind, _ in self.asked)
        if trained and sent[0].metadata.message_type == "train":
            raise GridError("the nodes are gone")
        return super().send_and_receive(sent, timeout=timeout)


def go_on(out, config, grid):
    """Go on with a run as in a new process; return the notes."""
    task, noted, folder = Task.of(config), Noted(), RunFolder.open(out)
    with folder.lock():
        execute(task, foreign.make(task), grid, folder, noted)
    return noted.notes


def left_out(out):
    found = [row for row in RunFolder.open(out).clients() if row["kind"] == "data"]
    return [(row["round"], row["client"], row["reason"].partition(";")[0]) for row in found]


def test_who_is_left_out_stands_there_also_where_the_run_never_begins(tmp_path, nodes):
    """The nodes that are left fail before round 1, in the exchange that makes the mask."""
    nodes[1]["data-path"] += ".gone"
    grid = NodeGrid(nodes)
    plain = grid.answer

    def answer(message):
        if message.metadata.message_type == "query":
            return plain(message)
        raise GridError("the nodes are gone")

    grid.answer = answer
    scored = ("strategy.name=static", "strategy.scored_by=clients", "strategy.criterion=snip")
    changes = (*scored, "fleet.min_replies=0.3")
    with pytest.raises(GridError, match="the nodes are gone"):
        play(tmp_path / "run", tiny(*SERVER_LESS, *changes), grid)
    assert [(number, client) for number, client, _ in left_out(tmp_path / "run")] == [(0, 1)]


def test_a_run_that_goes_on_tells_who_is_left_out_as_at_its_begin(tmp_path, nodes):
    """Node 1 never fits; node 2 has lost its file when the run goes on."""
    config, out = tiny(*SERVER_LESS, "fleet.min_replies=0.3"), tmp_path / "run"
    nodes[1]["data-path"] += ".gone"
    with pytest.raises(GridError, match="the nodes are gone"):
        play(out, config, Failing(nodes))
    first = (0, 1, f"data-path = '{nodes[1]['data-path']}' does not exist at this node")
    assert left_out(out) == [first]
    nodes[2]["data-path"] += ".gone"
    second = (1, 2, f"data-path = '{nodes[2]['data-path']}' does not exist at this node")
    grid = Failing(nodes)
    grid.asked.append(("train", 0))
    with pytest.raises(GridError, match="the nodes are gone"):
        go_on(out, config, grid)
    assert left_out(out) == [first, second]
    grid = NodeGrid(nodes)
    notes = go_on(out, config, grid)
    assert [note.partition(" is left out")[0] for note in notes] == [
        "the node of client 1",
        "the node of client 2",
    ]
    assert left_out(out) == [first, second]
    assert {client for kind, client in grid.asked if kind == "train"} == {0}


SUMMED = (
    *("strategy.name=fedavg", "strategy.pretrain_epochs=0", "secure.aggregation=true"),
    *("fleet.min_replies=0.5", "run.rounds=1"),
)


def with_more(node, folder, samples):
    """Tell a node of another file, of so many samples."""
    np.savez(folder / "more.npz", x=np.zeros((samples, 64), np.float32), y=np.zeros(samples, int))
    return {**node, "data-path": str(folder / "more.npz")}


def test_a_node_with_more_samples_than_a_sum_takes_is_left_out_before_it(tmp_path, nodes):
    more = with_more(nodes[0], tmp_path, 1_300)
    changes = ("fleet.clients=4", "secure.max_examples=1000")
    grid = NodeGrid([*nodes, more])
    _, notes = play(tmp_path / "run", tiny(*QUICK, *SUMMED, *changes), grid)
    assert notes == [
        "the node of client 3 is left out: it trains on 1040 samples or more, and "
        "secure.max_examples = 1000; raise it, and secure.bits where sums become too coarse"
    ]
    assert rows(tmp_path / "run")[-1]["secure_summed"] == 3


def test_a_sum_of_two_nodes_that_are_left_is_refused_before_the_first_round(tmp_path, nodes):
    nodes[2] = with_more(nodes[2], tmp_path, 0)
    with pytest.raises(GridError, match=r"2 clients have data that fit, and each.*3 are needed"):
        play(tmp_path / "run", tiny(*QUICK, *SUMMED), NodeGrid(nodes))
