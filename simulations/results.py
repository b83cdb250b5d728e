"""A run folder as a reader of results sees it, finished or not.

Reports stand on this. Files may come from elsewhere: a value of the wrong type counts
as missing, and names are only ever shown, never trusted.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fedsparse.data import nodes
from fedsparse.errors import RunFolderError
from fedsparse.runs import RunFolder

Row = dict[str, Any]


def _last(values: Sequence[float]) -> float:
    return values[-1]


_SO_FAR: Mapping[str, Callable[[Sequence[float]], float]] = {
    "epsilon": _last,
    "accuracy": _last,
    "loss": _last,
    "density": _last,
    "peak_client_memory_bytes": max,
    "simulated_seconds": _last,
    "clients_refused": _last,
}
"""How an unfinished run's rounds make up a figure of the summary; others are summed."""


FLOWERS = "flwr run ."
"""What a run on Flower's nodes says that started it; its app lies elsewhere."""

_LARGEST = 1e100
"""What is larger is no measurement, and sums of it would not be finite."""


@dataclass(frozen=True)
class Results:
    """What a run left: its settings as written, its rows, partition, devices and summary."""

    name: str
    path: Path
    command: str
    settings: dict[str, dict[str, Any]]
    metrics: list[Row]
    clients: list[Row]
    partition: NDArray[np.float64] | None
    """Samples, clients x classes."""
    summary: Row | None
    devices: Row | None = None
    """What `devices.json` holds, as written."""

    @property
    def finished(self) -> bool:
        """Whether the run came to its end."""
        return self.summary is not None

    @property
    def regression(self) -> bool:
        """Whether targets are real numbers: they count as one class, and accuracy is R²."""
        return self.partition is not None and self.partition.shape[1] == 1

    @property
    def linear(self) -> bool:
        """Whether the weights are the coefficients of a linear regression."""
        return self.regression and bool(self.setting("model", "name") == "linear")

    @property
    def deployed(self) -> bool:
        """Whether the run was on Flower's nodes, which no command of ours starts again."""
        return self.command == FLOWERS

    @property
    def dense(self) -> bool:
        """Whether every round kept every weight."""
        densities = self.series("density")[1]
        return bool(densities) and min(densities) == 1

    @property
    def at_nodes(self) -> bool:
        """Whether clients train on what lies at their nodes, which the server never sees."""
        return bool(self.setting("data", "name") == nodes.NAME)

    @property
    def timed(self) -> bool:
        """Whether the rounds were timed by a simulated clock."""
        return bool(self.series("simulated_seconds")[1])

    @property
    def asynchronous(self) -> bool:
        """Whether the server took replies as they came, rather than round by round."""
        return bool(self.series("staleness")[1])

    @property
    def target(self) -> float | None:
        """The accuracy that the run was to reach, 0 to 1; None when none was set."""
        return number(self.setting("run", "target_accuracy"))

    @property
    def rounds_done(self) -> int:
        """The last round that has a row."""
        return int(max((number(row.get("round")) or 0 for row in self.metrics), default=0))

    def setting(self, section: str, key: str) -> Any:
        """Return a setting as written, None when it is not."""
        return self.settings.get(section, {}).get(key)

    def series(self, key: str) -> tuple[list[float], list[float]]:
        """Return rounds and values of a metric, without the rounds that lack it."""
        pairs = [(number(row.get("round")), number(row.get(key))) for row in self.metrics]
        known = [(x, y) for x, y in pairs if x is not None and y is not None]
        return [x for x, _ in known], [y for _, y in known]

    def figure(self, key: str) -> float | None:
        """Return a key of the summary or, for an unfinished run, what its rows say so far."""
        if self.summary is not None:
            return number(self.summary.get(key))
        values = self.series("seconds" if key == "wall_seconds" else key)[1]
        return _SO_FAR.get(key, math.fsum)(values) if values else None

    def running(self, *keys: str) -> list[float]:
        """Return, for each row, the sum of metrics so far; what a row lacks adds nothing."""
        sums = [math.fsum(number(row.get(key)) or 0.0 for key in keys) for row in self.metrics]
        return [float(total) for total in np.cumsum(sums)]

    def to_target(self, key: str) -> float | None:
        """Return the `rounds`, `seconds`, `bytes` or `joules` to the target accuracy.

        None when it was not reached, or when that was not measured.
        """
        if self.summary is not None:
            return number(self.summary.get(f"{key}_to_target"))
        hit = self._first_at_target()
        if hit is None:
            return None
        if key in ("rounds", "seconds"):
            row = self.metrics[hit]
            return number(row.get("round" if key == "rounds" else "simulated_seconds"))
        keys = ("bytes_up", "bytes_down") if key == "bytes" else ("energy_joules",)
        return self.running(*keys)[hit] if any(self.series(k)[1] for k in keys) else None

    def _first_at_target(self) -> int | None:
        target = math.inf if self.target is None else self.target
        reached = (number(row.get("accuracy")) for row in self.metrics)
        return next((i for i, v in enumerate(reached) if v is not None and v >= target), None)

    def failures(self) -> list[Row]:
        """Return the rows of clients that failed."""
        return [row for row in self.clients if row.get("status") in ("failed", "rejected")]

    def rejected(self) -> list[Row]:
        """Return the rows of clients whose replies came and were refused."""
        return [row for row in self.clients if row.get("status") == "rejected"]

    def client_accuracies(self) -> list[float]:
        """Return the accuracy of each client when clients were last tested."""
        rows = [
            (number(row.get("round")) or 0, number(row.get("accuracy")))
            for row in self.clients
            if row.get("kind") == "evaluate" and row.get("status") == "ok"
        ]
        last = max((round_number for round_number, _ in rows), default=0)
        return [value for r, value in rows if r == last and value is not None]


