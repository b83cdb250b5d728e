"""What model files cost on this machine: time, memory, and what the first inference takes.

Each file is loaded in a fresh process, all pinned to the same cores. Then they take turns, a
few inferences each, so that whatever else the machine does falls on all of them alike.
"""

import math
import os
import select
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator, Sequence, Set
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edge_export.bench import runtimes
from edge_export.bench.ending import ending
from fedsparse.errors import BenchError, one_line

WORKER = Path(__file__).with_name("worker.py")
ROUNDS = 20
TURN_SECONDS = 0.1
"""About what a file's turn in a round lasts."""
MOST_A_TURN = 50
WARM_UP_SECONDS, LEAST_WARM_UP = 0.3, 3
PATIENCE_SECONDS = 600.0
"""A worker that is silent for so long is given up."""
PATIENCE_TO_END = 60.0
"""A worker that has answered for the last time ends within so many seconds."""
STARTED = frozenset({"import_ns", "cold_ns", "version"})
INFERRED, ENDED = frozenset({"ns"}), frozenset({"peak_memory_bytes"})
"""What the worker's replies hold."""
Array = NDArray[Any]
Progress = Callable[[str, int, int], None]
"""Called with what goes on, how much is done, and of how much."""


@dataclass(frozen=True)
class LocalCost:
    """What one file costs here. Milliseconds are of one inference.

    `cold_start_ms` is loading, allocating and the first inference in a fresh process, without
    importing the runtime (`import_ms`). `peak_memory_bytes` is what the process grew by since
    before it loaded the file.
    """

    file: Path
    runtime: str
    version: str
    threads: int
    samples: int
    p50_ms: float
    p90_ms: float
    p99_ms: float
    import_ms: float
    cold_start_ms: float
    peak_memory_bytes: int
    file_bytes: int
    outputs: tuple[Array, ...] = field(repr=False, compare=False)
    """What the file gives for the worker's seeded random input."""


def measure(
    files: Sequence[Path],
    *,
    runtime: str | None = None,
    threads: int = 1,
    python: Path | None = None,
    progress: Progress = lambda *_: None,
) -> list[LocalCost]:
    """Measure files against each other on this machine, in their order.

    `python` is an interpreter that has the runtime; this one if unset. Raises BenchError.
    """
    chosen = runtimes.chosen(files, runtime)
    cores = pinned(threads)
    with ExitStack() as stack:
        workers = []
        for number, file in enumerate(files):
            progress(f"load {file.name}", number, len(files) + ROUNDS)
            started = _started(file, chosen[file], threads, cores, python or Path(sys.executable))
            workers.append(stack.enter_context(started))
        turns = [worker.warm_up() for worker in workers]
        for number in range(ROUNDS):
            progress("measure", len(files) + number, len(files) + ROUNDS)
            # Every other round goes backwards: who follows whom favours nobody.
            for place in range(len(workers))[:: 1 if number % 2 == 0 else -1]:
                workers[place].run(turns[place])
        return [worker.finish(threads) for worker in workers]


def pinned(threads: int) -> list[int]:
    """Return the cores to run on, none where the system cannot pin; raises BenchError."""
    if not hasattr(os, "sched_getaffinity"):
        return []
    there = sorted(os.sched_getaffinity(0))
    if threads > len(there):
        raise BenchError(f"{threads} threads need as many cores; this process may use {len(there)}")
    return there[-threads:]  # the first core serves most of a system's interrupts


