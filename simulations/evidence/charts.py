"""The charts of an unlearning report: measures beside retraining, ROC curves, strengths tried."""

from collections.abc import Mapping, Sequence
from itertools import pairwise
from typing import Any

from simulations.evidence.examine import MEASURES
from simulations.evidence.record import PAPER, Evidence, Measured
from simulations.evidence.roc import Roc
from simulations.figures import Chart, Key, as_text
from simulations.results import Row, number

MODELS = {
    "original": (7, "dot", "Original"),
    "unlearned": (1, "solid", "Unlearned"),
    "retrained": (3, "dash", "Retrained"),
}
"""Series colour, line style and name of each model."""
SHORT = {"ua": "UA", "mia": "MIA", "ra": "RA", "ta": "TA", "backdoor": "Backdoor"}
BETWEEN = 16
ATTACKS = {"lira": "LiRA", "rmia": "RMIA"}


def all_charts(evidence: Evidence, search: Mapping[str, Any] | None) -> dict[str, Chart]:
    """Return the charts that there is something to draw for, by where they stand on the page."""
    attacks = {name: curves for name, curves in evidence.attacks.items() if name in ATTACKS}
    charts = {
        "measures": bars(evidence.measures),
        **{name: roc(name, curves, wide=len(attacks) == 1) for name, curves in attacks.items()},
        "search": strengths(search),
    }
    return {name: chart for name, chart in charts.items() if chart is not None}


def bars(measures: Mapping[str, Measured]) -> Chart | None:
    """Return the paper's four measures, and a backdoor's success, of all models side by side."""
    shown = [key for key in (*PAPER, "backdoor") if key in measures]
    traces = [_bars(name, shown, measures) for name in MODELS]
    traces = [trace for trace in traces if any(value is not None for value in trace["y"])]
    if not traces:
        return None
    caption = "What counts is how near the unlearned model's bar is to the retrained one's."
    if any(_ahead(measures[key]) for key in shown):
        caption += (
            " The thin upright line is where one more retrained model would lie with 95 % chance, "
            "as those of several seeds vary."
        )
    layout: Row = {
        "barmode": "group",
        "xaxis": {"showgrid": False},
        "yaxis": {"title": {"text": "Share (%)"}, "range": [0, 105], "automargin": True},
    }
    figure = {"data": traces, "layout": layout}
    return Chart("measures", "Beside retraining", caption, figure, _keys(traces, box=True), True)


def _bars(name: str, shown: Sequence[str], measures: Mapping[str, Measured]) -> Row:
    colour, _, said = MODELS[name]
    values = [_value(name, measures[key]) for key in shown]
    ahead = [_ahead(measures[key]) for key in shown]
    trace: Row = {
        "type": "bar",
        "name": name,
        "x": [SHORT[key] for key in shown],
        "y": [None if value is None else 100 * value for value in values],
        "marker": {"color": f"var:s{colour}"},
        "hovertext": [as_text(MEASURES[key][0]) for key in shown],
        "hovertemplate": f"{said}, %{{hovertext}}: %{{y:.1f}} %<extra></extra>",
    }
    if name == "retrained" and any(ahead):
        middles = [measures[key].spread for key in shown]
        up, down = [], []
        for value, spread, half in zip(values, middles, ahead, strict=True):
            middle = value if spread is None else spread.mean
            high = low = 0.0
            if half and value is not None and middle is not None:
                high = max(0.0, min(1.0, middle + half) - value)
                low = max(0.0, value - max(0.0, middle - half))
            up.append(100 * high)
            down.append(100 * low)
        trace["error_y"] = {
            "type": "data",
            "symmetric": False,
            "array": up,
            "arrayminus": down,
            "color": "var:ink",
            "thickness": 1.5,
            "width": 5,
        }
    return trace


def _value(name: str, measured: Measured) -> float | None:
    """Return a model's value; of retraining the mean of other seeds where this one has none."""
    value: float | None = getattr(measured, name)
    if name == "retrained" and value is None and measured.spread is not None:
        return measured.spread.mean
    return value


def _ahead(measured: Measured) -> float | None:
    return None if measured.spread is None else measured.spread.next95


