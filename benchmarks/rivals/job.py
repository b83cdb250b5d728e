"""The job that every side does, and how a side tells what it took. Numpy and the standard library.

A folder of arrays, written once by `benchmarks.bench_jobs`, is all that a rival reads: it needs
nothing of fedsparse. Each side prints one line of JSON.
"""

import argparse
import json
import os
import platform
import time
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np

LR = 0.05
BATCH = 32
CLASSES = 10


@dataclass(frozen=True)
class Job:
    """Fashion-MNIST dealt to clients, and who takes part in which round.

    x: float32 (n, 1, 28, 28); y: int64 (n,); parts: positions by client; cohorts: clients by
    round, the warm-up round first. One epoch a round, batches of BATCH, SGD with LR.
    """

    x: np.ndarray
    y: np.ndarray
    test_x: np.ndarray
    test_y: np.ndarray
    parts: list[np.ndarray]
    cohorts: np.ndarray

    def own(self, client: int) -> tuple[np.ndarray, np.ndarray]:
        """Return one client's samples and labels."""
        return self.x[self.parts[client]], self.y[self.parts[client]]

    def samples(self, round_number: int) -> int:
        """Return how many samples the clients of a round train on, from round 0."""
        return sum(len(self.parts[client]) for client in self.cohorts[round_number])


NAMES = ("x", "y", "test_x", "test_y", "order", "sizes", "cohorts")


def read(folder: Path | str) -> Job:
    """Map a job's files into memory, to be shared by processes; writing to them changes a copy."""
    arrays = {name: np.load(Path(folder) / f"{name}.npy", mmap_mode="c") for name in NAMES}
    parts = np.split(np.asarray(arrays.pop("order")), np.cumsum(arrays.pop("sizes"))[:-1])
    return Job(parts=parts, **arrays)


def arguments(**more: Any) -> argparse.Namespace:
    """Read a side's command line: job, model, measured rounds, and what `more` adds."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--job", type=Path, required=True, help="folder of the job's arrays")
    parser.add_argument("--model", default="tiny")
    parser.add_argument("--rounds", type=int, default=4, help="measured, after one of warm-up")
    for name, default in more.items():
        parser.add_argument(
            f"--{name.replace('_', '-')}", type=type(default), default=default, help="%(default)s"
        )
    return parser.parse_args()


LAUNCHED = "BENCHMARK_LAUNCHED"
"""Environment variable: when the command was given, by `now`; else this process's own start."""


def now() -> float:
    """Return the seconds since the machine was started (Linux)."""
    return time.clock_gettime(time.CLOCK_BOOTTIME)


def age() -> float:
    """Return the seconds since the command was given."""
    started = int(Path("/proc/self/stat").read_text().rpartition(")")[2].split()[19])
    return now() - float(os.environ.get(LAUNCHED, started / os.sysconf("SC_CLK_TCK")))


class Stopwatch:
    """Notes when each round ended, and prints the line of JSON.

    Start-up is everything before the first round: the interpreter, imports, data, model, workers
    as far as they start by then.
    """

    def __init__(self) -> None:
        self.begun = 0.0
        self.ends: list[float] = []
        self.samples: list[int] = []

    def start(self) -> None:
        """The first round begins."""
        self.begun = age()

    def lap(self, samples: int) -> None:
        """A round that trained on so many samples has ended."""
        self.ends.append(age())
        self.samples.append(int(samples))

    def report(self, side: str, model: str, packages: tuple[str, ...], **more: Any) -> None:
        """Print what was measured: the first round apart, the others together."""
        seconds = np.diff([self.begun, *self.ends]).tolist()
        found = {
            "side": side,
            "model": model,
            "start_seconds": self.begun,
            "first_round_seconds": seconds[0],
            "round_seconds": seconds[1:],
            "round_samples": self.samples[1:],
            "samples_per_second": sum(self.samples[1:]) / sum(seconds[1:]),
            "versions": {
                "python": platform.python_version(),
                **{name: version(name) for name in packages},
            },
            **more,
        }
        print(json.dumps(found), flush=True)
