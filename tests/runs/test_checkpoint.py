"""Checkpoints survive damage and a kill at any moment of their writing."""

import io
import itertools
import json
import os
import signal

import numpy as np
import pytest

from fedsparse.config import resolve
from fedsparse.errors import RunFolderError
from fedsparse.runs import RunFolder, checkpoint

STRATEGY = {"name": "flwr.serverapp.strategy:FedAvg"}
TREE = {
    "model": {"fc.weight": np.arange(6, dtype=np.float32).reshape(2, 3)},
    "strategy": {"round": 3, "rng": 2**100, "note": b"\x00\xff"},
}


def untold(text):
    raise AssertionError(text)


def value(number):
    return {"x": np.full(4, number, np.float32), "n": number}


@pytest.fixture
def run(tmp_path):
    return RunFolder.create(tmp_path / "run", resolve({"strategy": STRATEGY}), command="c")


def test_none_is_found_where_none_was_written(run):
    assert run.latest_checkpoint(untold) is None
    assert run.checkpoints() == []


def test_the_newest_is_found_and_only_the_newest_are_kept(run):
    for number in range(6):
        run.save_checkpoint(number, value(number))
    assert run.config.run.keep_checkpoints == 3
    assert run.checkpoints() == [3, 4, 5]
    found, tree = run.latest_checkpoint(untold)
    assert found == 5
    assert tree["n"] == 5
    assert np.array_equal(tree["x"], value(5)["x"])
    assert len(list((run.path / "checkpoints").iterdir())) == 6


def test_zero_keeps_all_and_one_keeps_one(tmp_path):
    for number in range(5):
        checkpoint.save(tmp_path / "all", number, value(number), keep=0)
        checkpoint.save(tmp_path / "one", number, value(number), keep=1)
    assert checkpoint.rounds(tmp_path / "all") == [0, 1, 2, 3, 4]
    assert checkpoint.rounds(tmp_path / "one") == [4]


def test_a_round_written_again_replaces_the_first(run):
    run.save_checkpoint(2, value(2))
    run.save_checkpoint(2, value(9))
    assert run.latest_checkpoint(untold)[1]["n"] == 9
    assert len(list((run.path / "checkpoints").iterdir())) == 2


def test_tensors_that_no_checkpoint_is_about_are_removed(run):
    run.save_checkpoint(2, value(2))
    whole = {path.name for path in (run.path / "checkpoints").iterdir()}
    for name in ("000002-0", "000002-z", "000007-0"):  # of round 2 again, and of no checkpoint
        (run.path / "checkpoints" / f"{name}.safetensors").write_bytes(b"")
    with run.lock():
        assert {path.name for path in (run.path / "checkpoints").iterdir()} == whole


def test_equal_trees_give_equal_bytes(tmp_path):
    for folder in ("a", "b"):
        checkpoint.save(tmp_path / folder, 7, TREE, keep=0)
    a, b = (
        {p.name: p.read_bytes() for p in (tmp_path / folder).iterdir()} for folder in ("a", "b")
    )
    assert a == b
    assert len(a) == 2


def test_the_folder_of_checkpoints_is_on_the_disk_with_the_first(run, monkeypatch):
    synced = set()
    monkeypatch.setattr(os, "fsync", lambda file: synced.add(os.fstat(file).st_ino))
    run.save_checkpoint(1, value(1))
    folders = {run.path.stat().st_ino, (run.path / "checkpoints").stat().st_ino}
    assert folders <= synced


def flip(content):
    return content[:-3] + bytes([content[-3] ^ 1]) + content[-2:]


@pytest.mark.parametrize("suffix", ["json", "safetensors"])
@pytest.mark.parametrize(
    "damage",
    [
        lambda c: c[: len(c) // 2],
        lambda c: b"",
        flip,
        lambda c: b"[1]",
        lambda c: b"[" * 10**5,
        None,
    ],
)
def test_a_damaged_newest_one_falls_back_and_is_told_in_one_line(run, suffix, damage):
    run.save_checkpoint(1, value(1))
    run.save_checkpoint(2, value(2))
    path = next((run.path / "checkpoints").glob(f"000002*.{suffix}"))
    if damage is None:
        path.unlink()
        if suffix == "json":
            assert run.latest_checkpoint(untold)[0] == 1
            return
    else:
        path.write_bytes(damage(path.read_bytes()))
    told = []
    found, tree = run.latest_checkpoint(told.append)
    assert (found, tree["n"]) == (1, 1)
    (line,) = told
    assert "000002.json" in line
    assert line.endswith("going back to the one before")
    assert "\n" not in line


def test_when_all_are_damaged_the_remedy_is_all_that_is_told(run):
    for number in (1, 2):
        run.save_checkpoint(number, value(number))
    for path in (run.path / "checkpoints").glob("*.json"):
        path.write_text(json.dumps({"checkpoint": {}, "check": ""}))
    with pytest.raises(RunFolderError, match=r"every checkpoint.*another --out") as error:
        run.latest_checkpoint(untold)
    assert "\n" not in str(error.value)


SEAMS = [(os, "fsync"), (os, "replace"), (os, "unlink"), (io, "open")]


def killed_while_saving(run, deadly, when):
    """Save round 5 in a child that is killed around its `deadly`-th system call.

    Returns whether the child died; False means that it made fewer calls than that.
    """
    child = os.fork()
    if child == 0:
        calls = itertools.count(1)

        def seam(function):
            def call(*args, **kwargs):
                here = next(calls) == deadly
                if here and when == "before":
                    os.kill(os.getpid(), signal.SIGKILL)
                result = function(*args, **kwargs)
                if here:
                    os.kill(os.getpid(), signal.SIGKILL)
                return result

            return call

        for module, name in SEAMS:
            setattr(module, name, seam(getattr(module, name)))
        try:
            run.save_checkpoint(5, value(5))
            os._exit(0)
        finally:
            os._exit(1)
    status = os.waitpid(child, 0)[1]
    assert os.WIFSIGNALED(status) or os.WEXITSTATUS(status) == 0
    return os.WIFSIGNALED(status)


@pytest.mark.parametrize("when", ["before", "after"])
def test_a_kill_at_any_seam_of_the_writing_leaves_a_whole_one(tmp_path, when):
    config = resolve({"strategy": STRATEGY, "run": {"keep_checkpoints": 1}})
    found = []
    for deadly in itertools.count(1):
        run = RunFolder.create(tmp_path / str(deadly), config, command="c")
        run.save_checkpoint(4, value(4))
        if not killed_while_saving(run, deadly, when):
            break
        number, tree = run.latest_checkpoint(untold)
        assert np.array_equal(tree["x"], value(number)["x"])
        found.append(number)
        with run.lock():
            left = [path.name for path in (run.path / "checkpoints").iterdir()]
        assert not [name for name in left if name.startswith(".")]
        assert len(left) == 2 * len(run.checkpoints())
        assert run.latest_checkpoint(untold)[0] == number
    assert found == sorted(found)
    assert set(found) == {4, 5}
    assert len(found) >= 8
