"""The charts of a report about devices: who has which, and whose memory holds which method.

Each function takes the runs with devices, and whether the report is about one run alone.
"""

import math
from collections.abc import Sequence

import numpy as np

from simulations import units
from simulations.device_results import MEMORY, Devices, Track
from simulations.figures import Chart, Key, as_text, shortened
from simulations.results import Row
from simulations.stacks import Part, by_name, legend_of

MOST_NAMES = 24
"""Profiles, methods or runs drawn; those beyond are left out, and the caption says so."""

_MOST_LIMITS = 6
_MEMORY_COLOURS = dict(zip(MEMORY, (1, 2, 4, 7, 3), strict=True))
_NARROW = 190
"""Pixels that a phone leaves for the bars; labels are placed so that they fit there."""


def mixture(tracks: Sequence[Track], single: bool) -> Chart | None:
    """Return how many clients have which device, and how many of them are refused."""
    found = [(t, t.devices) for t in tracks if t.devices and t.devices.profiles]
    if not found:
        return None
    rows: list[tuple[str, float, float]] = []
    for track, devices in found:
        refused = devices.refused_by_profile
        if single:
            held = {name: n for name, n in devices.profiles.items() if n}
            rows += [(name, n, min(n, refused.get(name, 0.0))) for name, n in held.items()]
        else:
            every = sum(devices.profiles.values())
            rows.append((track.name, every, min(every, sum(refused.values()))))
    shown = sorted(rows, key=lambda row: -row[1])[:MOST_NAMES] if single else rows[:MOST_NAMES]
    parts = [
        Part(1, "Take part", [every - out for _, every, out in shown]),
        Part(2, "Refused: their device cannot hold the training", [out for *_, out in shown]),
    ]
    labels = [f"{shortened(name, 22)} ({every:,.0f})" for name, every, _ in shown]
    figure = by_name(labels, parts, "Clients", "clients")
    figure["layout"]["yaxis"]["ticktext"] = [as_text(label) for label in labels]
    if single:
        caption = _fleet_in_words(found[0][1])
    else:
        caption = "All clients of each run, and how many of them have no device that could train."
    caption += _left_out(len(rows) - len(shown))
    title = "The fleet" if single else "Clients that take part"
    legend = legend_of(parts)
    height = 90 + 30 * len(shown)
    return Chart("fleet", title, caption, figure, legend, wide=True, height=height)


def _fleet_in_words(devices: Devices) -> str:
    every = sum(devices.profiles.values())
    said = f"{every:,.0f} clients by device"
    fleet = shortened(devices.profile, 60)
    said += f", as the fleet “{fleet}” deals them." if fleet else "."
    why = [
        f"{n:,.0f} for lack of {what}"
        for what in ("memory", "storage", "battery")
        if (n := devices.refused.get(what, 0))
    ]
    out = sum(devices.refused_by_profile.values()) or sum(devices.refused.values())
    said += f" {out:,.0f} are refused" if out else " None is refused"
    said += f": {', '.join(why)}." if why else "."
    less = [
        f"{what} by {n:,.0f}"
        for key, what in (("batch", "a smaller batch is used"), ("density", "a sparser model"))
        if (n := devices.reduced.get(key, 0))
    ]
    return said + (f" To fit, {' and '.join(less)}." if less else "")


def memory(tracks: Sequence[Track], single: bool) -> Chart | None:
    """Return the memory that methods need, by what holds it, against the devices' limits."""
    methods: dict[str, dict[str, float]] = {}
    limits: dict[str, float] = {}
    for track in tracks:
        if track.devices is None:
            continue
        limits |= track.devices.limits
        for label, held in track.devices.memory.items():
            twin = single or methods.get(label, held) == held
            methods[label if twin else f"{label} ({track.name})"] = held
    if not methods:
        return None
    shown = dict(list(methods.items())[:MOST_NAMES])
    largest = max(sum(held.values()) for held in shown.values())
    size, unit = units.scale(largest)
    parts = [
        Part(_MEMORY_COLOURS[part], part.capitalize(), [h[part] / size for h in shown.values()])
        for part in MEMORY
        if any(held[part] for held in shown.values())
    ]
    figure = by_name(list(shown), parts, f"Memory while training ({unit})", unit)
    lines = _lines_within(limits, largest)
    _draw_limits(figure["layout"], lines, largest, size)
    which = "this run" if single else "these runs"
    caption = f"What one client must hold to train with the model and settings of {which}"
    caption += "; dashed lines are the limits of devices." if lines else "."
    caption += " The buffer is for gradients of pruned weights, where a method adjusts its mask."
    caption += _what_fits(shown, limits) + _beyond(limits, lines)
    caption += _left_out(len(methods) - len(shown))
    legend = [*legend_of(parts), *[Key(7, "dash", "Limit of a device")][: len(lines)]]
    height = 100 + 34 * len(shown) + figure["layout"]["margin"]["t"]
    return Chart(
        "device-memory", "Memory by method", caption, figure, legend, wide=True, height=height
    )


