"""A node of a local deployment that ends by itself is told of; the run goes on, or ends at once."""

import sys
from pathlib import Path

import pytest

from fedsparse.errors import GridError
from fedsparse.runs.progress import Silent
from simulations.deployment import local
from simulations.deployment.lost_nodes import LostNodes, fate
from simulations.deployment.processes import Processes, quoted
from strategies.addressing import pool
from tests.deployment.live_fleet import processes_of, wait
from tests.tiny_runs import tiny

LIVES = ("sleep", "600")
FAILS = ("sh", "-c", "echo no room for it >&2; exit 3")
KILLED = ("sh", "-c", "echo training; kill -9 $$")
GOES_ON = "the run goes on with {} of {} nodes"


class Heard(Silent):
    """A watcher that keeps what it is told."""

    def __init__(self) -> None:
        self.notes: list[str] = []

    def note(self, text: str) -> None:
        self.notes.append(text)


class Nodes:
    """Stand-ins for the processes of a fleet, those that end waited for."""

    def __init__(self, processes: Processes, *commands: tuple[str, ...], changes: str = "") -> None:
        self.processes, self.heard = processes, Heard()
        config = tiny(f"fleet.clients={len(commands)}", *changes.split())
        self.lost = LostNodes(processes, config, self.heard)
        self.start("superlink", LIVES)
        for client, command in enumerate(commands):
            self.start(f"node-{client}", command)

    def start(self, name: str, command: tuple[str, ...]) -> None:
        started = self.processes.start(name, command)
        if command is not LIVES:
            wait(f"the end of {name}", lambda: not started.alive)


@pytest.fixture
def processes(tmp_path):
    with Processes(tmp_path) as found:
        yield found


def test_a_run_goes_on_with_enough_nodes_and_tells_of_the_lost_one_once(processes):
    nodes = Nodes(processes, LIVES, KILLED, changes="fleet.min_replies=0.5")
    nodes.lost.look(joined=True)
    nodes.lost.look(joined=True)
    assert nodes.heard.notes == [
        "node-1 was ended by SIGKILL, as where memory runs out (training); "
        "the run goes on with 1 of 2 nodes"
    ]


def test_a_node_that_was_started_anew_and_ends_anew_is_told_of_anew(processes):
    nodes = Nodes(processes, LIVES, KILLED)
    nodes.lost.look(joined=True)
    nodes.start("node-1", LIVES)
    nodes.lost.look(joined=True)
    assert len(nodes.heard.notes) == 1
    processes.kill("node-1")  # by us: no concern of the watch
    nodes.lost.look(joined=True)
    assert len(nodes.heard.notes) == 1
    nodes.start("node-1", FAILS)
    nodes.lost.look(joined=True)
    assert nodes.heard.notes[1].startswith(
        "node-1 ended by itself with exit status 3 (training | no room"
    )


def test_a_run_ends_with_the_reason_when_too_few_nodes_are_left(processes):
    nodes = Nodes(processes, LIVES, KILLED, FAILS, LIVES, changes="fleet.min_replies=0.75")
    with pytest.raises(GridError) as told:
        nodes.lost.look(joined=True)
    assert str(told.value) == (
        "too few nodes, 2 of 4, where fleet.min_replies = 0.75 asks for 3: node-1 was ended by "
        "SIGKILL, as where memory runs out (training); mend that, then start again with the same "
        "--out"
    )


def test_nodes_that_only_test_are_not_needed(processes):
    nodes = Nodes(
        processes, LIVES, LIVES, FAILS, changes="fleet.novel_clients=1 fleet.min_replies=1"
    )
    nodes.lost.look(joined=True)
    assert nodes.heard.notes[0].endswith(GOES_ON.format(2, 2))


def test_those_left_out_for_their_data_are_neither_left_nor_needed(processes):
    """The server asks three of four, and goes on with the replies of two of them."""
    nodes = Nodes(processes, LIVES, LIVES, FAILS, FAILS, changes="fleet.min_replies=0.6")
    nodes.lost.left_out = [3]
    nodes.lost.look(joined=True)
    assert [note.rpartition("; ")[2] for note in nodes.heard.notes] == [GOES_ON.format(2, 3)] * 2
    nodes.start("node-1", FAILS)
    with pytest.raises(GridError, match=r"^too few nodes, 1 of 3, .* asks for 2: node-1 "):
        nodes.lost.look(joined=True)


