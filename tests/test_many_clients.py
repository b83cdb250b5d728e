"""Very many registered clients at the price of those that take part, and their states kept."""

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from fedsparse.runs import RunFolder
from simulations.experiment import resume_experiment
from simulations.state_file import NAME
from tests.command_line import error_line, invoke
from tests.strategies.stage import QUICK
from tests.tiny_runs import model_bytes, rows, run

MANY = (
    *QUICK,
    "data.partition=sampled",
    "fleet.clients=1000000",
    "fleet.clients_per_round=5",
    "fleet.evaluate_clients=5",
    "strategy.name=static",
    "strategy.density=0.5",
    "client.keep_optimizer=true",
)
FEW = (*MANY, "fleet.clients=8", "run.rounds=4", "run.keep_checkpoints=2")
"""Clients come again, with the momentum that they kept."""


def test_a_million_clients_of_which_five_take_part(tmp_path):
    summary = run(tmp_path / "run", *MANY, "run.rounds=2")
    assert summary["clients"] == 1_000_000
    folder = RunFolder.open(tmp_path / "run")
    asked = {row["client"] for row in folder.clients() if row["kind"] == "train"}
    assert len(asked) == 10
    assert max(asked) > 100_000
    partition = folder.read_json("partition.json")
    assert (partition["clients"], len(partition["counts"])) == (1_000_000, 2000)
    sizes = [p.stat().st_size for p in (tmp_path / "run").rglob("*") if p.is_file()]
    assert sum(sizes) < 1_000_000
    assert not list((tmp_path / "run").glob("*-journal"))


def test_a_checkpoint_says_which_states_are_its_own_and_does_not_hold_them(tmp_path):
    run(tmp_path / "run", *FEW)
    sealed = json.loads((tmp_path / "run" / "checkpoints" / "000004.json").read_text())
    assert sorted(sealed["checkpoint"]["tree"]["clients"]) == ["clients", "mark"]


# -- killed and resumed ------------------------------------------------------------------

SCRIPT = """
import os, signal, sys
from pathlib import Path
from fedsparse.runs import checkpoint
from simulations.state_file import StateFile
from tests.tiny_runs import run
seam, nth, when = sys.argv[2], int(sys.argv[3]), sys.argv[4]
owner = StateFile if hasattr(StateFile, seam) else checkpoint
plain = getattr(owner, seam)
calls = 0
def watched(*args, **kwargs):
    global calls
    calls += 1
    if calls == nth and when == "before":
        os.kill(os.getpid(), signal.SIGKILL)
    result = plain(*args, **kwargs)
    if calls == nth:
        os.kill(os.getpid(), signal.SIGKILL)
    return result
setattr(owner, seam, watched)
run(Path(sys.argv[1]), *sys.argv[5:])
"""


def run_and_kill(out, seam, nth, when, *assignments):
    command = [sys.executable, "-c", SCRIPT, str(out), seam, str(nth), when, *assignments]
    root = Path(__file__).parents[1]
    return subprocess.run(command, cwd=root, env=os.environ, timeout=120).returncode


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    out = tmp_path_factory.mktemp("whole") / "run"
    run(out, *FEW)
    return out


@pytest.fixture(scope="module")
def killed(tmp_path_factory):
    """A run that died between the states' commit of round 3 and the checkpoint's own."""
    out = tmp_path_factory.mktemp("killed") / "run"
    # Round 0 has no states, so that the third commit is round 3's.
    assert run_and_kill(out, "commit", 3, "after", *FEW) == -signal.SIGKILL
    assert RunFolder.open(out).checkpoints() == [1, 2]
    return out


@pytest.mark.parametrize(
    ("seam", "nth", "when"),
    [
        ("commit", 1, "before"),
        ("commit", 1, "after"),
        ("commit", 3, "before"),
        ("commit", 3, "after"),
        ("save", 4, "after"),
        ("replace", 12, "after"),
    ],
)
def test_a_kill_around_the_states_commit_does_not_show(whole, tmp_path, seam, nth, when):
    out = tmp_path / "run"
    assert run_and_kill(out, seam, nth, when, *FEW) == -signal.SIGKILL
    resume_experiment(out)
    assert model_bytes(out) == model_bytes(whole)
    assert rows(out) == rows(whole)
    assert RunFolder.open(out).clients() == RunFolder.open(whole).clients()


def copied(source, to):
    subprocess.run(["cp", "-r", str(source), str(to)], check=True)
    return to


def test_a_damaged_checkpoint_goes_back_to_the_states_of_the_one_before(whole, killed, tmp_path):
    out = copied(killed, tmp_path / "run")
    (out / "checkpoints" / "000002.json").write_text("{}")
    resume_experiment(out)
    assert model_bytes(out) == model_bytes(whole)
    assert rows(out) == rows(whole)


@pytest.mark.parametrize("damage", ["missing", "empty", "torn", "noise"])
def test_a_run_does_not_go_on_without_its_clients_states(killed, tmp_path, damage):
    out = copied(killed, tmp_path / "run")
    path = out / NAME
    content = path.read_bytes()
    path.unlink()
    left = {"empty": b"", "torn": content[:9000], "noise": b"\x07" * len(content)}
    if damage in left:
        path.write_bytes(left[damage])
    before = {p: p.read_bytes() for p in out.rglob("*") if p.is_file() and p.name != ".lock"}
    line = error_line(invoke("resume", out, "--quiet"))
    assert f"'{path}'" in line
    assert "another --out" in line
    after = {p: p.read_bytes() for p in out.rglob("*") if p.is_file() and p.name != ".lock"}
    assert after == before
