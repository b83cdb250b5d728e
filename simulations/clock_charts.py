"""The charts of a report on the simulated clock: what accuracy costs, where the time of
clients goes, who replied, and what energy it took.

Each function takes the runs with devices, and whether the report is about one run alone.
"""

import math
from collections import Counter, defaultdict
from collections.abc import Callable, Sequence

import numpy as np

from simulations import units
from simulations.device_charts import MOST_NAMES
from simulations.device_results import Track
from simulations.figures import (
    Chart,
    Key,
    axes,
    dash_of,
    in_template,
    line,
    series_of,
    shortened,
)
from simulations.headlines import to_target
from simulations.results import Results, Row, number
from simulations.stacks import Part, by_name, legend_of, over_rounds

Axis = tuple[float, str]
"""Size and name of a unit."""

_TIME, _BYTES, _JOULES = "seconds", "bytes", "joules"

_UNTOLD = 1e-3
"""Share of a round's joules that clients' rows may lack before the chart says so."""

_FAR = 30
"""Times that one run's cost may exceed another's before their axis is logarithmic."""


def prices(tracks: Sequence[Track], single: bool) -> list[Chart]:
    """Return the accuracy against simulated time, bytes sent, and energy."""
    asked: tuple[tuple[str, str, Callable[[float], Axis]], ...] = (
        (_TIME, "Simulated time", units.clock),
        (_BYTES, "Sent up and down", units.scale),
        (_JOULES, "Energy", lambda most: units.scale(most, units.JOULES)),
    )
    charts = [_price(tracks, single, *each) for each in asked]
    found = [chart for chart in charts if chart]
    if found and len(found) % 2:
        found[0] = Chart(**{**vars(found[0]), "wide": True, "height": 340})
    return found


def _price(
    tracks: Sequence[Track], single: bool, key: str, what: str, unit_of: Callable[[float], Axis]
) -> Chart | None:
    found = [(track, *_paid(track.run, key)) for track in tracks]
    found = [(track, x, y) for track, x, y in found if x and max(x) > 0]
    if not found:
        return None
    ends = [max(x) for _, x, _ in found]
    size, unit = unit_of(max(ends))
    far = max(ends) > _FAR * min(ends)
    traces = []
    for track, x, y in found:
        text = f"%{{y:.4~g}} %, %{{x:.3~g}} {unit}"
        text = text if single else f"{in_template(track.name)}: {text}"
        pairs = [(a / size, 100 * b) for a, b in zip(x, y, strict=True) if a > 0 or not far]
        scaled, reached = [a for a, _ in pairs], [b for _, b in pairs]
        i = track.index
        traces.append(line(scaled, reached, series_of(i), dash_of(i), text))
    name = "R²" if all(track.run.regression for track, *_ in found) else "Accuracy"
    layout = axes(f"{name} (%)", tozero=False)
    layout["xaxis"] = {"title": {"text": f"{what} ({unit})"}}
    layout["xaxis"] |= {"type": "log", "dtick": 1} if far else {"rangemode": "tozero"}
    goals = {track.run.target for track, *_ in found}
    goal = goals.pop() if len(goals) == 1 else None
    if goal is not None:
        _draw_target(layout, 100 * goal)
    legend = [Key(series_of(t.index), dash_of(t.index), t.name) for t, *_ in found]
    return Chart(
        f"accuracy-{key}",
        f"{name} over {_SHORT[key]}",
        _PAID[key]
        + (_reached(found[0][0].run, key) if single else "")
        + (" The runs lie far apart, so the scale is logarithmic." if far else ""),
        {"data": traces, "layout": layout},
        [] if single else legend,
    )


_SHORT = {_TIME: "simulated time", _BYTES: "bytes", _JOULES: "energy"}
_PAID = {
    _TIME: "Each test of the global model, at the time that the clock of the devices showed.",
    _BYTES: "The same tests, against all bytes sent up and down until then.",
    _JOULES: "The same tests, against the energy that all devices had spent until then.",
}


