"""Lives of a coordinator: each in a process of its own, which may end between any two of its steps.

A step is what the coordinator does to the disk (write, flush, rename, cut, remove) or a seam of its
round. A `Death` says which one is the last: the process is gone there, in the middle of a write's
bytes, or the disk is full from there on. Processes are forked, so that none imports torch again.
"""

import errno
import io
import json
import os
import tempfile
import traceback
from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

from fedsparse.config import Config, from_json
from fedsparse.errors import RunFolderError, TooFewRepliesError
from fedsparse.runs import RunFolder
from fedsparse.runs.progress import Silent
from simulations.experiment import CLIENT_APP
from simulations.faults import FaultyGrid, Schedule
from strategies import foreign
from strategies.execute import execute
from strategies.rounds import RoundLoop
from strategies.row_writer import RowWriter
from strategies.task import Task

KILLED = 137
KILL, TEAR, FULL = "kill", "tear", "full"


@dataclass(frozen=True)
class Death:
    """How a life ends, and at which of its steps."""

    how: str
    step: int


class Steps:
    """Counts a coordinator's steps; at the one of its death it ends the process, or the space."""

    def __init__(self, death: Death | None) -> None:
        self.death = death
        self.count = 0
        self.names: list[str] = []
        self.full = False

    def step(self, name: str, act: Callable[[], Any], half: Callable[[], Any] | None = None) -> Any:
        """Do one step, or what of it is done when it is the last."""
        self.count += 1
        self.names.append(name)
        death = self.death
        if death is not None and self.count == death.step:
            if death.how == FULL:
                self.full = True
            if half is not None and death.how != KILL:
                half()
            if death.how != FULL:
                os._exit(KILLED)
        if self.full and name in ("write", "fsync", "replace", "rename"):
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        return act()

    def take_over(self) -> None:
        """Stand between this process and its disk, and in the seams of its rounds."""
        for name in ("fsync", "replace", "rename", "ftruncate", "unlink"):
            self._wrap(os, name, name)
        self._wrap(RoundLoop, "aggregate", "aggregate")
        self._wrap(FaultyGrid, "send_and_receive", "ask")
        plain, steps = Path.open, self

        def opened(path: Path, mode: str = "r", *args: Any, **kwargs: Any) -> Any:
            file = plain(path, mode, *args, **kwargs)
            return file if mode[0] == "r" else Written(file, steps)

        Path.open = opened  # type: ignore[method-assign, assignment]

    def _wrap(self, owner: Any, attribute: str, name: str) -> None:
        plain = getattr(owner, attribute)

        def wrapped(*args: Any, **kwargs: Any) -> Any:
            return self.step(name, lambda: plain(*args, **kwargs))

        setattr(owner, attribute, wrapped)


class Written:
    """A file whose writes are steps."""

    def __init__(self, file: Any, steps: Steps) -> None:
        self._file, self._steps = file, steps

    def write(self, content: Any) -> Any:
        """Write all of it, or half of it as the last act."""

        def half() -> None:
            self._file.write(content[: len(content) // 2])
            self._file.flush()

        return self._steps.step("write", lambda: self._file.write(content), half)

    def __enter__(self) -> "Written":
        return self

    def __exit__(self, *error: object) -> None:
        self._file.close()

    def __getattr__(self, name: str) -> Any:
        return getattr(self._file, name)


@lru_cache(maxsize=64)
def task_of(text: str) -> Task:
    """Return a configuration's task, once carried here, so that no life begins cold."""
    task = Task.of(from_json(text))
    with tempfile.TemporaryDirectory() as scratch:
        folder = RunFolder.create(Path(scratch) / "run", task.config, command="faults")
        clients = task.config.fleet.clients
        with folder.lock(), FaultyGrid(CLIENT_APP, clients=clients, schedule=Schedule()) as grid:
            execute(task, foreign.make(task), grid, folder, Silent())
    return task


@dataclass(frozen=True)
class End:
    """How a life ended: killed, done, few (replies), full (disk), refused or broken."""

    how: str
    said: str = ""
    steps: int = 0


def live(
    config: Config,
    out: Path,
    schedule: Schedule,
    death: Death | None = None,
    *,
    early_tests: bool = False,
    inspect: Callable[[RoundLoop, int], None] | None = None,
    plant: Callable[[], None] | None = None,
) -> End:
    """Begin a run in a process of its own, or go on with it, until its end or the process's.

    `early_tests`: whether a test of the model is always done before the next reply. `inspect` looks
    at the loop after each round, `plant` puts a bug into the process.
    """
    task_of(config.to_json())
    read, write = os.pipe()
    child = os.fork()
    if child == 0:
        os.close(read)
        steps = Steps(death)
        try:
            if plant is not None:
                plant()
            end = _lived(config, out, schedule, steps, early_tests, inspect)
        except BaseException:
            end = End("broken", traceback.format_exc(), steps.count)
        os.write(write, json.dumps([end.how, end.said[-4000:], steps.count]).encode())
        os._exit(0)
    os.close(write)
    with io.FileIO(read) as pipe:
        told = pipe.readall()
    code = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    if code == KILLED and not told:
        return End("killed")
    return End(*json.loads(told)) if code == 0 and told else End("broken", f"exit code {code}")


def _lived(
    config: Config,
    out: Path,
    schedule: Schedule,
    steps: Steps,
    early_tests: bool,
    inspect: Callable[[RoundLoop, int], None] | None,
) -> End:
    polled = RowWriter.settle if early_tests else (lambda self: None)  # not by the clock
    RowWriter.poll = polled  # type: ignore[method-assign]
    if inspect is not None:
        plain = RoundLoop.round

        def looked_at(loop: RoundLoop, number: int) -> None:
            plain(loop, number)
            inspect(loop, number)

        RoundLoop.round = looked_at  # type: ignore[method-assign]
    steps.take_over()
    task = task_of(config.to_json())
    strategy = foreign.make(task)
    try:
        if (out / "run.json").exists():
            folder = RunFolder.open(out)
            assert folder.config == config
        else:
            folder = RunFolder.create(out, config, command="faults")
        with (
            folder.lock(),
            FaultyGrid(CLIENT_APP, clients=config.fleet.clients, schedule=schedule) as grid,
        ):
            execute(task, strategy, grid, folder, Silent())
    except TooFewRepliesError as error:
        return End("few", str(error))
    except RunFolderError as error:
        how = "full" if steps.full and "disk" in str(error) else "refused"
        return End(how, str(error))
    return End("done")