class Worker:
    """A process that has loaded one file and infers when it is told to."""

    def __init__(
        self, file: Path, runtime: str, process: "subprocess.Popen[str]", python: Path, folder: Path
    ) -> None:
        self.file, self.runtime = file, runtime
        self._process, self._python, self._folder = process, python, folder
        self._samples: list[int] = []
        self._start = self._answer(STARTED)

    def warm_up(self) -> int:
        """Run until caches and clock have settled; return how many inferences make a turn."""
        taken = self._ask("run 1")["ns"]
        while len(taken) < LEAST_WARM_UP or sum(taken) < WARM_UP_SECONDS * 1e9:
            taken += self._ask(f"run {_times(WARM_UP_SECONDS / 4, taken[-1])}")["ns"]
        return _times(TURN_SECONDS, float(np.median(taken)))

    def run(self, times: int) -> None:
        """Infer so many times and keep how long each took."""
        self._samples += self._ask(f"run {times}")["ns"]

    def finish(self, threads: int) -> LocalCost:
        """End the process and return what was measured."""
        last = self._ask("end", ENDED)
        if self._ended() != 0:
            raise self._crashed()
        p50, p90, p99 = (float(v) / 1e6 for v in np.percentile(self._samples, (50, 90, 99)))
        return LocalCost(
            file=self.file,
            runtime=self.runtime,
            version=self._start["version"],
            threads=threads,
            samples=len(self._samples),
            p50_ms=p50,
            p90_ms=p90,
            p99_ms=p99,
            import_ms=self._start["import_ns"] / 1e6,
            cold_start_ms=self._start["cold_ns"] / 1e6,
            peak_memory_bytes=last["peak_memory_bytes"],
            file_bytes=self.file.stat().st_size,
            outputs=saved_outputs(self._folder),
        )

    def _ask(self, line: str, wanted: Set[str] = INFERRED) -> dict[str, Any]:
        assert self._process.stdin is not None
        with suppress(BrokenPipeError):  # what ended the worker is told below
            self._process.stdin.write(line + "\n")
            self._process.stdin.flush()
        return self._answer(wanted)

    def _answer(self, wanted: Set[str]) -> dict[str, Any]:
        assert self._process.stdout is not None
        ready, _, _ = select.select([self._process.stdout], [], [], PATIENCE_SECONDS)
        if not ready:
            raise BenchError(f"{self.runtime} runs '{self.file}' without an end; is it a model?")
        line = self._process.stdout.readline()
        if not line.endswith("\n"):
            raise self._crashed()
        reply = runtimes.reply_of(line)
        if "failed" in reply:
            raise runtimes.explain(self.file, self.runtime, reply, f"by '{self._python}'")
        if reply.keys() != wanted:
            raise BenchError(
                f"'{self._python}' answers {one_line(line)[:80]!r}, not as an interpreter of "
                "Python that runs the worker does; give another --runtime-python"
            )
        return reply

    def _ended(self) -> int:
        """Return the exit status; raises BenchError for a process that goes on."""
        try:
            return self._process.wait(PATIENCE_TO_END)
        except subprocess.TimeoutExpired:
            raise BenchError(f"'{self._python}' does not end after '{self.file}'") from None

    def _crashed(self) -> BenchError:
        code = self._ended()
        errors = (self._folder / "errors").read_text(encoding="utf-8", errors="replace")
        return BenchError(
            f"{self.runtime} fails on '{self.file}': {ending(code, errors)}; "
            "the file may be damaged: export it again"
        )


@contextmanager
def _started(
    file: Path, runtime: str, threads: int, cores: Sequence[int], python: Path
) -> Iterator[Worker]:
    """Start a worker and end it whatever happens."""
    pinning = ",".join(map(str, cores)) or "-"
    words = ["serve", runtime, str(file.resolve()), str(threads), pinning]
    with tempfile.TemporaryDirectory(prefix="fedsparse-bench-") as folder:
        with open(Path(folder) / "errors", "wb") as errors:
            try:
                process = subprocess.Popen(
                    [str(python), str(WORKER), *words, folder],
                    stdin=subprocess.PIPE,
                    stdout=subprocess.PIPE,
                    stderr=errors,
                    text=True,
                )
            except OSError as error:
                raise BenchError(f"'{python}' cannot be started: {error.strerror}") from None
        with process:
            try:
                yield Worker(file, runtime, process, python, Path(folder))
            finally:
                process.kill()


def saved_outputs(folder: Path) -> tuple[Array, ...]:
    """Return the outputs that a worker saved in a folder."""
    count = len(list(folder.glob("output-*.npy")))
    places = [folder / f"output-{n}.npy" for n in range(count)]
    return tuple(np.load(place, allow_pickle=False) for place in places)


def _times(seconds: float, nanoseconds: float) -> int:
    """Return how many inferences of so many nanoseconds fill so many seconds, at least one."""
    return max(1, min(MOST_A_TURN, math.ceil(seconds * 1e9 / max(nanoseconds, 1.0))))
