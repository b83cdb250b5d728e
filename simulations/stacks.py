"""Stacked bars: how a whole is made up, over rounds or by name.

Parts keep their colour and their order everywhere; text from files is escaped.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from simulations.figures import ROUNDS, Key, as_text, axes, in_template, shortened
from simulations.results import Row

MOST_BARS = 100
"""Rounds drawn one by one; of more, neighbours share a bar that shows their mean."""


@dataclass(frozen=True)
class Part:
    """One part of each bar: series colour 1..SERIES, text, a value for each bar."""

    colour: int
    text: str
    values: Sequence[float]
    faint: bool = False


def legend_of(parts: Sequence[Part]) -> list[Key]:
    """Return the legend of parts, in their order."""
    return [Key(p.colour, "box faint" if p.faint else "box", p.text) for p in parts]


def over_rounds(
    rounds: Sequence[float], parts: Sequence[Part], vertical: str, unit: str, top: float = 0
) -> Row:
    """Return a figure of stacked bars over rounds; `top` fixes the upright axis if above 0."""
    size = -(-len(rounds) // MOST_BARS)
    groups = [range(i, min(i + size, len(rounds))) for i in range(0, len(rounds), size)]
    said = [_span(rounds[g[0]], rounds[g[-1]]) for g in groups]
    x = [float(np.mean([rounds[i] for i in g])) for g in groups]
    traces = []
    for part in parts:
        means = [float(np.mean([part.values[i] for i in g])) for g in groups]
        text = f"{in_template(part.text)}: %{{y:.3~g}} {unit}, %{{customdata}}"
        traces.append(
            {
                "type": "bar",
                "x": x,
                "y": means,
                "width": [0.86 * len(g) for g in groups],
                "customdata": said,
                "marker": _paint(part),
                "hovertemplate": f"{as_text(text)}<extra></extra>",
            }
        )
    layout = {**axes(vertical), "barmode": "stack"}
    layout["xaxis"] = {**ROUNDS, "title": {"text": "Round"}, "showgrid": False}
    if len(rounds) <= 12:
        layout["xaxis"] |= {"dtick": 1}
    if top:
        layout["yaxis"] |= {"range": [0, top]}
    return {"data": traces, "layout": layout}


def by_name(labels: Sequence[str], parts: Sequence[Part], horizontal: str, unit: str) -> Row:
    """Return a figure of stacked bars that lie, one a label, the first on top."""
    places = list(range(len(labels)))
    traces = []
    for part in parts:
        texts = [
            f"{as_text(label)}<br>{as_text(part.text)}: {value:.3g} {unit}"
            for label, value in zip(labels, part.values, strict=True)
        ]
        traces.append(
            {
                "type": "bar",
                "orientation": "h",
                "x": list(part.values),
                "y": places,
                "customdata": texts,
                "marker": _paint(part),
                "hovertemplate": "%{customdata}<extra></extra>",
            }
        )
    layout: Row = {
        "barmode": "stack",
        "xaxis": {"title": {"text": horizontal}, "rangemode": "tozero"},
        "yaxis": names_down(labels, 22),
    }
    return {"data": traces, "layout": layout}


def names_down(labels: Sequence[str], most: int, size: int = 12) -> Row:
    """Return an upright axis that names its places 0, 1, ... from the top."""
    return {
        "tickvals": list(range(len(labels))),
        "ticktext": [as_text(shortened(label, most)) for label in labels],
        "tickfont": {"size": size},
        "range": [len(labels) - 0.4, -0.6],
        "showgrid": False,
        "zeroline": False,
        "automargin": True,
    }


def _paint(part: Part) -> Row:
    return {"color": f"var:s{part.colour}", "opacity": 0.35 if part.faint else 1}


def _span(first: float, last: float) -> str:
    if first == last:
        return f"round {first:.0f}"
    return f"mean of rounds {first:.0f} to {last:.0f}"
