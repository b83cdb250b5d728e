"""Quantities in the units that people read: kB and MB, GFLOP, minutes, per cent."""

import math
from collections.abc import Sequence

BYTES: Sequence[tuple[float, str]] = ((1e12, "TB"), (1e9, "GB"), (1e6, "MB"), (1e3, "kB"), (1, "B"))
FLOPS: Sequence[tuple[float, str]] = (
    (1e18, "EFLOP"),
    (1e15, "PFLOP"),
    (1e12, "TFLOP"),
    (1e9, "GFLOP"),
    (1e6, "MFLOP"),
    (1e3, "kFLOP"),
    (1, "FLOP"),
)
JOULES: Sequence[tuple[float, str]] = ((1e9, "GJ"), (1e6, "MJ"), (1e3, "kJ"), (1, "J"))
NONE = "–"

_DAYS = 72 * 3600
"""Seconds from which on days are easier to read than hours."""


def scale(largest: float, units: Sequence[tuple[float, str]] = BYTES) -> tuple[float, str]:
    """Return the unit, as (size, name), in which `largest` reads as at least 1."""
    return next((unit for unit in units if abs(largest) >= unit[0]), units[-1])


def in_units(value: float | None, units: Sequence[tuple[float, str]] = BYTES) -> str:
    """Return a value in its own best unit, to three digits: `1.23 MB`."""
    if value is None:
        return NONE
    size, name = scale(value, units)
    return f"{digits(value / size)} {name}"


def digits(value: float, count: int = 3) -> str:
    """Return a number to `count` significant digits, never in exponent form."""
    if value == 0 or not math.isfinite(value):
        return f"{value:g}"
    decimals = max(0, count - 1 - math.floor(math.log10(abs(value))))
    text = f"{value:.{decimals}f}"
    return text.rstrip("0").rstrip(".") if decimals > count else text


def percent(fraction: float | None) -> str:
    """Return a fraction as per cent, to three digits: `94.2 %`."""
    return NONE if fraction is None else f"{digits(100 * fraction)} %"


def duration(seconds: float | None) -> str:
    """Return seconds as `0.42 s`, `3 min 20 s`, `1 h 05 min` or `4 d 07 h`."""
    if seconds is None:
        return NONE
    if seconds < 60:
        return f"{digits(seconds)} s"
    minutes, rest = divmod(round(seconds), 60)
    if minutes < 60:
        return f"{minutes} min {rest:02d} s"
    if seconds < _DAYS:
        return f"{minutes // 60} h {minutes % 60:02d} min"
    hours = round(seconds / 3600)
    return f"{hours // 24} d {hours % 24:02d} h"


def clock(longest: float) -> tuple[float, str]:
    """Return the unit of an axis of time, as (seconds, name), that fits its longest value."""
    for least, size, name in ((_DAYS, 86400, "days"), (7200, 3600, "h"), (120, 60, "min")):
        if longest >= least:
            return size, name
    return 1, "s"
