"""A run that is killed at any moment and resumed ends with the bits of one that was not."""

import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from fedsparse.runs import RunFolder
from fedsparse.training.torch_model import TorchModel
from simulations.experiment import resume_experiment
from tests.tiny_runs import model_bytes, rows, run

SCRIPT = """
import os, signal, sys
from pathlib import Path
from fedsparse.runs import folder as folders
from tests.tiny_runs import run
seam, nth = sys.argv[2], int(sys.argv[3])
plain = getattr(folders.RunFolder, seam)
calls = 0
def watched(self, *args, **kwargs):
    global calls
    calls += 1
    if calls == nth:
        os.kill(os.getpid(), signal.SIGKILL)
    return plain(self, *args, **kwargs)
setattr(folders.RunFolder, seam, watched)
run(Path(sys.argv[1]), *sys.argv[4:])
"""


def run_and_kill(out: Path, seam: str, nth: int, *assignments: str) -> int:
    """Run in a process that kills itself just before the nth call of a run-folder method."""
    command = [sys.executable, "-c", SCRIPT, str(out), seam, str(nth), *assignments]
    root = Path(__file__).parents[1]
    return subprocess.run(command, cwd=root, env=os.environ, timeout=120).returncode


def totals(out: Path) -> dict:
    """Return the summary of a run without what differs from one run to the next."""
    summary = RunFolder.open(out).summary()
    return {k: v for k, v in summary.items() if k not in ("wall_seconds", "run")}


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    out = tmp_path_factory.mktemp("whole") / "run"
    run(out)
    return out


@pytest.mark.parametrize(
    ("seam", "nth"),
    [
        ("save_checkpoint", 1),
        ("append_metrics", 2),
        ("save_checkpoint", 3),
        ("append_clients", 3),
        ("finish", 1),
    ],
)
def test_killed_and_resumed_gives_the_same_bits(whole, tmp_path, seam, nth):
    out = tmp_path / "run"
    assert run_and_kill(out, seam, nth) == -signal.SIGKILL
    assert not RunFolder.open(out).finished
    resume_experiment(out)
    assert model_bytes(out) == model_bytes(whole)
    assert (out / "mask.safetensors").read_bytes() == (whole / "mask.safetensors").read_bytes()
    assert rows(out) == rows(whole)
    assert RunFolder.open(out).clients() == RunFolder.open(whole).clients()
    assert totals(out) == totals(whole)


KEPT = "client.keep_optimizer=true"
MOMENTUM = "strategy.server_momentum=0.9"
PART = ("fleet.clients=6", "fleet.clients_per_round=3", "run.rounds=4")


@pytest.mark.parametrize(
    ("settings", "state"),
    [((), KEPT), (PART, KEPT), ((*PART, KEPT, "strategy.name=fedavg"), MOMENTUM)],
    ids=["optimizer", "optimizer of a part", "optimizer of a part, and the server's momentum"],
)
def test_what_clients_and_server_keep_survives(tmp_path, settings, state):
    run(tmp_path / "whole", *settings, state)
    out = tmp_path / "run"
    assert run_and_kill(out, "append_metrics", 4, *settings, state) == -signal.SIGKILL
    resume_experiment(out)
    assert model_bytes(out) == model_bytes(tmp_path / "whole")
    assert rows(out) == rows(tmp_path / "whole")
    assert RunFolder.open(out).clients() == RunFolder.open(tmp_path / "whole").clients()
    run(tmp_path / "without", *settings)
    assert model_bytes(tmp_path / "without") != model_bytes(out)


def test_a_test_that_takes_longer_than_a_round_finds_the_same(tmp_path, monkeypatch):
    torchs = "client.backend=torch"
    run(tmp_path / "quick", torchs)
    plain = TorchModel.evaluate

    def slow(self, data):
        if threading.current_thread() is not threading.main_thread():
            time.sleep(0.5)
        return plain(self, data)

    monkeypatch.setattr(TorchModel, "evaluate", slow)
    run(tmp_path / "slow", torchs)
    assert rows(tmp_path / "slow") == rows(tmp_path / "quick")


@pytest.mark.parametrize("left", [1, 3])
def test_a_last_test_of_which_a_part_was_written_is_made_whole(whole, tmp_path, left):
    """As a kill in the midst of the rows leaves it: the next one torn."""
    out = tmp_path / "run"
    assert run_and_kill(out, "finish", 1) == -signal.SIGKILL
    path = out / "clients.jsonl"
    lines = path.read_bytes().splitlines(keepends=True)
    assert len(lines) == 4 * 4
    path.write_bytes(b"".join(lines[: 3 * 4 + left]) + lines[-1][:20])
    resume_experiment(out)
    assert RunFolder.open(out).clients() == RunFolder.open(whole).clients()
    assert totals(out) == totals(whole)


def test_resuming_a_finished_run_changes_nothing(whole):
    before = {p: p.read_bytes() for p in whole.rglob("*") if p.is_file()}
    assert resume_experiment(whole)["accuracy"] == RunFolder.open(whole).summary()["accuracy"]
    assert {p: p.read_bytes() for p in whole.rglob("*") if p.is_file()} == before


def test_a_flower_strategy_with_server_state_resumes(tmp_path):
    adam = ("strategy.name=flwr.serverapp.strategy:FedAdam", "strategy.eta=0.01")
    run(tmp_path / "whole", *adam)
    out = tmp_path / "run"
    assert run_and_kill(out, "append_metrics", 3, *adam) == -signal.SIGKILL
    resume_experiment(out)
    assert model_bytes(out) == model_bytes(tmp_path / "whole")