def read(path: Path | str) -> Results:
    """Read a run folder; raises RunFolderError when it is none or broken."""
    run = RunFolder.open(path)
    summary = run.summary() if run.finished else None
    return Results(
        name=run.path.resolve().name or str(run.path),
        path=run.path,
        command=run.command,
        settings={
            section: values
            for section, values in run.settings().items()
            if isinstance(values, dict)
        },
        metrics=_metrics(run),
        clients=run.clients(),
        partition=_partition(run),
        summary=summary,
        devices=_devices(run),
    )


def number(value: Any) -> float | None:
    """Return a number as a float, None for anything else and for what no run can measure."""
    if isinstance(value, bool) or not isinstance(value, int | float):
        return None
    try:
        value = float(value)
    except OverflowError:
        return None
    return value if abs(value) <= _LARGEST else None


def distinct_names(runs: Sequence[Results]) -> list[str]:
    """Return a name for each run, with as much of its path as tells them apart."""
    parts = [run.path.resolve().parts for run in runs]
    depth = 1
    names = ["/".join(p[-depth:]) for p in parts]
    while len(set(names)) < len(names) and depth < max(map(len, parts)):
        depth += 1
        names = ["/".join(p[-depth:]) for p in parts]
    return names


def _metrics(run: RunFolder) -> list[Row]:
    """Return the rounds' rows: all of a finished run, or what an unfinished one has so far."""
    path = run.path / "metrics.jsonl"
    if run.finished and path.name in run.lost():
        raise RunFolderError(f"'{path}' is missing or damaged; start again with another --out")
    rows = run.metrics()
    if not rows and (run.checkpoints() or (path.exists() and path.stat().st_size)):
        raise RunFolderError(
            f"'{path}' holds no whole row; `fedsparse resume {run.path}` goes on or says why not"
        )
    return rows


def _devices(run: RunFolder) -> Row | None:
    path = run.path / "devices.json"
    if not path.exists():
        return None
    found = run.read_json(path.name, "delete it for a report without it")
    return found if isinstance(found, dict) else None


def _partition(run: RunFolder) -> NDArray[np.float64] | None:
    if not (run.path / "partition.json").exists():
        return None
    path, remedy = run.path / "partition.json", "delete it for a report without it"
    found = run.read_json(path.name, remedy)
    try:
        counts = np.array(found["counts"], dtype=np.float64)
    except (KeyError, TypeError, ValueError):
        counts = np.empty(0)
    if counts.ndim != 2 or not np.isfinite(counts).all() or (counts < 0).any():
        raise RunFolderError(
            f"'{path}' does not hold counts of samples, clients x classes; {remedy}"
        )
    return counts if counts.size else None