def _paid(run: Results, key: str) -> tuple[list[float], list[float]]:
    """Return what had been paid at each test, and the accuracy that it found."""
    if key == _TIME:
        paid = [number(row.get("simulated_seconds")) for row in run.metrics]
    else:
        keys = ("bytes_up", "bytes_down") if key == _BYTES else ("energy_joules",)
        paid = list(run.running(*keys))
    reached = [number(row.get("accuracy")) for row in run.metrics]
    pairs = [(x, y) for x, y in zip(paid, reached, strict=True) if x is not None and y is not None]
    return [x for x, _ in pairs], [y for _, y in pairs]


def _draw_target(layout: Row, goal: float) -> None:
    mark = {"color": "var:soft", "width": 1.5, "dash": "dot"}
    shape = {"type": "line", "xref": "paper", "x0": 0, "x1": 1, "y0": goal, "y1": goal}
    note = {"xref": "paper", "x": 0, "y": goal, "xanchor": "left", "yanchor": "bottom"}
    text = {"text": "target", "showarrow": False, "font": {"size": 11, "color": "var:soft"}}
    layout |= {"shapes": [{**shape, "line": mark}], "annotations": [{**note, **text}]}


def _reached(run: Results, key: str) -> str:
    if run.target is None:
        return ""
    goal = units.percent(run.target)
    if run.to_target(key) is None:
        return f" The target of {goal} is {to_target(run, key)}."
    return f" The target of {goal} is reached after {to_target(run, key)}."


_USES = (
    (1, "Computing", False),
    (3, "Sending and receiving", False),
    (7, "Waiting for the round's end", True),
    (2, "Lost: late, dropped or failed", False),
)


def utilisation(tracks: Sequence[Track], single: bool) -> Chart | None:
    """Return what the clients' time went into: a bar a round, or a bar a run."""
    tracks = [track for track in tracks if track.bars][:MOST_NAMES]
    if not tracks:
        return None
    title = "Where the clients' time goes"
    if single:
        rounds, seconds = tracks[0].shares()
        parts = _use_parts(100 * seconds / np.maximum(seconds.sum(1, keepdims=True), 1e-12))
        figure = over_rounds(rounds, parts, "Share of client time (%)", "%", top=100)
        until = "they were done" if tracks[0].run.asynchronous else "the round ended"
        caption = f"All clients of a round together, from when they were asked until {until}."
        caption += _uses_in_words(seconds.sum(0))
        return Chart("utilisation", title, caption, figure, legend_of(parts))
    sums = np.array([track.shares()[1].sum(0) for track in tracks])
    parts = _use_parts(100 * sums / np.maximum(sums.sum(1, keepdims=True), 1e-12))
    figure = by_name([t.name for t in tracks], parts, "Share of client time (%)", "%")
    figure["layout"]["xaxis"]["range"] = [0, 100]
    caption = "All clients of all rounds together, from when they were asked until the round ended."
    height = 90 + 30 * len(tracks)
    legend = legend_of(parts)
    return Chart("utilisation", title, caption, figure, legend, wide=True, height=height)


def _use_parts(shares: np.ndarray[tuple[int, ...], np.dtype[np.float64]]) -> list[Part]:
    columns = zip(_USES, shares.T.tolist(), strict=True)
    parts = [Part(colour, text, values, faint) for (colour, text, faint), values in columns]
    return [part for part in parts if any(part.values)]


def _uses_in_words(seconds: np.ndarray[tuple[int, ...], np.dtype[np.float64]]) -> str:
    total = float(seconds.sum())
    if not total:
        return ""
    uses = ("computing", "sending and receiving", "waiting", "work for replies that aren't used")
    pairs = zip(seconds.tolist(), uses, strict=True)
    said = [f"{units.percent(v / total)} is {use}" for v, use in pairs if v]
    return f" Over the run {', '.join(said)}."


