"""What the charts of a report are made of: colours, lines, axes, captions, legends.

Figures are plain data for plotly. Colours are written `var:NAME` and filled in by the
page, so that a chart follows its theme; text from files is escaped for plotly.
"""

import html
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from simulations.results import Row

SERIES = 7
"""Series colours of the page; further series repeat them with another dash."""

DASHES = ("solid", "dash", "dot")

HEAT = [[i / 4, f"var:heat{i}"] for i in range(5)]

ROUNDS: Row = {
    "title": {"text": "Round (0 is before training)"},
    "tickformat": "d",
    "zeroline": False,
}


@dataclass(frozen=True)
class Key:
    """An entry of a chart's legend: series colour 1..SERIES, line style, text."""

    colour: int
    dash: str
    text: str


@dataclass(frozen=True)
class Scale:
    """What the colours of a heat map mean: a title, and labels at 0..1 along the bar."""

    title: str
    labels: list[tuple[float, str]]


@dataclass(frozen=True)
class Chart:
    """A chart: `figure` is plotly's data and layout; None shows only the caption."""

    id: str
    title: str
    caption: str
    figure: dict[str, Any] | None
    legend: list[Key] = field(default_factory=list)
    wide: bool = False
    height: int = 300
    scale: Scale | None = None


def figure_of(traces: list[Row], layout: Row) -> Row:
    """Return a figure; few rounds or clients get one tick each."""
    if max((x for trace in traces for x in trace["x"]), default=0) <= 12:
        layout = {**layout, "xaxis": {**layout["xaxis"], "dtick": 1}}
    return {"data": traces, "layout": layout}


def axes(vertical: str, *, tozero: bool = True, whole: bool = False) -> Row:
    """Return axes over rounds; `whole` is for counts."""
    upright: Row = {"title": {"text": vertical}, "automargin": True}
    upright |= {"rangemode": "tozero"} if tozero else {}
    upright |= {"tickformat": "d"} if whole else {}
    return {"xaxis": ROUNDS, "yaxis": upright}


def line(x: Sequence[float], y: Sequence[float], series: int, dash: str, text: str) -> Row:
    """Return a line with markers where there are few points; `text` is for hovering."""
    shape, colour = "circle" if dash == "solid" else "circle-open", f"var:s{series}"
    return {
        "type": "scatter",
        "mode": "lines+markers" if len(x) <= 40 else "lines",
        "x": list(x),
        "y": list(y),
        "line": {"color": colour, "dash": dash, "width": 2},
        "marker": {"color": colour, "size": 5, "symbol": shape},
        "hovertemplate": f"{as_text(text)}<extra></extra>",
    }


def series_of(index: int) -> int:
    """Return the colour of the run at `index`, 1..SERIES."""
    return index % SERIES + 1


def colour_of(index: int) -> str:
    """Return the same as the page's colour variable."""
    return f"var:s{series_of(index)}"


def dash_of(index: int) -> str:
    """Return the line style of the run at `index`; it tells runs of one colour apart."""
    return DASHES[index // SERIES % len(DASHES)]


def as_text(text: str) -> str:
    """Return text that plotly shows as it is: its tags and entities escaped."""
    return html.escape(text, quote=False)


def in_template(text: str) -> str:
    """Return text for a hover template: nothing in it is taken for a placeholder."""
    return text.replace("%{", "%\u200b{")


def shortened(text: str, most: int) -> str:
    """Return text cut in the middle to `most` characters."""
    if len(text) <= most:
        return text
    head = (most - 1) // 2
    return f"{text[:head]}…{text[head + 1 - most :]}"
