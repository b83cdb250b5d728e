"""What `fedsparse list devices` prints: the shipped profiles and fleets, as a table or JSON.

The table rounds; the JSON holds every figure as it is, with its source, and can be read
back as a profile. What is not limited is "inf" there, because JSON knows no infinity.
"""

import math
from typing import Any

from fedsparse.devices import mixture, profile
from fedsparse.devices.mixture import Mixture
from fedsparse.devices.profile import Availability, Profile

HEADING = ("device", "dense", "sparse", "memory", "up / down", "latency", "power", "available")


def figures() -> dict[str, dict[str, Any]]:
    """Return all figures of the shipped profiles and fleets as plain values for JSON."""
    return {
        "profiles": {name: _plain(figures_of(profile.shipped(name))) for name in profile.names()},
        "fleets": {name: _fleet(mixture.find(name)) for name in mixture.names()},
    }


def figures_of(device: Profile) -> dict[str, Any]:
    """Return a profile's figures, defaults too, as a file of it would hold them."""
    unused = {"sparse_efficiency"} if device.sparse_curve else set()
    return device.model_dump(exclude_none=True, exclude=unused)


def lines() -> list[str]:
    """Return the shipped profiles as a table, a line each, and what the fleets mix."""
    table = [HEADING, *(_row(profile.shipped(name)) for name in profile.names())]
    widths = [max(map(len, column)) for column in zip(*table, strict=True)]
    found = [
        "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip()
        for row in table
    ]
    wide = max(map(len, mixture.names()))
    return [
        *found,
        "",
        "fleet".ljust(wide) + "  mixture; spread",
        *(f"{name:<{wide}}  {_mix(mixture.find(name))}" for name in mixture.names()),
    ]


def _row(device: Profile) -> tuple[str, ...]:
    sparse = "curve" if device.sparse_curve else f"{device.sparse_efficiency:g}"
    up, down = _scaled(device.up_bytes_per_second), _scaled(device.down_bytes_per_second)
    return (
        device.name,
        f"{_scaled(device.dense_flops)}FLOP/s",
        sparse,
        f"{_scaled(device.memory_bytes)}B" if device.memory_bytes else "none",
        f"{up}B/s / {down}B/s",
        f"{device.latency_seconds * 1000:g} ms",
        f"{device.compute_watts:g} W / {device.radio_watts:g} W",
        _when(device.availability),
    )


def _scaled(value: float) -> str:
    """Return a figure to three digits with a decimal prefix: 9.2e9 is "9.2 G"."""
    if math.isinf(value):
        return "inf "
    for size, prefix in ((1e12, "T"), (1e9, "G"), (1e6, "M"), (1e3, "k")):
        if value >= size:
            return f"{value / size:.3g} {prefix}"
    return f"{value:.3g} "


def _when(hours: Availability) -> str:
    if hours.fraction == 1 and hours.amplitude == 0:
        return "always"
    return f"{hours.fraction:.0%}, most at {hours.peak_hour:g} h"


def _mix(fleet: Mixture) -> str:
    shares = ", ".join(
        f"{share:.0%} {member.name}"
        for member, share in zip(fleet.profiles, fleet.shares, strict=True)
    )
    spread = ", ".join(f"{key} {value:g}" for key, value in fleet.spread if value)
    return f"{shares}; {spread}"


def _fleet(fleet: Mixture) -> dict[str, Any]:
    return {
        "name": fleet.name,
        "description": fleet.description,
        "device": [
            {"profile": member.name, "share": share}
            for member, share in zip(fleet.profiles, fleet.shares, strict=True)
        ],
        "spread": fleet.spread.model_dump(),
    }


def _plain(value: Any) -> Any:
    """Return nested values with "inf" for infinity."""
    if isinstance(value, dict):
        return {key: _plain(each) for key, each in value.items()}
    return "inf" if value == math.inf else value
