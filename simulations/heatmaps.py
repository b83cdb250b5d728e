"""The heat maps of a report: which layers keep how much, and which client holds what."""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from simulations import units
from simulations.figures import (
    HEAT,
    ROUNDS,
    Chart,
    Scale,
    as_text,
    axes,
    colour_of,
    figure_of,
    shortened,
)
from simulations.results import Results, Row, number

MOST_COLUMNS = 60
"""Clients drawn one by one in the partition picture; more are averaged in groups."""

_STEPS = (0.001, 0.003, 0.01, 0.03, 0.1, 0.3, 1.0)


def layer_densities(runs: Sequence[Results], names: Sequence[str]) -> list[Chart]:
    """Return a heat map of kept weights, layers by rounds, for each run that has layers."""
    found = [_layers(run) for run in runs]
    low = min((_nice_low(kept) for *_, kept in found), default=0.1)
    return [
        _layer_density(
            layers, low, f"layers-{i}", "" if len(runs) == 1 else f": {name}", run.linear
        )
        for i, (run, layers, name) in enumerate(zip(runs, found, names, strict=True))
    ]


Layers = tuple[list[float], list[str], NDArray[np.float64]]
"""Rounds, names, and kept fractions, layers x rounds."""


def _layers(run: Results) -> Layers:
    rows = [
        (x, row["layer_density"])
        for row in run.metrics
        if (x := number(row.get("round"))) is not None
        and isinstance(row.get("layer_density"), dict)
        and row["layer_density"]
    ]
    names = list(dict.fromkeys(name for _, densities in rows for name in densities))
    kept = [[number(densities.get(name)) or 0.0 for _, densities in rows] for name in names]
    return [x for x, _ in rows], names, np.array(kept, dtype=np.float64)


def _layer_density(found: Layers, low: float, identifier: str, suffix: str, linear: bool) -> Chart:
    rounds, layers, kept = found
    title = f"Coefficients kept{suffix}" if linear else f"Density by layer{suffix}"
    if not layers:
        return Chart(
            identifier, title, "The run has told of no prunable layer yet.", None, wide=True
        )
    if (kept == 1).all():
        them = (
            "The layer keeps all its"
            if len(layers) == 1
            else f"All {len(layers)} layers keep all their"
        )
        text = f"{them} weights: this model is dense."
        return Chart(identifier, title, text, None, wide=True)
    ticks = [t for t in _STEPS if t >= low]
    labels = _short_distinct(layers)
    trace = {
        "type": "heatmap",
        "x": rounds,
        "y": labels,
        "z": np.log10(np.clip(kept, low, 1)).round(4).tolist(),
        "text": [[units.percent(v) for v in row] for row in kept.tolist()],
        "customdata": [[as_text(name)] * len(rounds) for name in layers],
        "hovertemplate": "%{customdata}<br>round %{x}: %{text} kept<extra></extra>",
        "zmin": float(np.log10(low)),
        "showscale": False,
        "zmax": 0,
        "colorscale": HEAT,
        "xgap": 1 if len(rounds) <= 60 else 0,
        "ygap": 1,
    }
    what = "the coefficients" if linear else "each layer's weights"
    order = "" if len(layers) == 1 else ", in the order of the model"
    caption = f"Share of {what} that is kept{order}; the scale of colours is logarithmic."
    last = dict(zip(layers, kept[:, -1].tolist(), strict=True))
    thin, thick = min(last, key=last.__getitem__), max(last, key=last.__getitem__)
    if thin != thick:
        caption += (
            f" At the end {shortened(thin, 40)} is the sparsest ({units.percent(last[thin])}) and "
            f"{shortened(thick, 40)} the densest ({units.percent(last[thick])})."
        )
    layout = {
        "xaxis": {**ROUNDS, "showgrid": False},
        "yaxis": {
            "automargin": True,
            "autorange": "reversed",
            "showgrid": False,
            "type": "category",
            "tickfont": {"size": 11},
        },
    }
    if len(layers) <= 40:
        layout["yaxis"]["dtick"] = 1
    scale = Scale(
        "Kept (%)", [(float(1 - np.log10(t) / np.log10(low)), f"{100 * t:g}") for t in ticks]
    )
    height = min(900, 80 + 22 * len(layers))
    figure = figure_of([trace], layout)
    return Chart(identifier, title, caption, figure, wide=True, height=height, scale=scale)


def partitions(runs: Sequence[Results], names: Sequence[str]) -> list[Chart]:
    """Return a picture of each distinct partition: who holds how much of which class."""
    groups: list[tuple[NDArray[np.float64], int, list[str]]] = []
    for run, name in zip(runs, names, strict=True):
        if run.partition is None:
            continue
        clients = _clients(run, len(run.partition))
        for counts, of, members in groups:
            if of == clients and np.array_equal(counts, run.partition):
                members.append(name)
                break
        else:
            groups.append((run.partition, clients, [name]))
    if not groups:
        text = (
            "Each client trains on what lies at its node, which the server does not see."
            if all(run.at_nodes for run in runs)
            else "The server has not dealt samples to clients, or not yet."
        )
        return [Chart("partition-0", "Who holds what", text, None, wide=True)]
    return [
        _partition(
            counts, of, f"partition-{i}", "" if len(groups) == 1 else f": {', '.join(members)}"
        )
        for i, (counts, of, members) in enumerate(groups)
    ]


def _clients(run: Results, counted: int) -> int:
    """Return how many clients a run has; of very many only the first are counted."""
    told = number(run.setting("fleet", "clients"))
    return max(counted, int(told)) if told is not None else counted