def test_those_whom_no_round_draws_are_not_needed(processes):
    changes = "fleet.pool=0.4 fleet.min_replies=1"
    asked = list(pool(tiny("fleet.clients=5", *changes.split()).fleet, 0))
    nodes = Nodes(processes, *[LIVES if c in asked else FAILS for c in range(5)], changes=changes)
    nodes.lost.look(joined=True)
    assert [note.rpartition("; ")[2] for note in nodes.heard.notes] == [GOES_ON.format(2, 2)] * 3
    nodes.start(f"node-{asked[0]}", FAILS)
    with pytest.raises(GridError, match=r"^too few nodes, 1 of 2, .* asks for 2: "):
        nodes.lost.look(joined=True)


def test_a_round_that_asks_few_needs_few(processes):
    changes = "fleet.clients_per_round=2 fleet.min_replies=1"
    nodes = Nodes(processes, LIVES, LIVES, FAILS, changes=changes)
    nodes.lost.look(joined=True)
    assert nodes.heard.notes[0].endswith(GOES_ON.format(2, 3))


def test_the_node_of_a_forgotten_client_is_not_waited_for(processes):
    nodes = Nodes(processes, LIVES, FAILS, LIVES, changes="forget.clients=1")
    nodes.lost.look(joined=False)
    assert nodes.heard.notes[0].endswith(GOES_ON.format(2, 2))
    nodes.start("node-2", FAILS)
    with pytest.raises(GridError, match=r"^node-2 .*, before all nodes had joined the run; "):
        nodes.lost.look(joined=False)


@pytest.mark.parametrize("changes", ["fleet.novel_clients=1", "fleet.pool=0.3"])
def test_a_run_begins_with_the_nodes_that_train_in_no_round_too(processes, changes):
    asked = pool(tiny("fleet.clients=3", changes).fleet, 0)
    idle = next(client for client in (2, 1, 0) if client not in asked)
    nodes = Nodes(processes, *[FAILS if c == idle else LIVES for c in range(3)], changes=changes)
    with pytest.raises(GridError, match=rf"^node-{idle} .*, before all nodes had joined the run"):
        nodes.lost.look(joined=False)


def test_when_all_rounds_are_done_nodes_may_end_and_the_superlink_may_not(processes):
    nodes = Nodes(processes, KILLED, FAILS, changes="fleet.min_replies=1")
    nodes.lost.look(joined=True, done=True)
    assert [note.rpartition("; ")[2] for note in nodes.heard.notes] == ["all rounds are done"] * 2
    nodes.start("superlink", FAILS)
    with pytest.raises(GridError, match=r"^superlink ended by itself"):
        nodes.lost.look(joined=True, done=True)


@pytest.mark.parametrize(("number", "name"), [(15, "SIGTERM"), (40, "signal 40")])
def test_a_signal_is_named_where_it_has_a_name_and_numbered_elsewhere(processes, number, name):
    ended = processes.start("node-0", ("sh", "-c", f"echo training; kill -{number} $$"))
    wait("its end", lambda: not ended.alive)
    assert fate(ended) == f"node-0 was ended by {name} (training)"


def test_a_superlink_that_ended_ends_the_run(processes):
    nodes = Nodes(processes, LIVES)
    nodes.start("superlink", FAILS)
    with pytest.raises(GridError, match=r"^superlink ended by itself .*no room for it"):
        nodes.lost.look(joined=True)


def test_a_node_that_cannot_start_ends_the_command_at_once(tmp_path, monkeypatch):
    """Otherwise the server would wait two minutes for it, and not know why it never came."""
    places, plain = [], local.Fleet.node_command

    def command(fleet: local.Fleet, client: int, key: Path | None, *more: str) -> list[str]:
        places.append(fleet.folder)
        fails = [sys.executable, "-c", "raise SystemExit('no room for it')"]
        return fails if client == 1 else plain(fleet, client, key, *more)

    monkeypatch.setattr(local.Fleet, "node_command", command)
    with pytest.raises(GridError) as told:
        local.run_locally(tiny("fleet.clients=2"), 2, tmp_path / "run")
    assert str(told.value) == (
        "node-1 ended by itself with exit status 1 (no room for it), before all nodes had joined "
        "the run; mend that, then start again with the same --out"
    )
    assert not places[0].exists()
    assert not [
        found
        for home in ("superlink-home", "node-0-home", "node-1-home")
        for found in processes_of(places[0] / home)
    ]


def test_a_log_is_quoted_without_colours_and_empty_lines(tmp_path):
    log = tmp_path / "node-0.log"
    log.write_text("a\n\x1b[92mINFO \x1b[0m:      Sent\n\x1b[92mINFO \x1b[0m: \n\nb\n")
    assert quoted(log) == "a | INFO : Sent | b"
