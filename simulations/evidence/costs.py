"""What unlearning cost beside retraining: rounds, bytes, work, time and energy."""

import math
from collections.abc import Sequence
from dataclasses import dataclass, fields

from fedsparse.runs import RunFolder
from simulations.results import number


@dataclass(frozen=True)
class Cost:
    """Rounds, bytes both ways, FLOPs of training, seconds here, on the clock, and joules.

    What no round measured is None: the clock and energy of runs without devices.
    """

    rounds: int
    bytes: float
    flops: float
    seconds: float
    simulated_seconds: float | None = None
    joules: float | None = None


@dataclass(frozen=True)
class Costs:
    """Costs of the unlearning itself, of the search for its strength, and of retraining.

    `ratio` is unlearning with its search by retraining, for each figure that both have.
    """

    unlearning: Cost
    search: Cost | None
    retraining: Cost | None
    ratio: dict[str, float]


def cost_of(folder: RunFolder, after: int | None = None) -> Cost:
    """Return what a run cost, or what it cost after a round, where it went on from a checkpoint."""
    rows = [row for row in folder.metrics() if after is None or row["round"] > after]

    def total(*keys: str) -> float | None:
        found = [value for key in keys for row in rows if (value := number(row.get(key)))]
        return math.fsum(found) if found else None

    clock = [value for row in rows if (value := number(row.get("simulated_seconds")))]
    before = [
        value
        for row in folder.metrics()
        if after is not None
        and row["round"] <= after
        and (value := number(row.get("simulated_seconds")))
    ]
    return Cost(
        rounds=sum(row["round"] > 0 for row in rows),
        bytes=total("bytes_up", "bytes_down") or 0.0,
        flops=total("train_flops") or 0.0,
        seconds=total("seconds") or 0.0,
        simulated_seconds=max(clock) - max(before, default=0.0) if clock else None,
        joules=total("energy_joules"),
    )


def together(parts: Sequence[Cost]) -> Cost:
    """Return the sum of costs; what one of them did not measure is None."""

    def known(values: Sequence[float | None]) -> float | None:
        found = [value for value in values if value is not None]
        return math.fsum(found) if len(found) == len(values) else None

    return Cost(
        rounds=sum(part.rounds for part in parts),
        bytes=math.fsum(part.bytes for part in parts),
        flops=math.fsum(part.flops for part in parts),
        seconds=math.fsum(part.seconds for part in parts),
        simulated_seconds=known([part.simulated_seconds for part in parts]),
        joules=known([part.joules for part in parts]),
    )


def costs(unlearning: Cost, search: Sequence[Cost] = (), retraining: Cost | None = None) -> Costs:
    """Set what unlearning cost, with its search, against retraining."""
    searched = together(search) if search else None
    paid = unlearning if searched is None else together([unlearning, searched])
    ratio = {}
    for field in fields(Cost) if retraining is not None else ():
        ours, theirs = getattr(paid, field.name), getattr(retraining, field.name)
        if ours is not None and theirs:
            ratio[field.name] = ours / theirs
    return Costs(unlearning, searched, retraining, ratio)