_ANSWERS = ((3, "In time"), (5, "Late"), (2, "Dropped"), (4, "Failed"))


def participation(tracks: Sequence[Track], single: bool) -> Chart | None:
    """Return how many of the clients asked replied, were late, were lost or failed."""
    tracks = [track for track in tracks if _answers(track.run)[0]][:MOST_NAMES]
    if not tracks:
        return None
    title = "Who replied" if single else "Share of requests that were answered"
    if single:
        rounds, counts = _answers(tracks[0].run)
        figure = over_rounds(rounds, _answer_parts(counts), "Clients", "clients")
        figure["layout"]["yaxis"] |= {"tickformat": "d"}
        caption = _answers_in_words(tracks[0], counts)
        legend = legend_of(_answer_parts(counts))
        return Chart("replies", title, caption, figure, legend)
    sums = [[math.fsum(column) for column in zip(*_answers(t.run)[1], strict=True)] for t in tracks]
    shares = [[100 * n / (sum(row) or 1.0) for n in row] for row in sums]
    figure = by_name([t.name for t in tracks], _answer_parts(shares), "Requests (%)", "%")
    figure["layout"]["xaxis"]["range"] = [0, 100]
    caption = "All requests to clients of each run, by what became of them."
    height = 90 + 30 * len(tracks)
    legend = legend_of(_answer_parts(shares))
    return Chart("replies", title, caption, figure, legend, wide=True, height=height)


def _answers(run: Results) -> tuple[list[float], list[list[float]]]:
    """Return rounds, and for each the clients in time, late, dropped and failed."""
    rounds, counts = [], []
    for row in run.metrics:
        at, asked = number(row.get("round")), number(row.get("clients_asked"))
        if at is None or asked is None or asked <= 0:
            continue
        keys = ("clients_replied", "clients_late", "clients_dropped")
        known = [max(0.0, number(row.get(key)) or 0.0) for key in keys]
        rounds.append(at)
        counts.append([*known, max(0.0, asked - sum(known))])
    return rounds, counts


def _answer_parts(counts: Sequence[Sequence[float]]) -> list[Part]:
    columns = zip(*counts, strict=True)
    parts = [Part(c, text, v) for (c, text), v in zip(_ANSWERS, columns, strict=True)]
    return [part for part in parts if any(part.values)]


def _answers_in_words(track: Track, counts: Sequence[Sequence[float]]) -> str:
    in_time, late, dropped, failed = (math.fsum(c) for c in zip(*counts, strict=True))
    said = (
        f"Of {in_time + late + dropped + failed:,.0f} requests {in_time:,.0f} were answered in time"
    )
    said += f", {late:,.0f} after the round had ended" if late else ""
    said += f", {dropped:,.0f} were lost{_reasons(track)}" if dropped else ""
    return said + (f", {failed:,.0f} failed." if failed else ".")


def _reasons(track: Track) -> str:
    """Return the most frequent reasons why clients were dropped."""
    rows = (row for row in track.run.clients if row.get("status") == "dropped")
    named = (row["reason"] for row in rows if isinstance(row.get("reason"), str))
    said = [f"{shortened(why, 60)}: {n:,}" for why, n in Counter(named).most_common(3)]
    return f" ({', '.join(said)})" if said else ""


