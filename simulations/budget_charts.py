"""Charts of a run whose clients have budgets: what each may use, what it used, what that cost.

Only strategies such as pFedGate tell these figures; other runs have none of the charts.
"""

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass

from simulations import units
from simulations.figures import Chart, Key, as_text, colour_of, series_of
from simulations.results import Results, Row, number

_FIGURES = (
    ("memory_bytes", "Memory", units.BYTES),
    ("train_flops", "Work a round", units.FLOPS),
    ("bytes_up", "Sent up a round", units.BYTES),
)


@dataclass(frozen=True)
class Spender:
    """A client with a budget: its figures are means over its rounds, its memory the most."""

    client: int
    budget: float
    density: float
    figures: dict[str, float]


def spenders(run: Results) -> list[Spender]:
    """Return the clients that told what they used of their budgets, ascending."""
    rows: dict[int, list[Row]] = defaultdict(list)
    for row in run.clients:
        client, budget = number(row.get("client")), number(row.get("budget"))
        if client is not None and budget is not None and number(row.get("density")) is not None:
            rows[int(client)].append(row)
    return [_spender(client, own) for client, own in sorted(rows.items())]


def _spender(client: int, rows: Sequence[Row]) -> Spender:
    def known(key: str) -> list[float]:
        return [v for row in rows if (v := number(row.get(key))) is not None]

    figures = {key: sum(v) / len(v) for key, _, _ in _FIGURES if (v := known(key))}
    if memory := known("memory_bytes"):
        figures["memory_bytes"] = max(memory)
    densities = known("density")
    return Spender(client, known("budget")[-1], sum(densities) / len(densities), figures)


def charts(runs: Sequence[Results], names: Sequence[str]) -> list[Chart]:
    """Return realised density and each cost against the budget; none without budgets."""
    found = [(i, own) for i, run in enumerate(runs) if (own := spenders(run))]
    if not found:
        return []
    legend = [Key(series_of(i), "solid", names[i]) for i, _ in found] if len(runs) > 1 else []
    return [
        _density(found, legend),
        *(
            _cost(found, legend, key, title, ladder)
            for key, title, ladder in _FIGURES
            if all(key in one.figures for _, own in found for one in own)
        ),
    ]


def _density(found: Sequence[tuple[int, list[Spender]]], legend: list[Key]) -> Chart:
    everyone = [one for _, own in found for one in own]
    least = min(min(one.budget, one.density) for one in everyone)
    diagonal = {
        "type": "scatter",
        "mode": "lines",
        "x": [100 * least, 100 * max(one.budget for one in everyone)],
        "y": [100 * least, 100 * max(one.budget for one in everyone)],
        "line": {"color": "var:soft", "width": 1, "dash": "dot"},
        "hoverinfo": "skip",
    }
    traces = [diagonal, *(_marks(i, own, lambda one: 100 * one.density, " %") for i, own in found)]
    over = sum(one.density > one.budget + 1e-9 for one in everyone)
    caption = (
        "Each marker is a client: the fraction of the model that its batches used in the mean, "
        "against its budget. The dotted line is the whole budget; "
        f"{'no client is' if not over else f'{over} of them are'} above it."
    )
    layout = _layout("Used of the model (%)")
    return Chart(
        "budget-density", "Budget and use", caption, {"data": traces, "layout": layout}, legend
    )


def _cost(
    found: Sequence[tuple[int, list[Spender]]],
    legend: list[Key],
    key: str,
    title: str,
    ladder: Sequence[tuple[float, str]],
) -> Chart:
    most = max(one.figures[key] for _, own in found for one in own)
    size, unit = units.scale(most, ladder)
    traces = [_marks(i, own, lambda one: one.figures[key] / size, f" {unit}") for i, own in found]
    what = "the most over its rounds" if key == "memory_bytes" else "the mean of its rounds"
    caption = f"Each marker is a client: {what}, against its budget."
    layout = _layout(f"{title} ({unit})")
    return Chart(
        f"budget-{key.replace('_', '-')}",
        f"Budget and {title.lower()}",
        caption,
        {"data": traces, "layout": layout},
        legend,
    )


def _marks(index: int, own: Sequence[Spender], value: object, unit: str) -> Row:
    assert callable(value)
    return {
        "type": "scatter",
        "mode": "markers",
        "x": [100 * one.budget for one in own],
        "y": [value(one) for one in own],
        "customdata": [one.client for one in own],
        "marker": {"color": colour_of(index), "size": 8, "opacity": 0.7},
        "hovertemplate": as_text(f"client %{{customdata}}: %{{y:.3~g}}{unit}") + "<extra></extra>",
    }


def _layout(vertical: str) -> Row:
    return {
        "xaxis": {"title": {"text": "Budget (% of the model)"}, "tickformat": "~g"},
        "yaxis": {"title": {"text": vertical}, "rangemode": "tozero", "automargin": True},
    }
