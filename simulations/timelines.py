"""Time lines of a report: a bar a client, of what it did when on the simulated clock.

A synchronous run shows single rounds, an asynchronous one the end of its queue of events.
"""

from collections import Counter
from collections.abc import Sequence

import numpy as np

from simulations import units
from simulations.device_results import Bar, Track
from simulations.figures import Chart, Key, as_text, axes, shortened
from simulations.results import Row
from simulations.stacks import names_down

MOST_CLIENTS = 60
"""Clients drawn in one time line."""

_MOST_EVENTS = 240
_MOST_STEPS = 80
_STALEST = 1e9

_PHASES = (("download", 3, "Download"), ("compute", 1, "Compute"), ("upload", 4, "Upload"))
_WAITING = Key(7, "box faint", "Waiting until the round ended")
_MARKS = {
    "late": ("diamond", "var:warn", "Late: its reply is not used"),
    "dropped": ("x", "var:ink", "Dropped: it never replied"),
    "failed": ("triangle-up", "var:ink", "Failed"),
    "rejected": ("triangle-down", "var:warn", "Rejected: its reply is not used"),
}


def rounds(track: Track) -> list[Chart]:
    """Return the time lines of the last round, the slowest and the first, each once."""
    known = [n for n in track.by_round if n in track.ends]
    if not known or track.run.asynchronous:
        return []
    lasted = {n: track.lasted(n)[1] - track.lasted(n)[0] for n in known}
    chosen: dict[float, list[str]] = {}
    slowest = max(known, key=lambda n: lasted[n])
    for number, what in ((known[-1], "last"), (slowest, "slowest"), (known[0], "first")):
        chosen.setdefault(number, []).append(what)
    charts = [
        _round(track, number, " and ".join(whats), f"timeline-{whats[0]}")
        for number, whats in chosen.items()
    ]
    wide = charts if len(charts) == 2 else charts[:1]
    return [Chart(**{**vars(chart), "wide": chart in wide}) for chart in charts]


def _round(track: Track, number: float, what: str, identifier: str) -> Chart:
    start, end = track.lasted(number)
    bars = sorted(track.by_round[number], key=lambda bar: (bar.ended, bar.client))
    shown = _spread(bars)
    size, unit = units.clock(max(end, shown[-1].ended) - start)
    lanes = list(range(len(shown)))
    labels = [f"{bar.client} {shortened(bar.device, 14)}" for bar in shown]
    figure = _drawn(shown, lanes, labels, start, size)
    waits = [(i, bar) for i, bar in enumerate(shown) if bar.status == "ok" and bar.ended < end]
    if waits:
        figure["data"].append(_waiting(waits, start, end, size))
    _upright(figure["layout"], [(end - start) / size], "var:ink")
    figure["layout"]["xaxis"]["title"] = {"text": f"Time since the round began ({unit})"}
    caption = (
        f"Each bar is a client, the first to be done on top; the dashed line is the round's end, "
        f"after {units.duration(end - start)}."
    )
    caption += _odd_ones(bars) + _not_shown(len(shown), len(bars))
    legend = _legend(shown, [_WAITING] if waits else [])
    return Chart(
        identifier,
        f"Round {number:.0f}, the {what}",
        caption,
        figure,
        legend,
        height=90 + 13 * len(shown),
    )


def queue(track: Track) -> list[Chart]:
    """Return the end of an asynchronous run's queue of events, and how stale replies were."""
    if not track.run.asynchronous or not track.bars:
        return []
    tail = sorted(track.bars, key=lambda bar: bar.ended)[-_MOST_EVENTS:]
    often = Counter(bar.client for bar in tail).most_common()
    clients = sorted(client for client, _ in often[:MOST_CLIENTS])
    lane = {client: i for i, client in enumerate(clients)}
    shown = [bar for bar in tail if bar.client in lane]
    device = {bar.client: bar.device for bar in shown}
    whole = len(tail) == len(track.bars)
    left = min(bar.started for bar in tail) if whole else tail[0].ended
    right = max([tail[-1].ended, *track.ends.values()])
    size, unit = units.clock(right)
    labels = [f"{client} {shortened(device[client], 14)}" for client in clients]
    figure = _drawn(shown, [lane[bar.client] for bar in shown], labels, 0.0, size)
    steps = [end / size for end in track.ends.values() if left <= end <= right]
    if len(steps) <= _MOST_STEPS:
        _upright(figure["layout"], steps, "var:soft")
    room = (right - left) * 0.01 or 1.0
    figure["layout"]["xaxis"] |= {
        "title": {"text": f"Simulated time ({unit})"},
        "range": [(left - room) / size, (right + room) / size],
    }
    caption = (
        f"Each line is a client, each bar one of its replies, over {units.duration(right - left)}"
    )
    caption += " of the run, all of it." if whole else ", the end of the run."
    if len(steps) <= _MOST_STEPS:
        caption += " At a dashed line the server made a new model of the replies it had."
    caption += _odd_ones(shown)
    if len(often) > len(clients):
        caption += (
            f" Of {len(often):,} clients in this window the {len(clients)} busiest are shown."
        )
    height = 90 + 13 * len(clients)
    chart = Chart(
        "queue", "Queue of events", caption, figure, _legend(shown, []), wide=True, height=height
    )
    return [chart, *_staleness(track)]


