"""A node of a local deployment that ends by itself is told of; the run goes on, or ends at once."""

import sys
from pathlib import Path

import pytest

from fedsparse.config import FleetConfig
from fedsparse.errors import GridError
from fedsparse.runs.progress import Silent
from simulations.deployment import local
from simulations.deployment.lost_nodes import LostNodes, fate
from simulations.deployment.processes import Processes, quoted
from tests.deployment.live_fleet import processes_of, wait
from tests.tiny_runs import tiny

LIVES = ("sleep", "600")
FAILS = ("sh", "-c", "echo no room for it >&2; exit 3")
KILLED = ("sh", "-c", "echo training; kill -9 $$")


class Heard(Silent):
    """A watcher that keeps what it is told."""

    def __init__(self) -> None:
        self.notes: list[str] = []

    def note(self, text: str) -> None:
        self.notes.append(text)


class Nodes:
    """Stand-ins for the processes of a fleet, those that end waited for."""

    def __init__(self, processes: Processes, *commands: tuple[str, ...], **fleet: float) -> None:
        self.processes, self.heard = processes, Heard()
        config = FleetConfig(clients=len(commands), **fleet)
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
    nodes = Nodes(processes, LIVES, KILLED, min_replies=0.5)
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
    nodes = Nodes(processes, LIVES, KILLED, FAILS, LIVES, min_replies=0.75)
    with pytest.raises(GridError) as told:
        nodes.lost.look(joined=True)
    assert str(told.value) == (
        "too few nodes, 2 of 4, where fleet.min_replies = 0.75 asks for 3: node-1 was ended by "
        "SIGKILL, as where memory runs out (training); mend that, then start again with the same "
        "--out"
    )


def test_nodes_that_only_test_are_not_needed(processes):
    nodes = Nodes(processes, LIVES, LIVES, FAILS, novel_clients=1, min_replies=1.0)
    nodes.lost.look(joined=True)
    assert nodes.heard.notes[0].endswith("the run goes on with 2 of 2 nodes")


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