def _partition(counts: NDArray[np.float64], of: int, identifier: str, suffix: str) -> Chart:
    """Return the picture of the first clients, which are counted, `of` so many."""
    classes = counts.shape[1]
    grouped, labels = _group_clients(counts)
    single = len(grouped) == len(counts)
    most = max(float(grouped.max()), 1.0)
    named = [f"client {label}" for label in labels] if single else labels
    trace = _held(grouped, labels, single, most) if classes > 1 else _sizes(grouped, named)
    by = ", sorted by main class" if classes > 1 else ""
    what = "Client" if single else f"Clients{by} ({_group_size(counts)} a column)"
    layout: Row = axes(("Samples" if single else "Samples a client") if classes == 1 else "Class")
    layout["xaxis"] = {"title": {"text": what}, "showgrid": False, "showticklabels": single}
    if classes > 1:
        layout["yaxis"] |= {"showgrid": False, "rangemode": "normal", "zeroline": False}
        layout["yaxis"] |= {"dtick": 1} if classes <= 20 else {}
    marks = [(tick / most, f"{tick:g}") for tick in _ticks(most)]
    return Chart(
        identifier,
        f"Who holds what{suffix}",
        _who_holds_what(counts, of),
        figure_of([trace], layout),
        wide=True,
        height=300 if classes == 1 else min(720, 90 + 20 * classes),
        scale=Scale("Samples a client", marks) if classes > 1 else None,
    )


def _held(grouped: NDArray[np.float64], labels: list[str], single: bool, most: float) -> Row:
    """Return the heat map of samples, classes x clients (or groups of clients)."""
    who = "client %{customdata}" if single else "clients sorted by main class, %{customdata}"
    samples = "%{z:.0f} samples" if single else "%{z:.1f} samples a client"
    classes = grouped.shape[1]
    return {
        "type": "heatmap",
        "x": list(range(len(grouped))),
        "z": grouped.T.round(2).tolist(),
        "customdata": [labels] * classes,
        "hovertemplate": f"class %{{y}}, {who}: {samples}<extra></extra>",
        "colorscale": HEAT,
        "showscale": False,
        "zmin": 0,
        "zmax": most,
        "xgap": 1,
        "ygap": 1 if classes <= 40 else 0,
    }


def _sizes(grouped: NDArray[np.float64], labels: list[str]) -> Row:
    """Return the bars of samples a client, where there are no classes to tell apart."""
    return {
        "type": "bar",
        "x": list(range(len(grouped))),
        "y": grouped[:, 0].tolist(),
        "marker": {"color": colour_of(0)},
        "customdata": labels,
        "hovertemplate": "%{customdata}: %{y:.1f} samples a client<extra></extra>",
    }


def _who_holds_what(counts: NDArray[np.float64], of: int) -> str:
    """Return the partition in words: how large and how mixed the clients are."""
    clients, classes = counts.shape
    held = counts.sum(1)
    said = f"{int(held.sum()):,} training samples on "
    if of == 1:
        return said + "1 client."
    first = f"the first {clients:,} of {of:,}" if of > clients else f"{clients:,}"
    least, most = int(held.min()), int(held.max())
    said += f"{first} clients: "
    said += (
        f"{least:,} each."
        if least == most
        else f"{least:,} to {most:,} each, {int(np.median(held)):,} in the median."
    )
    if classes == 1 or not held.any():
        return said
    share = counts[held > 0] / held[held > 0, None]
    mixed = float(np.median(1 / (share**2).sum(1)))
    return said + (
        f" In the median a client's samples are as mixed as {mixed:.1f} equally frequent "
        f"classes of {classes}."
    )


def _ticks(most: float) -> list[float]:
    """Return three to six round numbers from 0 up to at most `most`."""
    step = 10.0 ** np.floor(np.log10(most / 2))
    step *= next(s for s in (1, 2, 5, 10) if most / (s * step) <= 5)
    return [round(i * step, 6) for i in range(int(most / step) + 1)]


def _group_clients(counts: NDArray[np.float64]) -> tuple[NDArray[np.float64], list[str]]:
    """Return at most MOST_COLUMNS rows: the clients, or means over alike ones."""
    clients = len(counts)
    if clients <= MOST_COLUMNS:
        return counts, [str(i) for i in range(clients)]
    share = counts / np.maximum(counts.sum(1, keepdims=True), 1)
    order = np.lexsort((-share.max(1), share.argmax(1)))
    groups = np.array_split(order, MOST_COLUMNS)
    labels = [f"group {i + 1} of {len(group)}" for i, group in enumerate(groups)]
    return np.stack([counts[group].mean(0) for group in groups]), labels


def _group_size(counts: NDArray[np.float64]) -> str:
    small, rest = divmod(len(counts), MOST_COLUMNS)
    return f"{small} or {small + 1}" if rest else str(small)


def _nice_low(kept: NDArray[np.float64]) -> float:
    """Return where the density scale starts: a step of 1, 3, 10, not below a thousandth."""
    least = max(float(kept[kept > 0].min()) if (kept > 0).any() else 1.0, _STEPS[0])
    return min(max(step for step in _STEPS if step <= least), 0.3)


def _short_distinct(names: Sequence[str], most: int = 20) -> list[str]:
    """Return axis labels, cut to `most` characters and made distinct again."""
    labels: list[str] = []
    for name in names:
        label = as_text(shortened(name.removesuffix(".weight"), most))
        while label in labels:
            label += "\u200b"
        labels.append(label)
    return labels