def energy(tracks: Sequence[Track], single: bool) -> Chart | None:
    """Return the joules of each round: by device for one run, a line a run for several."""
    tracks = [track for track in tracks if any(track.run.series("energy_joules")[1])]
    if not tracks:
        return None
    every = [value for track in tracks for value in track.run.series("energy_joules")[1]]
    size, unit = units.scale(max(every), units.JOULES)
    vertical = f"Energy ({unit})"
    if not single:
        traces = []
        for t in tracks:
            rounds, joules = _after_start(*t.run.series("energy_joules"))
            text = f"{in_template(t.name)}: %{{y:.3~g}} {unit}, round %{{x}}"
            scaled = [v / size for v in joules]
            traces.append(line(rounds, scaled, series_of(t.index), dash_of(t.index), text))
        legend = [Key(series_of(t.index), dash_of(t.index), t.name) for t in tracks]
        caption = "Joules that all devices of a round spend on training and on sending."
        figure = {"data": traces, "layout": axes(vertical)}
        return Chart("energy", "Energy a round", caption, figure, legend, wide=True)
    rounds, parts, said = _energy_parts(tracks[0], size)
    figure = over_rounds(rounds, parts, vertical, unit)
    total = units.in_units(tracks[0].run.figure("energy_joules"), units.JOULES)
    caption = f"Joules that devices spend on training and on sending, {total} in all.{said}"
    return Chart("energy", "Energy a round, by device", caption, figure, legend_of(parts))


def _energy_parts(track: Track, size: float) -> tuple[list[float], list[Part], str]:
    """Return rounds and joules by device; the total alone where rows don't say whose."""
    rounds, totals = _after_start(*track.run.series("energy_joules"))
    spent: dict[str, dict[float, float]] = defaultdict(lambda: defaultdict(float))
    for bar in track.bars:
        spent[bar.device][bar.round] += bar.joules or 0.0
    sums = {name: math.fsum(of.values()) for name, of in spent.items()}
    order = sorted((name for name in sums if sums[name] > 0), key=lambda name: -sums[name])
    if not order:
        return rounds, [Part(1, "All devices", [v / size for v in totals])], ""
    first, others = order[:5], order[5:]
    parts = [
        Part(i, name, [spent[name][r] / size for r in rounds]) for i, name in enumerate(first, 1)
    ]
    if others:
        rest = [math.fsum(spent[name][r] for name in others) / size for r in rounds]
        parts.append(Part(6, f"{len(others)} further kinds of device", rest))
    told = [math.fsum(column) for column in zip(*(part.values for part in parts), strict=True)]
    rest = [total / size - known for total, known in zip(totals, told, strict=True)]
    if max(rest) * size > _UNTOLD * max(totals):
        parts.append(Part(7, "Not told by client", [max(0.0, v) for v in rest], faint=True))
    share = units.percent(sums[order[0]] / math.fsum(sums.values()))
    return rounds, parts, f" The most, {share}, goes to the kind {shortened(order[0], 40)}."


def energy_split(tracks: Sequence[Track], single: bool) -> Chart | None:
    """Return one run's joules for computing and for the radio, where its rows tell them apart."""
    powers = tracks[0].powers() if single and tracks else None
    if powers is None:
        return None
    joules: dict[float, list[float]] = defaultdict(lambda: [0.0, 0.0])
    for bar in tracks[0].bars:
        computing, radio = powers[bar.device]
        joules[bar.round][0] += computing * bar.compute
        joules[bar.round][1] += radio * (bar.download + bar.upload)
    rounds = sorted(joules)
    size, unit = units.scale(max(map(math.fsum, joules.values())), units.JOULES)
    columns = [[joules[r][i] / size for r in rounds] for i in (0, 1)]
    parts = [Part(1, "Computing", columns[0]), Part(3, "Radio", columns[1])]
    figure = over_rounds(rounds, parts, f"Energy ({unit})", unit)
    share = math.fsum(columns[0]) / (math.fsum(map(math.fsum, columns)) or 1.0)
    caption = (
        f"The same by what drew it; computing takes {units.percent(share)}. It is told from the "
        "clients' rows: one power of computing and one of the radio for each kind of device "
        "account for all their joules."
    )
    return Chart("energy-split", "Energy a round, by use", caption, figure, legend_of(parts))


def _after_start(rounds: list[float], values: list[float]) -> tuple[list[float], list[float]]:
    """Leave out round 0, before which no client was asked."""
    skip = int(bool(rounds) and rounds[0] == 0 and values[0] == 0)
    return rounds[skip:], values[skip:]