def roc(attack: str, curves: Mapping[str, Roc], *, wide: bool = False) -> Chart | None:
    """Return an attack's curves over a logarithmic share of false alarms."""
    shown = {name: curves[name] for name in MODELS if name in curves}
    if not shown:
        return None
    least = 0.5 / max(curve.others for curve in shown.values())
    traces = [_coin(least)] + [_curve(name, curve, least) for name, curve in shown.items()]
    said = "; ".join(
        f"{MODELS[name][2].lower()} {100 * curve.auc:.1f} % "
        f"({100 * curve.low:.1f} to {100 * curve.high:.1f})"
        for name, curve in shown.items()
    )
    others = next(iter(shown.values())).others
    caption = (
        f"How many forgotten samples {ATTACKS[attack]} finds, for how many never seen ones it "
        f"accuses. The thin line is a coin. Area under the curve: {said}, with the bootstrap's "
        f"95 % interval over samples. With {others:,} never seen samples nothing finer than "
        f"{_percent(1 / others)} is told."
    )
    layout: Row = {
        "xaxis": {
            "title": {"text": "Never seen samples accused (%)"},
            "type": "log",
            "tickformat": "~g",
            "dtick": 1,
        },
        "yaxis": {"title": {"text": "Forgotten samples found (%)"}, "range": [0, 102]},
    }
    figure = {"data": traces, "layout": layout}
    keys = _keys(traces[1:])
    title = f"{ATTACKS[attack]} attack"
    return Chart(f"roc-{attack}", title, caption, figure, keys, wide, 340)


def _curve(name: str, curve: Roc, least: float) -> Row:
    colour, dash, said = MODELS[name]
    x, y = _along(curve, least)
    return {
        "type": "scatter",
        "mode": "lines",
        "name": name,
        "x": [100 * value for value in x],
        "y": [100 * value for value in y],
        "line": {"color": f"var:s{colour}", "dash": dash, "width": 2},
        "hovertemplate": f"{said}: finds %{{y:.1f}} % at %{{x:.2~g}} %<extra></extra>",
    }


def _along(curve: Roc, least: float) -> tuple[list[float], list[float]]:
    """Return the curve's places, with some between where tied scores make it a slope.

    On a logarithmic axis a slope is no straight line.
    """
    x, y = [max(curve.fpr[0], least)], [curve.tpr[0]]
    for (x0, x1), (y0, y1) in zip(pairwise(curve.fpr), pairwise(curve.tpr), strict=True):
        slope = x1 > x0 and y1 > y0 and x1 > least
        for i in range(1, BETWEEN if slope else 1):
            first = max(x0, least)
            place = first * (x1 / first) ** (i / BETWEEN)
            x.append(place)
            y.append(y0 + (y1 - y0) * (place - x0) / (x1 - x0))
        x.append(max(x1, least))
        y.append(y1)
    return x, y


def _coin(least: float) -> Row:
    places = [least * (1 / least) ** (i / 40) for i in range(41)]
    return {
        "type": "scatter",
        "mode": "lines",
        "name": "coin",
        "x": [100 * value for value in places],
        "y": [100 * value for value in places],
        "line": {"color": "var:soft", "width": 1, "dash": "dot"},
        "hoverinfo": "skip",
    }


def strengths(search: Mapping[str, Any] | None) -> Chart | None:
    """Return the gap over the strengths that were tried; None unless several are numbers."""
    tried = [
        (value, gap)
        for row in rows_of(search)
        if (value := number(row.get("value"))) is not None
        and (gap := number(row.get("gap"))) is not None
    ]
    if search is None or len({value for value, _ in tried}) < 2:
        return None
    tried.sort()
    chosen = number(search.get("chosen"))
    x, y = [value for value, _ in tried], [100 * gap for _, gap in tried]
    trace: Row = {
        "type": "scatter",
        "mode": "lines+markers",
        "x": x,
        "y": y,
        "line": {"color": "var:s1", "width": 2},
        "marker": {
            "color": "var:s1",
            "size": [12 if value == chosen else 7 for value in x],
            "symbol": ["diamond" if value == chosen else "circle" for value in x],
        },
        "hovertemplate": "%{x}: gap %{y:.2f} points<extra></extra>",
    }
    across: Row = {"title": {"text": str(search.get("knob") or "Strength")}, "tickformat": "~g"}
    if min(x) > 0 and max(x) / min(x) >= 10:
        across |= {"type": "log", "tickmode": "array", "tickvals": x}
    layout = {
        "xaxis": across,
        "yaxis": {"title": {"text": "Mean gap (points)"}, "rangemode": "tozero"},
    }
    caption = "Mean distance of UA, MIA, RA and TA from the reference; the diamond was chosen."
    return Chart("search", "Strengths tried", caption, {"data": [trace], "layout": layout})


def rows_of(search: Mapping[str, Any] | None) -> list[Mapping[str, Any]]:
    """Return what a search tried, whatever else the record holds."""
    tried = search.get("tried") if isinstance(search, Mapping) else None
    return [row for row in tried if isinstance(row, Mapping)] if isinstance(tried, list) else []


def _keys(traces: Sequence[Row], *, box: bool = False) -> list[Key]:
    shown = [MODELS[trace["name"]] for trace in traces]
    return [Key(colour, "box" if box else dash, said) for colour, dash, said in shown]


def _percent(share: float) -> str:
    return f"{100 * share:.2g} %"
