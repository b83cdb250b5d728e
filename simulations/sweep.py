"""Many runs, each in a process of its own, some at a time; any of them may end badly.

A sweep is a list of points and a folder: `points/NAME` is the run folder of a point. What is
finished is not run again, what was interrupted goes on, and when whoever runs the sweep dies,
so do its processes.
"""

import fcntl
import json
import os
import signal
import subprocess
import sys
import time
from collections import deque
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, Protocol

from fedsparse.errors import FedSparseError, RunFolderError
from fedsparse.runs import RunFolder
from fedsparse.runs.atomic import remove_leftovers, writing
from simulations.variants import Point

Status = Literal["finished", "failed", "unfinished", "not started"]

POINTS = "points"
_MARK = "fedsparse: error: "
_LOOK_EVERY = 0.05
_PATIENCE = 10.0
"""Seconds that a process has to end by itself when it is told to."""


class Watch(Protocol):
    """Whoever watches a sweep."""

    def point_started(self, point: Point) -> None:
        """A point runs now."""

    def point_done(self, point: Point, status: Status, reason: str) -> None:
        """A point has ended."""


@dataclass(frozen=True)
class State:
    """How a point stands, and the reason when it failed."""

    status: Status
    reason: str = ""


def place_of(folder: Path, point: Point) -> Path:
    """Return the run folder of a point."""
    return folder / POINTS / point.slug


def state_of(folder: Path, point: Point) -> State:
    """Return how a point stands on the disk."""
    place = place_of(folder, point)
    try:
        if (place / "run.json").exists():
            run = RunFolder.open(place)
            if run.finished and not run.lost():
                return State("finished")
    except FedSparseError as error:
        return State("failed", str(error))
    if reason := _reason(_log_of(folder, point)):
        return State("failed", reason)
    return State("unfinished" if (place / "run.json").exists() else "not started")


@contextmanager
def held(folder: Path) -> Iterator[None]:
    """Hold a folder for one sweep at a time; what killed writers left is removed first.

    Raises RunFolderError when another process holds it.
    """
    with writing(folder):
        (folder / POINTS).mkdir(parents=True, exist_ok=True)
        descriptor = os.open(folder / ".lock", os.O_RDWR | os.O_CREAT, 0o644)
    try:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise RunFolderError(
                f"'{folder}' is in use by another process; wait for it to end or stop it"
            ) from None
        with writing(folder):
            remove_leftovers(folder)
        yield
    finally:
        os.close(descriptor)


def run_points(points: Sequence[Point], folder: Path, *, jobs: int, watch: Watch) -> None:
    """Run those of `points` that are not finished, `jobs` at a time.

    Returns when each has finished or failed. When it is interrupted, the points that run
    are stopped first; they can be gone on with.
    """
    waiting = deque(p for p in points if state_of(folder, p).status != "finished")
    running: list[_Child] = []
    try:
        while waiting or running:
            while waiting and len(running) < jobs:
                point = waiting.popleft()
                running.append(_Child(point, folder))
                watch.point_started(point)
            time.sleep(_LOOK_EVERY)
            for child in [c for c in running if c.process.poll() is not None]:
                running.remove(child)
                child.close()
                state = state_of(folder, child.point)
                watch.point_done(child.point, state.status, state.reason)
    finally:
        _stop(running)


class _Child:
    """A process that runs one point until it is done or its stdin is closed."""

    def __init__(self, point: Point, folder: Path) -> None:
        self.point = point
        self.log = _log_of(folder, point)
        order = {
            "config": point.config.to_json(),
            "command": point.command,
            "folder": str(place_of(folder, point)),
        }
        paths = os.pathsep.join(path or os.getcwd() for path in sys.path)
        with writing(folder), self.log.open("wb") as errors:
            self.process = subprocess.Popen(
                [sys.executable, "-m", "simulations.point"],
                stdin=subprocess.PIPE,
                stdout=subprocess.DEVNULL,
                stderr=errors,
                env={**os.environ, "PYTHONPATH": paths, "PYTHONSAFEPATH": "1"},
                start_new_session=True,
            )
        assert self.process.stdin is not None
        self.stdin = self.process.stdin
        with suppress(BrokenPipeError):  # it died at once; its exit code says so
            self.stdin.write(json.dumps(order).encode() + b"\n")
            self.stdin.flush()

    def stop(self) -> None:
        """Tell the process to end."""
        with suppress(OSError):
            self.stdin.close()

    def kill(self) -> None:
        """End the process and all that it started."""
        if self.process.poll() is None:
            with suppress(ProcessLookupError):
                os.killpg(self.process.pid, signal.SIGKILL)
            self.process.wait()

    def close(self) -> None:
        """Keep the log only of a process that failed; one without a reason gets it."""
        self.stop()
        code = self.process.returncode
        if code == 0:
            self.log.unlink(missing_ok=True)
        elif not _reason(self.log):
            with self.log.open("a") as file:
                file.write(f"\n{_MARK}{_ending(code, self.log)}\n")


def _stop(children: Sequence[_Child]) -> None:
    """End processes that still run, gently at first."""
    for child in children:
        child.stop()
    end = time.monotonic() + _PATIENCE
    try:
        for child in children:
            with suppress(subprocess.TimeoutExpired):
                child.process.wait(max(0.0, end - time.monotonic()))
    finally:
        for child in children:
            child.kill()
            child.log.unlink(missing_ok=True)


def _log_of(folder: Path, point: Point) -> Path:
    return folder / POINTS / f"{point.slug}.log"


def _reason(log: Path) -> str:
    """Return why a process said that it failed; nothing when it did not, or was interrupted."""
    try:
        lines = log.read_text(errors="replace").splitlines()
    except OSError:
        return ""
    found = [line.removeprefix(_MARK) for line in lines if line.startswith(_MARK)]
    return found[-1] if found and found[-1] != "interrupted" else ""


def _ending(code: int, log: Path) -> str:
    """Return in words how a process ended that said nothing itself."""
    if code < 0:
        with suppress(ValueError):
            return f"killed by signal {-code} ({signal.Signals(-code).name})"
        return f"killed by signal {-code}"
    lines = [line.strip() for line in log.read_text(errors="replace").splitlines()]
    last = next((line for line in reversed(lines) if line), "")
    return f"{last or 'no reason given'} (exit code {code}, see {log.name})"
