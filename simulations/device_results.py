"""What a run folder says about devices: who has which, and what each client did when.

Values of the wrong type count as missing, as everywhere in results.
"""

import math
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray

from simulations.results import Results, Row, number

MEMORY = ("parameters", "gradients", "optimizer", "activations", "buffer")
"""What holds a client's memory while it trains."""


_EXACT = 1e-3
"""Share of a device's largest joules that powers may leave unexplained."""


@dataclass(frozen=True)
class Devices:
    """A fleet as `devices.json` describes it; counts are clients, sizes are bytes."""

    profile: str
    profiles: dict[str, float]
    limits: dict[str, float]
    """Memory for training by profile; inf where there is no limit."""
    refused: dict[str, float]
    refused_by_profile: dict[str, float]
    reduced: dict[str, float]
    memory: dict[str, dict[str, float]]
    """Bytes by method, then by what holds them."""


@dataclass(frozen=True)
class Bar:
    """One client's part in one round, in simulated seconds."""

    round: float
    client: int
    device: str
    status: str
    reason: str
    started: float
    download: float
    compute: float
    upload: float
    joules: float | None
    staleness: float | None

    @property
    def spent(self) -> float:
        """Seconds that the device was busy."""
        return self.download + self.compute + self.upload

    @property
    def ended(self) -> float:
        """The simulated second at which its reply came, or its work broke off."""
        return self.started + self.spent


@dataclass(frozen=True)
class Track:
    """One run of a report with simulated devices: its name, place among all, and rows."""

    run: Results
    name: str
    index: int

    @cached_property
    def devices(self) -> Devices | None:
        """What `devices.json` says, None without a usable one."""
        return _devices(self.run.devices)

    @cached_property
    def bars(self) -> list[Bar]:
        """What each client did in each round, of those rows that say when."""
        rows = (row for row in self.run.clients if row.get("kind") == "train")
        return [bar for row in rows if (bar := _bar(row)) is not None]

    @cached_property
    def by_round(self) -> dict[float, list[Bar]]:
        """The same by round, in rising order."""
        found = defaultdict(list)
        for bar in self.bars:
            found[bar.round].append(bar)
        return dict(sorted(found.items()))

    @cached_property
    def ends(self) -> dict[float, float]:
        """The simulated second at which each round ended."""
        return dict(zip(*self.run.series("simulated_seconds"), strict=True))

    def lasted(self, asked: float) -> tuple[float, float]:
        """Return the simulated seconds at which a round with bars began and ended."""
        bars = self.by_round[asked]
        end = self.ends.get(asked, max(bar.ended for bar in bars))
        return min(min(bar.started for bar in bars), end), end

    def shares(self) -> tuple[list[float], NDArray[np.float64]]:
        """Return rounds, and client seconds: rounds x (computing, transfer, waiting, lost).

        Lost is all that a device did for a reply that came late or never. A client of an
        asynchronous run doesn't wait.
        """
        rounds = list(self.by_round)
        seconds = np.zeros((len(rounds), 4))
        for row, (asked, bars) in zip(seconds, self.by_round.items(), strict=True):
            end = self.lasted(asked)[1]
            for bar in bars:
                if bar.status != "ok":
                    row[3] += bar.spent
                    continue
                row[0] += bar.compute
                row[1] += bar.download + bar.upload
                row[2] += 0.0 if self.run.asynchronous else max(0.0, end - bar.ended)
        return rounds, seconds

    def powers(self) -> dict[str, tuple[float, float]] | None:
        """Return watts of computing and of the radio by device, where rows tell them apart.

        Rows give joules alone; they tell when two powers explain all of a device's joules.
        """
        rows: dict[str, list[tuple[float, float, float]]] = defaultdict(list)
        for bar in self.bars:
            rows[bar.device].append((bar.compute, bar.download + bar.upload, bar.joules or 0.0))
        found = {}
        for device, values in rows.items():
            table = np.array(values)
            scale = np.maximum(table.max(0), 1e-300)
            watts, _, rank, _ = np.linalg.lstsq(table[:, :2] / scale[:2], table[:, 2] / scale[2])
            missed = np.abs(table[:, :2] / scale[:2] @ watts - table[:, 2] / scale[2]).max()
            if rank < 2 or missed > _EXACT or (watts < -_EXACT).any():
                return None
            computing, radio = np.maximum(watts, 0.0) * scale[2] / scale[:2]
            if not np.isfinite([computing, radio]).all():
                return None
            found[device] = (float(computing), float(radio))
        return found or None


def tracks(runs: Sequence[Results], names: Sequence[str]) -> list[Track]:
    """Return those runs that have devices or a simulated clock."""
    found = [Track(run, name, i) for i, (run, name) in enumerate(zip(runs, names, strict=True))]
    return [track for track in found if track.run.timed or track.devices]


def _devices(found: Row | None) -> Devices | None:
    if found is None:
        return None
    profiles = _amounts(found.get("profiles"))
    methods = found.get("memory_by_method")
    memory = {
        label: {part: held.get(part, 0.0) for part in MEMORY}
        for label, parts in (methods.items() if isinstance(methods, dict) else ())
        if (held := _amounts(parts)) and any(part in held for part in MEMORY)
    }
    if not profiles and not memory:
        return None
    limits = found.get("limits")
    unlimited = [k for k, v in limits.items() if v is None] if isinstance(limits, dict) else []
    name = found.get("profile")
    return Devices(
        profile=name if isinstance(name, str) else "",
        profiles=profiles,
        limits=_amounts(limits) | dict.fromkeys(unlimited, math.inf),
        refused=_amounts(found.get("refused")),
        refused_by_profile=_amounts(found.get("refused_by_profile")),
        reduced=_amounts(found.get("reduced")),
        memory=memory,
    )


def _amounts(found: Any) -> dict[str, float]:
    """Return the values of a JSON object that are numbers, 0 or more."""
    if not isinstance(found, dict):
        return {}
    known = ((str(key), number(value)) for key, value in found.items())
    return {key: value for key, value in known if value is not None and value >= 0}


def _bar(row: Row) -> Bar | None:
    known = [number(row.get(key)) for key in ("round", "client", "started")]
    if None in known or not isinstance(row.get("status"), str):
        return None
    asked, client, started = (value or 0.0 for value in known)
    parts = [number(row.get(f"{key}_seconds")) for key in ("download", "compute", "upload")]
    download, compute, upload = (max(0.0, value or 0.0) for value in parts)
    joules = number(row.get("energy_joules"))
    return Bar(
        round=asked,
        client=int(client),
        device=_word(row.get("device"), "unknown"),
        status=row["status"],
        reason=_word(row.get("reason"), ""),
        started=started,
        download=download,
        compute=compute,
        upload=upload,
        joules=joules if joules is not None and joules >= 0 else None,
        staleness=number(row.get("staleness")),
    )


def _word(value: Any, otherwise: str) -> str:
    return value if isinstance(value, str) else otherwise
