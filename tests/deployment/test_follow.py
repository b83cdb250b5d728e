"""Who watches a run over real nodes is told which of them take no part, each time it goes on."""

import json
import os
import time
from types import SimpleNamespace

import pytest

from fedsparse.runs.progress import Silent
from simulations.deployment.local import follow, left_out
from tests.tiny_runs import tiny

WHY = "'/srv/own.csv' holds no samples; give a file with some"


class Noted(Silent):
    """Progress that keeps what is noted."""

    def __init__(self):
        self.notes = []

    def note(self, text):
        self.notes.append(text)


def write(out, told, written):
    out.mkdir(exist_ok=True)
    (out / "partition.json").write_text(json.dumps(told))
    os.utime(out / "partition.json", (written, written))


def followed(out):
    noted = Noted()
    (out / "summary.json").write_text("{}")
    fleet = SimpleNamespace(out=out, processes=None, state=lambda run: "finished:completed")
    follow(fleet, "1", tiny(), noted)
    return noted.notes


def test_nodes_that_are_left_out_are_told(tmp_path):
    out = tmp_path / "run"
    write(out, {"left_out": {"1": WHY}}, time.time() + 3600)
    assert followed(out) == [f"the node of client 1 is left out: {WHY}"]


@pytest.mark.parametrize("told", [{}, {"left_out": {}}])
def test_where_all_take_part_nothing_is_told(tmp_path, told):
    write(tmp_path / "run", told, time.time() + 3600)
    assert followed(tmp_path / "run") == []


def test_what_was_wrong_in_an_earlier_life_is_not_told_again(tmp_path):
    out = tmp_path / "run"
    assert left_out(out, 100.0) is None
    write(out, {"left_out": {"1": WHY}}, 99.0)
    assert left_out(out, 100.0) is None
    write(out, {}, 101.0)
    assert left_out(out, 100.0) == {}