def _lines_within(limits: dict[str, float], largest: float) -> list[tuple[float, str]]:
    """Return limits near the bars, lowest first; much higher ones would press the bars flat."""
    ordered = sorted((limit, name) for name, limit in limits.items() if 0 < limit < math.inf)
    near = [pair for pair in ordered if pair[0] <= 1.6 * largest]
    if near == [] and ordered and ordered[0][0] <= 4 * largest:
        near = ordered[:1]
    if len(near) <= _MOST_LIMITS:
        return near
    return [near[i] for i in np.linspace(0, len(near) - 1, _MOST_LIMITS).round().astype(int)]


def _draw_limits(
    layout: Row, lines: Sequence[tuple[float, str]], largest: float, size: float
) -> None:
    """Add dashed lines with their names above the bars, in as many lines of text as needed."""
    right = 1.06 * max([largest, *(limit for limit, _ in lines)])
    layout["xaxis"]["range"] = [0, right / size]
    levels: list[float] = []
    layout["shapes"], layout["annotations"] = [], []
    for limit, name in lines:
        text = f"{shortened(name, 18)} {units.in_units(limit)}"
        place, width = limit / right * _NARROW, 6.4 * len(text)
        to_left = place + width > _NARROW
        start = place - width if to_left else place
        level = next((i for i, end in enumerate(levels) if end < start), len(levels))
        levels[level : level + 1] = [start + width + 8]
        layout["shapes"].append(
            {
                "type": "line",
                "yref": "paper",
                "x0": limit / size,
                "x1": limit / size,
                "y0": 0,
                "y1": 1,
                "line": {"color": "var:ink", "width": 1.5, "dash": "dash"},
            }
        )
        layout["annotations"].append(
            {
                "x": limit / size,
                "y": 1,
                "yref": "paper",
                "yanchor": "bottom",
                "yshift": 15 * level,
                "xanchor": "right" if to_left else "left",
                "text": as_text(text),
                "showarrow": False,
                "font": {"size": 11, "color": "var:soft"},
            }
        )
    layout["margin"] = {"t": 12 + 15 * len(levels)}


def _what_fits(methods: dict[str, dict[str, float]], limits: dict[str, float]) -> str:
    """Return, in words, what the methods need and how many of the devices can hold it."""
    if not limits or len(methods) > _MOST_LIMITS:
        return ""
    needs = {shortened(label, 40): sum(held.values()) for label, held in methods.items()}
    fits = {label: sum(n <= limit for limit in limits.values()) for label, n in needs.items()}
    said = {label: f"{label} needs {units.in_units(need)}" for label, need in needs.items()}
    kinds = "1 kind of device" if len(limits) == 1 else f"{len(limits)} kinds of device"
    if len(set(fits.values())) == 1:
        return f" {'; '.join(said.values())}. Of {kinds} {max(fits.values())} can hold this."
    parts = [f"{text} and fits {fits[label]}" for label, text in said.items()]
    return f" Of {kinds}: {'; '.join(parts)}."


def _beyond(limits: dict[str, float], lines: Sequence[tuple[float, str]]) -> str:
    """Return, in words, the limits that are not drawn."""
    drawn = {name for _, name in lines}
    hidden = {name: limit for name, limit in limits.items() if name not in drawn}
    said = [
        f"{shortened(name, 24)} ({_limit(limit)})"
        for name, limit in sorted(hidden.items(), key=lambda item: item[1])[:_MOST_LIMITS]
    ]
    rest = len(hidden) - len(said)
    if not said:
        return ""
    return f" Not drawn: {', '.join(said)}{f' and {rest} more' if rest else ''}."


def _limit(limit: float) -> str:
    if limit == 0:
        return "cannot train"
    return units.in_units(limit) if math.isfinite(limit) else "no limit"


def _left_out(count: int) -> str:
    return f" {count} more are left out." if count > 0 else ""
