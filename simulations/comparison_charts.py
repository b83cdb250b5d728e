"""The charts of a comparison: accuracy against each cost, and how it grows with cost.

A variant has one colour, its densities have different line styles, in all charts and in
the table.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from simulations import units
from simulations.comparison import COSTS, Plan, Row, pareto
from simulations.figures import DASHES, SERIES, Chart, Key, as_text, in_template, line, series_of
from simulations.results import Results

Units = Sequence[tuple[float, str]]

_COST_AXES: dict[str, tuple[str, str, Units]] = {
    "bytes": ("bytes sent", "Sent up and down", units.BYTES),
    "train_flops": ("training work", "Training work of all clients", units.FLOPS),
    "peak_client_memory_bytes": ("client memory", "Peak memory of a client", units.BYTES),
    "simulated_seconds": ("simulated time", "Simulated time", ()),
    "energy_joules": ("energy", "Energy of all devices", units.JOULES),
}
"""Key of a cost: its name in a title, its name on an axis, its units; none are those of time."""

_SYMBOLS = {
    "circle": "circles",
    "square": "squares",
    "diamond": "diamonds",
    "triangle-up": "triangles",
    "cross": "crosses",
    "star": "stars",
}
_MOST_TICKS = 120
_SPREAD = 10.0
"""Ratio of largest to smallest cost from which on an axis is logarithmic."""
_DECADES = 1e3
"""Ratio of costs from which a logarithmic axis has a tick a decade."""


@dataclass(frozen=True)
class Group:
    """A line of the table: a variant at a density, and how the charts show it."""

    variant: str
    density: float
    colour: int
    dash: str
    symbol: str
    swept: bool
    """Whether its variant stands there at several densities."""

    @property
    def name(self) -> str:
        """The variant, with its density where that tells it from others."""
        return f"{self.variant}, {units.percent(self.density)}" if self.swept else self.variant


def groups_of(plan: Plan) -> list[Group]:
    """Return the lines of the table: a variant has a colour, a density a style and a symbol."""
    names = [variant for variant, _ in plan.groups()]
    swept = sorted({d for variant, d in plan.groups() if names.count(variant) > 1})
    found = []
    for variant, density in plan.groups():
        several = names.count(variant) > 1
        place, style = plan.variants.index(variant), swept.index(density) if several else 0
        found.append(
            Group(
                variant,
                density,
                series_of(place),
                DASHES[(style + place // SERIES) % len(DASHES)],
                list(_SYMBOLS)[style % len(_SYMBOLS)],
                several,
            )
        )
    return found


def cost_charts(groups: Sequence[Group], table: Sequence[Row], measure: str) -> list[Chart]:
    """Return accuracy against each cost that was measured, with the Pareto front."""
    charts = [_cost_chart(groups, table, key, measure) for key in COSTS]
    return [chart for chart in charts if chart is not None]


def _cost_chart(
    groups: Sequence[Group], table: Sequence[Row], key: str, measure: str
) -> Chart | None:
    shown = [
        (group, row)
        for group, row in zip(groups, table, strict=True)
        if row[key] is not None and row["accuracy"] is not None
    ]
    if not shown:
        return None
    costs = [row[key] for _, row in shown]
    own_units = _COST_AXES[key][2]
    size, unit = units.scale(max(costs), own_units) if own_units else units.clock(max(costs))
    front = pareto([(row[key], row["accuracy"]) for _, row in shown])
    traces: list[Row] = [
        {
            "type": "scatter",
            "mode": "lines",
            "x": [costs[i] / size for i in front],
            "y": [100 * shown[i][1]["accuracy"] for i in front],
            "line": {"color": "var:soft", "width": 1, "dash": "dot"},
            "hoverinfo": "skip",
        }
    ]
    for i, (group, row) in enumerate(shown):
        traces.append(_mean_point(group, row, row[key] / size, unit, i in front))
    title, axis, _ = _COST_AXES[key]
    across: Row = {"title": {"text": f"{axis} ({unit})"}, "tickformat": "~g"}
    wide = min(costs) > 0 and max(costs) / min(costs) >= _SPREAD
    decades = 1 if min(costs) > 0 and max(costs) / min(costs) >= _DECADES else "D2"
    across |= {"type": "log", "dtick": decades} if wide else {"rangemode": "tozero"}
    upright: Row = {"title": {"text": f"{measure} (%)"}}
    if measure.startswith("Accuracy"):
        upright["range"] = _accuracy_range([row for _, row in shown])
    layout = {"xaxis": across, "yaxis": upright}
    caption = _cost_caption(shown, front, measure, wide)
    legend = [Key(g.colour, g.dash, g.name) for g, _ in shown]
    return Chart(
        f"cost-{key.replace('_', '-')}",
        f"{measure} against {title}",
        caption,
        {"data": traces, "layout": layout},
        legend,
        height=320,
    )


def _accuracy_range(rows: Sequence[Row]) -> list[float]:
    """Return an axis for per cent: intervals of few seeds reach below 0 and above 100."""
    halves = [row["accuracy_ci95"] or 0.0 for row in rows]
    low = min(row["accuracy"] - half for row, half in zip(rows, halves, strict=True))
    high = max(row["accuracy"] + half for row, half in zip(rows, halves, strict=True))
    pad = max(0.05 * (high - low), 0.01)
    return [100 * max(low - pad, -0.02), 100 * min(high + pad, 1.02)]


def _mean_point(group: Group, row: Row, x: float, unit: str, optimal: bool) -> Row:
    """Return a marker with the interval of its accuracy, filled when it is Pareto-optimal."""
    colour = f"var:s{group.colour}"
    name = in_template(as_text(group.name))
    half = row["accuracy_ci95"]
    spread = "" if half is None else f" ± {100 * half:.2g}"
    trace: Row = {
        "type": "scatter",
        "mode": "markers",
        "x": [x],
        "y": [100 * row["accuracy"]],
        "marker": {
            "color": colour,
            "size": 10,
            "symbol": group.symbol if optimal else f"{group.symbol}-open",
            "line": {"width": 2, "color": colour},
        },
        "hovertemplate": (f"{name}: %{{y:.3~g}} %{spread} at %{{x:.3~g}} {unit}<extra></extra>"),
    }
    if half is not None:
        trace["error_y"] = {"type": "data", "array": [100 * half], "color": colour, "width": 4}
    return trace


def _cost_caption(
    shown: Sequence[tuple[Group, Row]], front: Sequence[int], measure: str, wide: bool
) -> str:
    names = [shown[i][0].name for i in front]
    several = any(row["accuracy_ci95"] is not None for _, row in shown)
    text = "Each marker is the mean over a line's seeds"
    text += "; the upright bar is its 95 % confidence interval." if several else "."
    if len(shown) > 1:
        text += (
            f" Filled and joined by the dotted line is the Pareto front, where no other has more "
            f"{measure.replace('Accuracy', 'accuracy')} for less: {'; '.join(names)}."
        )
    symbols = {g.density: _SYMBOLS[g.symbol] for g, _ in shown if g.swept}
    if symbols:
        told = [f"{name} at {units.percent(d)}" for d, name in sorted(symbols.items())]
        text += f" Variants that stand at several densities are {', '.join(told)}."
    return text + (" The cost is on a logarithmic axis." if wide else "")


# -- curves -----------------------------------------------------------------------------

Curve = tuple[Sequence[float], Sequence[float]]


def curve_charts(
    groups: Sequence[Group], runs: Sequence[Sequence[Results]], measure: str
) -> list[Chart]:
    """Return accuracy over simulated time, where there is a clock, and over bytes."""
    timed = any(run.timed for own in runs for run in own)
    found = [_curve_chart(groups, runs, "simulated_seconds", measure)] if timed else []
    return [*found, _curve_chart(groups, runs, "bytes", measure)]


def _curve_chart(
    groups: Sequence[Group], runs: Sequence[Sequence[Results]], key: str, measure: str
) -> Chart:
    title = f"{measure} over {'simulated time' if key == 'simulated_seconds' else 'bytes sent'}"
    identifier = f"curve-{key.replace('_', '-')}"
    drawn = [
        (group, mean_curve(curves))
        for group, own in zip(groups, runs, strict=True)
        if (curves := [c for run in own if len((c := accuracy_over(run, key))[0]) > 1])
    ]
    if not drawn:
        text = "No run has been tested twice yet, so there is nothing to draw."
        return Chart(identifier, title, text, None, wide=True)
    longest = max(float(x[-1]) for _, (x, *_) in drawn)
    if key == "bytes":
        size, unit = units.scale(longest)
    else:
        size, unit = units.clock(longest)
    traces: list[Row] = []
    for group, (x, middle, low, high) in drawn:
        across = (x / size).tolist()
        if (high > low).any():
            traces.append(_band(group, across, 100 * low, 100 * high))
        label = f"{in_template(as_text(group.name))}: %{{y:.3~g}} % at %{{x:.3~g}} {unit}"
        curve = line(across, (100 * middle).tolist(), group.colour, group.dash, "")
        traces.append({**curve, "mode": "lines", "hovertemplate": f"{label}<extra></extra>"})
    axis = "Simulated time" if key == "simulated_seconds" else "Sent up and down"
    layout = {
        "xaxis": {"title": {"text": f"{axis} ({unit})"}, "rangemode": "tozero"},
        "yaxis": {"title": {"text": f"{measure} (%)"}},
    }
    caption = (
        "The global model on the held-out test set. Lines are means over seeds and the bands "
        "reach from the weakest seed to the strongest; a line ends where the first of its seeds "
        "ends, and runs straight between tests."
    )
    legend = [Key(g.colour, g.dash, g.name) for g, _ in drawn]
    figure = {"data": traces, "layout": layout}
    return Chart(identifier, title, caption, figure, legend, wide=True, height=360)


def accuracy_over(run: Results, key: str) -> Curve:
    """Return a run's cost so far and its accuracy, for each round that tested the model."""
    keys = ("bytes_up", "bytes_down") if key == "bytes" else (key,)
    if not any(run.series(k)[1] for k in keys):
        return [], []
    spent = dict(zip(run.series("round")[0], run.running(*keys), strict=False))
    if key == "simulated_seconds":
        spent = dict(zip(*run.series(key), strict=True))
    rounds, accuracies = run.series("accuracy")
    known = [(spent[r], a) for r, a in zip(rounds, accuracies, strict=True) if r in spent]
    return [x for x, _ in known], [a for _, a in known]


def mean_curve(curves: Sequence[Curve]) -> tuple[Any, Any, Any, Any]:
    """Return places with the mean, least and greatest of some curves there.

    Curves are straight between their points, and are followed as far as all of them go.
    """
    first = max(float(x[0]) for x, _ in curves)
    last = min(float(x[-1]) for x, _ in curves)
    own = {float(v) for x, _ in curves for v in x if first <= v <= last}
    places = np.array(sorted(own)) if len(own) <= _MOST_TICKS else None
    if places is None:
        places = np.linspace(first, last, _MOST_TICKS)
    values = np.stack([np.interp(places, x, y) for x, y in curves])
    return places, values.mean(axis=0), values.min(axis=0), values.max(axis=0)


def _band(group: Group, x: list[float], low: Any, high: Any) -> Row:
    return {
        "type": "scatter",
        "mode": "lines",
        "x": [*x, *reversed(x)],
        "y": [*high.tolist(), *reversed(low.tolist())],
        "fill": "toself",
        "fillcolor": f"var:s{group.colour}",
        "line": {"width": 0},
        "opacity": 0.18,
        "hoverinfo": "skip",
    }