def _staleness(track: Track) -> list[Chart]:
    """Return how many models the server had made since a client got the one it replied to."""
    known = [b.staleness for b in track.bars if b.status == "ok" and b.staleness is not None]
    ages = [age for age in known if 0 <= age < _STALEST]
    if not ages:
        return []
    width = max(1, int(np.ceil((max(ages) + 1) / 40)))
    counts = np.bincount([int(age) // width for age in ages])
    first = np.arange(len(counts)) * width
    said = [f"{a}" if width == 1 else f"{a} to {a + width - 1}" for a in first.tolist()]
    trace = {
        "type": "bar",
        "x": (first + (width - 1) / 2).tolist(),
        "y": counts.tolist(),
        "customdata": said,
        "marker": {"color": "var:s1"},
        "hovertemplate": "staleness %{customdata}: %{y} replies<extra></extra>",
    }
    layout = axes("Replies", whole=True)
    layout["xaxis"] = {"title": {"text": "Staleness (server steps)"}, "showgrid": False}
    layout["xaxis"] |= {"dtick": 1} if len(counts) <= 12 else {}
    caption = (
        "How many new models the server had made between giving a client its model and using "
        f"the reply: {np.median(ages):.0f} in the median, {max(ages):.0f} at most."
    )
    figure = {"data": [trace], "layout": layout}
    return [Chart("staleness", "Staleness of replies", caption, figure, wide=True, height=260)]


def _spread(bars: Sequence[Bar]) -> list[Bar]:
    """Return at most MOST_CLIENTS, evenly by their place in the order, with both ends."""
    if len(bars) <= MOST_CLIENTS:
        return list(bars)
    return [bars[i] for i in np.linspace(0, len(bars) - 1, MOST_CLIENTS).round().astype(int)]


def _drawn(
    bars: Sequence[Bar], lanes: Sequence[int], labels: Sequence[str], start: float, size: float
) -> Row:
    """Return the bars' phases, and a mark at the end of those that are not used."""
    texts = [_said(bar) for bar in bars]
    begun = [(bar.started - start) / size for bar in bars]
    traces: list[Row] = []
    for phase, colour, _ in _PHASES:
        lengths = [getattr(bar, phase) / size for bar in bars]
        trace = _lying(begun, lengths, lanes, texts)
        traces.append({**trace, "marker": {"color": f"var:s{colour}"}})
        begun = [b + length for b, length in zip(begun, lengths, strict=True)]
    for status, (symbol, paint, _) in _MARKS.items():
        marked = [i for i, bar in enumerate(bars) if bar.status == status]
        if marked:
            edge = {"color": "var:page", "width": 1}
            traces.append(
                {
                    "type": "scatter",
                    "mode": "markers",
                    "x": [begun[i] for i in marked],
                    "y": [lanes[i] for i in marked],
                    "customdata": [texts[i] for i in marked],
                    "cliponaxis": False,
                    "marker": {"symbol": symbol, "color": paint, "size": 9, "line": edge},
                    "hovertemplate": "%{customdata}<extra></extra>",
                }
            )
    layout: Row = {"barmode": "overlay", "xaxis": {"rangemode": "tozero", "zeroline": False}}
    return {"data": traces, "layout": {**layout, "yaxis": names_down(labels, 20, size=10)}}


def _waiting(waits: Sequence[tuple[int, Bar]], start: float, end: float, size: float) -> Row:
    begun = [(bar.ended - start) / size for _, bar in waits]
    lengths = [(end - bar.ended) / size for _, bar in waits]
    trace = _lying(begun, lengths, [i for i, _ in waits], [_said(bar) for _, bar in waits])
    return {**trace, "marker": {"color": "var:s7", "opacity": 0.35}}


def _lying(
    begun: Sequence[float], lengths: Sequence[float], lanes: Sequence[int], texts: Sequence[str]
) -> Row:
    return {
        "type": "bar",
        "orientation": "h",
        "base": list(begun),
        "x": list(lengths),
        "y": list(lanes),
        "customdata": list(texts),
        "hovertemplate": "%{customdata}<extra></extra>",
    }


def _upright(layout: Row, places: Sequence[float], colour: str) -> None:
    mark = {"color": colour, "width": 1, "dash": "dash"}
    line = {"type": "line", "yref": "paper", "y0": 0, "y1": 1, "line": mark}
    layout["shapes"] = [{**line, "x0": x, "x1": x} for x in places]


def _said(bar: Bar) -> str:
    """Return a bar in words, for hovering."""
    parts = [f"client {bar.client}, {shortened(bar.device, 40)}: {bar.status}"]
    parts += [f"{name} {units.duration(getattr(bar, key))}" for key, _, name in _PHASES]
    parts += [shortened(bar.reason, 80)] if bar.reason else []
    parts += [f"staleness {bar.staleness:.0f}"] if bar.staleness is not None else []
    return "<br>".join(map(as_text, parts))


def _legend(bars: Sequence[Bar], waiting: list[Key]) -> list[Key]:
    found = {bar.status for bar in bars}
    keys = [Key(colour, "box", name) for _, colour, name in _PHASES]
    return [*keys, *waiting] + [
        Key(7, f"mark {status}", text) for status, (*_, text) in _MARKS.items() if status in found
    ]


def _odd_ones(bars: Sequence[Bar]) -> str:
    counts = Counter(bar.status for bar in bars)
    said = [f"{counts[status]:,} {status}" for status in _MARKS if counts[status]]
    return f" Of {len(bars):,} requests: {', '.join(said)}." if said else ""


def _not_shown(shown: int, every: int) -> str:
    if shown == every:
        return ""
    return (
        f" {shown} of {every:,} clients are shown, evenly by their place in this order, the "
        f"fastest and the slowest among them; {every - shown:,} are left out."
    )
