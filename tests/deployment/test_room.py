"""A local deployment in the way of others: a full disk, a folder in use. Each is a line at once."""

import errno
import os

import pytest

from fedsparse.errors import GridError, RunFolderError
from fedsparse.runs import RunFolder
from simulations.deployment import local, room
from tests.command_line import error_line, invoke
from tests.tiny_runs import tiny


@pytest.fixture
def space(monkeypatch):
    """Set how many bytes are free, as a list of one that can be changed."""
    left = [1 << 40]
    monkeypatch.setattr(room, "free", lambda folder: left[0])
    return left


def test_without_room_nothing_is_started_or_left(tmp_path, monkeypatch, space):
    made = tmp_path / "tmp"
    made.mkdir()
    monkeypatch.setattr("tempfile.tempdir", str(made))
    space[0] = room.LEAST_BYTES - 1
    line = error_line(invoke("deploy", "local", "--nodes", 1, "--out", tmp_path / "run"))
    assert line.startswith(f"the disk of '{made}' is full")
    assert "set TMPDIR to a folder on another disk" in line
    assert list(made.iterdir()) == []
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    "follows", [GridError("superlink ended: a log cut sh"), OSError(errno.ENOSPC, os.strerror(28))]
)
def test_what_follows_from_a_disk_that_filled_up_is_told_as_that(tmp_path, space, follows):
    def work():
        with room.roomy(tmp_path):
            space[0] = room.FULL_BYTES - 1
            raise follows

    with pytest.raises(RunFolderError, match="is full: a deployment keeps"):
        work()


def test_with_room_an_error_stays_what_it_is(tmp_path, space):
    with pytest.raises(GridError, match=r"^no answer$"), room.roomy(tmp_path):
        raise GridError("no answer")


def test_free_bytes_are_the_disks(tmp_path):
    stats = os.statvfs(tmp_path)
    assert 0 <= room.free(tmp_path) <= stats.f_blocks * stats.f_frsize


def test_a_folder_in_use_is_told_before_any_node_starts(tmp_path, monkeypatch):
    monkeypatch.setattr(local, "started", None)
    out = tmp_path / "run"
    folder = RunFolder.create(out, tiny(), command="flwr run .")
    with folder.lock():
        line = error_line(invoke("deploy", "local", "--nodes", 1, "--out", out))
    assert line == f"'{out}' is in use by process {os.getpid()}; wait for it to end or stop it"
