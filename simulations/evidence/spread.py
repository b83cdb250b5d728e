"""How a measure varies over retrained models of other seeds, and where one more would lie."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

from simulations.comparison import half_width, mean


@dataclass(frozen=True)
class Spread:
    """A measure over several models.

    `ci95` is half the 95 % interval of the mean (Student's t). `next95` is half the interval in
    which one further model lies with 95 % chance, t s sqrt(1 + 1/n): what a single model is
    held against. Both are None of a single model.
    """

    mean: float
    ci95: float | None
    next95: float | None
    models: int


def spread(values: Sequence[float | None]) -> Spread | None:
    """Return the spread of the values that are known; None of none."""
    known = [value for value in values if value is not None]
    middle, half = mean(known), half_width(known)
    if middle is None:
        return None
    ahead = None if half is None else half * math.sqrt(len(known) + 1)
    return Spread(middle, half, ahead, len(known))
