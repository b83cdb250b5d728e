"""Schedules: a density or an adjusted fraction as a function of the round.

A schedule is a plain function of the round number; strategies combine them with
criteria and allocations.
"""

import math
from collections.abc import Callable

from fedsparse.errors import ConfigError

Schedule = Callable[[int], float]


def constant(value: float) -> Schedule:
    """The same value in every round."""
    return lambda t: value


def linear(start: float, end: float, t0: int, t1: int) -> Schedule:
    """From `start` at t0 to `end` at t1 in a straight line, flat outside."""
    progress = _progress(t0, t1)
    return lambda t: start + (end - start) * progress(t)


def cosine(alpha: float, t_end: int) -> Schedule:
    """f(t) = (alpha / 2) (1 + cos(pi t / t_end)), 0 from t_end on (RigL, eq. 1)."""
    return lambda t: 0.0 if t >= t_end else alpha / 2 * (1 + math.cos(math.pi * t / t_end))


def cubic(start: float, end: float, t0: int, t1: int) -> Schedule:
    """end + (start - end) (1 - progress)^3 (Zhu & Gupta 2017, eq. 1, in densities)."""
    progress = _progress(t0, t1)
    return lambda t: end + (start - end) * (1 - progress(t)) ** 3


def _progress(t0: int, t1: int) -> Schedule:
    if t1 <= t0:
        raise ConfigError(f"a schedule from round {t0} to {t1} has no length; end it later")
    return lambda t: min(1.0, max(0.0, (t - t0) / (t1 - t0)))
