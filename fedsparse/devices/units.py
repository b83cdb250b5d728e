"""Units of the figures: what a key's name says, and what a text such as "4 GB" comes to.

Every figure is a bare number in the unit of its key. A text with a unit is refused, but
the message gives the number that was meant.
"""

import math
import re

UNITS = {
    "bytes_per_second": "bytes a second",
    "flops": "FLOP/s",
    "bytes": "bytes",
    "seconds": "seconds",
    "watts": "watts",
    "joules": "joules",
    "hour": "hours",
    "hours": "hours",
    "computation": "milliseconds",
    "communication": "kilobits a second",
}
"""The unit by the end of a key's name."""

_TEXT = re.compile(
    r"\s*([-+]?[0-9.]+(?:[eE][-+]?[0-9]+)?)\s*"
    r"([kKMGTm]?i?)(bytes|byte|B|bits|bit|bps|b|FLOPS|FLOPs|FLOP|Wh|W|J|s|h)"
    r"(?:/s|ps|/second)?\s*"
)
_PREFIX = {"": 1.0, "k": 1e3, "K": 1e3, "M": 1e6, "G": 1e9, "T": 1e12, "m": 1e-3}
_BINARY = {"Ki": 2.0**10, "Mi": 2.0**20, "Gi": 2.0**30, "Ti": 2.0**40}
_BYTE, _BIT, _FLOP = {"bytes", "byte", "B"}, {"bits", "bit", "bps", "b"}, {"FLOPS", "FLOPs", "FLOP"}
_KIND = {
    **dict.fromkeys(_BYTE, ("bytes", 1.0)),
    **dict.fromkeys(_BIT, ("bytes", 1 / 8)),
    **dict.fromkeys(_FLOP, ("flops", 1.0)),
    "W": ("watts", 1.0),
    "Wh": ("joules", 3600.0),
    "J": ("joules", 1.0),
    "s": ("seconds", 1.0),
    "h": ("seconds", 3600.0),
}
_TARGET = {
    "bytes a second": ("bytes", 1.0),
    "bytes": ("bytes", 1.0),
    "FLOP/s": ("flops", 1.0),
    "seconds": ("seconds", 1.0),
    "watts": ("watts", 1.0),
    "joules": ("joules", 1.0),
    "hours": ("seconds", 1 / 3600),
    "milliseconds": ("seconds", 1e3),
    "kilobits a second": ("bytes", 8 / 1e3),
}


def unit_of(key: str) -> str | None:
    """Return the unit of a key, such as "bytes" for memory_bytes; None for a bare number."""
    words = key.split("_")
    ends = ("_".join(words[start:]) for start in range(len(words)))
    return next((UNITS[end] for end in ends if end in UNITS), None)


def converted(text: str, unit: str | None) -> float | None:
    """Return a text with a unit, such as "4 GB", as a number of `unit`; None if it is none.

    Prefixes are decimal (k, M, G, T) or binary (Ki, Mi, Gi, Ti).
    """
    found = _TEXT.fullmatch(text)
    if found is None or unit not in _TARGET:
        return None
    prefix = _BINARY.get(found[2], _PREFIX.get(found[2]))
    kind, size = _KIND[found[3]]
    target, scale = _TARGET[unit]
    if prefix is None or kind != target:
        return None
    try:
        return float(found[1]) * prefix * size * scale
    except ValueError:
        return None


def plain(value: float) -> str:
    """Return a number as it is written into a file: no exponent where it is a whole number."""
    whole = math.isfinite(value) and value == int(value) and abs(value) < 1e15
    return str(int(value)) if whole else f"{value:.12g}"


def remedy(key: str, value: object) -> str:
    """Return what to write for `key` instead of a value that is no number."""
    unit = unit_of(key)
    meant = converted(value, unit) if isinstance(value, str) else None
    if meant is not None:
        return f"the unit of {key} is {unit}, without a unit in the value: write {plain(meant)}"
    return f"must be a number of {unit}" if unit else "must be a number"
