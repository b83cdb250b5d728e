"""Who watches a run over real nodes is told which take no part, and which end, while it matters."""

import json
import os
from pathlib import Path

import pytest

from fedsparse.errors import GridError
from simulations.deployment.local import Fleet, follow
from simulations.deployment.processes import Processes
from tests.deployment.live_fleet import wait
from tests.tiny_runs import Noted, tiny

WHY = "'/srv/own.csv' holds no samples; give a file with some"
EARLIER, NOW = 100, 200
FAILS = ("sh", "-c", "echo no room for it >&2; exit 3")
SAID = "node-1 ended by itself with exit status 3 (no room for it)"


class Watched(Fleet):
    """A fleet whose SuperLink is played: its run has completed when it was asked a few times."""

    def __init__(self, folder: Path, processes: Processes):
        super().__init__(folder, processes, None, None, 0, [1, 2], folder / "run")
        self.left = 3
        self.out.mkdir()

    def flwr(self, *arguments):
        return {"run-id": 1}

    def state(self, run):
        return "finished:completed" if self.left <= 0 else "running"

    @property
    def joined(self):
        self.left -= 1
        if self.left <= 0:
            (self.out / "summary.json").write_text("{}")
        return super().joined

    def write(self, told, when):
        """Write who holds what, as the server does once all have joined."""
        (self.out / "partition.json").write_text(json.dumps(told))
        os.utime(self.out / "partition.json", (when, when))

    def end_node(self, client):
        """Start a node that ends at once."""
        ended = self.processes.start(f"node-{client}", FAILS)
        wait("its end", lambda: not ended.alive)


@pytest.fixture
def fleet(tmp_path):
    with Processes(tmp_path) as processes:
        yield Watched(tmp_path, processes)


def followed(fleet, run="1"):
    noted = Noted()
    follow(fleet, run, tiny("fleet.clients=2", "fleet.min_replies=1"), noted)
    return noted.notes


def rounds_done(fleet, number):
    rows = [json.dumps({"round": done}) + "\n" for done in range(number + 1)]
    (fleet.out / "metrics.jsonl").write_text("".join(rows))


def test_nodes_that_are_left_out_are_told_once_and_not_needed(fleet):
    run = fleet.submit(fleet.folder)
    fleet.write({"left_out": {"1": WHY}}, NOW)
    fleet.end_node(1)
    assert followed(fleet, run) == [
        f"the node of client 1 is left out: {WHY}",
        f"{SAID}; the run goes on with 1 of 1 nodes",
    ]


@pytest.mark.parametrize("told", [{}, {"left_out": {}}])
def test_where_all_take_part_nothing_is_told(fleet, told):
    fleet.write(told, NOW)
    assert followed(fleet) == []


def test_what_was_wrong_in_an_earlier_life_is_not_told_again(fleet):
    fleet.write({"left_out": {"1": WHY}}, EARLIER)
    run = fleet.submit(fleet.folder)
    assert followed(fleet, run) == []


def test_nodes_that_joined_an_earlier_life_have_not_joined_this_one(fleet):
    fleet.write({}, EARLIER)
    run = fleet.submit(fleet.folder)
    fleet.end_node(1)
    with pytest.raises(GridError) as told:
        followed(fleet, run)
    assert str(told.value).startswith(f"{SAID}, before all nodes had joined the run; ")


def test_a_node_that_ends_between_rounds_ends_a_run_that_needs_it(fleet):
    run = fleet.submit(fleet.folder)
    fleet.write({}, NOW)
    rounds_done(fleet, 2)
    fleet.end_node(1)
    with pytest.raises(GridError) as told:
        followed(fleet, run)
    assert str(told.value).startswith("too few nodes, 1 of 2, where fleet.min_replies = 1 asks for")


def test_a_node_that_ends_after_the_last_round_does_not_end_the_run(fleet):
    """The server still tests the model and writes it down, and does both without nodes."""
    run = fleet.submit(fleet.folder)
    fleet.write({}, NOW)
    rounds_done(fleet, 3)
    fleet.end_node(1)
    assert followed(fleet, run) == [f"{SAID}; all rounds are done"]
