"""The charts of a report, each with a caption that says what one sees.

Each function takes the runs to draw over each other, and a name for each of them.
"""

from collections.abc import Callable, Sequence

import numpy as np
from numpy.typing import NDArray

from simulations import budget_charts, clock_charts, device_charts, timelines, units
from simulations.device_results import tracks
from simulations.figures import (
    Chart,
    Key,
    axes,
    colour_of,
    dash_of,
    figure_of,
    in_template,
    line,
    series_of,
)
from simulations.heatmaps import layer_densities, partitions
from simulations.results import Results, Row


def all_charts(runs: Sequence[Results], names: Sequence[str]) -> dict[str, list[Chart]]:
    """Return the charts of a report by section; runs without devices have no section of them."""
    timed, single = tracks(runs, names), len(runs) == 1
    sections = {
        "Learning": [accuracy(runs, names), loss(runs, names)],
        "What accuracy costs": clock_charts.prices(timed, single),
        "Sparsity": [*layer_densities(runs, names), *_known(mask_change(runs, names))],
        "Traffic": [traffic(runs, names), total_traffic(runs, names)],
        "Clients": [*_known(client_accuracy(runs, names)), *partitions(runs, names)],
        "Budgets": budget_charts.charts(runs, names),
        "Devices": _known(
            device_charts.mixture(timed, single), device_charts.memory(timed, single)
        ),
        "Rounds on the clock": _known(
            clock_charts.utilisation(timed, single), clock_charts.participation(timed, single)
        ),
        "Energy": _known(
            clock_charts.energy(timed, single), clock_charts.energy_split(timed, single)
        ),
    }
    if single and timed:
        sections["Rounds on the clock"] += [*timelines.rounds(timed[0]), *timelines.queue(timed[0])]
    return {name: charts for name, charts in sections.items() if charts}


def _known(*charts: Chart | None) -> list[Chart]:
    return [chart for chart in charts if chart]


def accuracy(runs: Sequence[Results], names: Sequence[str]) -> Chart:
    """Return the global model's accuracy over rounds."""
    traces, legend = _curves(runs, names, "accuracy", factor=100, unit=" %")
    caption = "The global model on the held-out test set, after each round that tested it."
    if len(runs) == 1 and traces:
        rounds, values = runs[0].series("accuracy")
        best = int(np.argmax(values))
        caption += f" It ends at {units.percent(values[-1])}"
        caption += (
            ", its best."
            if values[best] == values[-1]
            else f"; its best was {units.percent(values[best])} in round {rounds[best]:.0f}."
        )
    title = "R²" if all(run.regression for run in runs) else "Accuracy"
    if not traces and all(run.finished for run in runs):
        return Chart("accuracy", title, _untested(runs), None)
    layout = axes(f"{title} (%)", tozero=False)
    return _chart("accuracy", title, caption, traces, layout, legend, "was measured")


def _untested(runs: Sequence[Results]) -> str:
    """Return why the server tested nothing in runs that are finished."""
    at_nodes = all(run.at_nodes and run.setting("data", "path") is None for run in runs)
    text = "The server has no test samples" if at_nodes else "There is no global model to test"
    if not any(run.client_accuracies() for run in runs):
        return f"{text}."
    return (
        f"{text}; how {'clients do' if at_nodes else 'those of clients do'} stands under Clients."
    )


def loss(runs: Sequence[Results], names: Sequence[str]) -> Chart:
    """Return test and training loss over rounds."""
    single = len(runs) == 1
    test, legend = _curves(runs, names, "loss")
    train, _ = _curves(runs, names, "train_loss", dash="dot", label=" in training")
    if single:
        for trace in train:
            trace["line"] |= {"color": colour_of(1)}
            trace["marker"] |= {"color": colour_of(1)}
        legend = [Key(1, "solid", "Test set, global model")] * bool(test)
        legend += [Key(2, "dot", "Clients, while training")] * bool(train)
    where = {
        (True, True): ": solid on the held-out test set, dotted on the clients' own samples while "
        "they train",
        (False, True): " on the clients' own samples while they train",
    }.get((bool(test), bool(train)), " on the held-out test set")
    caption = f"Mean loss a sample{where}."
    layout = axes("Loss (mean a sample)", tozero=False)
    return _chart("loss", "Loss", caption, test + train, layout, legend, "was measured")


def mask_change(runs: Sequence[Results], names: Sequence[str]) -> Chart | None:
    """Return how many entries of the mask differ from the round before; None for dense runs."""
    if all(run.finished and run.dense for run in runs):
        return None
    traces, legend = _curves(runs, names, "mask_change", bars=len(runs) == 1)
    linear = all(run.linear for run in runs)
    what = "Coefficients" if linear else "Weights"
    caption = f"{what} that were pruned since the round before or grown, counted together."
    if not traces and all(run.finished for run in runs):
        text = "Clients have masks of their own, whose changes are not counted."
        return Chart("mask-change", "Mask change a round", text, None, wide=True)
    if traces and not any(any(trace["y"]) for trace in traces):
        text = (
            "The same coefficients were kept from the first round on."
            if linear
            else "No weight was pruned or grown after the first round: the mask stayed as it was."
        )
        return Chart("mask-change", "Mask change a round", text, None, wide=True)
    chart = _chart(
        "mask-change",
        "Mask change a round",
        caption,
        traces,
        axes("Changed coefficients" if linear else "Changed weights"),
        legend,
        "has a mask",
    )
    return Chart(**{**vars(chart), "wide": True, "height": 260})


def traffic(runs: Sequence[Results], names: Sequence[str]) -> Chart:
    """Return the bytes sent in each round."""
    caption = (
        "Length of all payloads sent in a round: up is from the clients to the server, down is "
        "from the server to the clients."
    )
    return _traffic(runs, names, "traffic", "Bytes a round", caption, lambda v: v)


def total_traffic(runs: Sequence[Results], names: Sequence[str]) -> Chart:
    """Return the bytes sent up to and including each round."""

    def running(values: list[float]) -> list[float]:
        return [float(v) for v in np.cumsum(values)]

    caption = "The same, added up from the start of the run."
    if len(runs) == 1:
        up, down = runs[0].figure("bytes_up"), runs[0].figure("bytes_down")
        caption += f" In all {units.in_units(up)} up and {units.in_units(down)} down."
    return _traffic(runs, names, "total-traffic", "Bytes so far", caption, running)


def _traffic(
    runs: Sequence[Results],
    names: Sequence[str],
    identifier: str,
    title: str,
    caption: str,
    change: Callable[[list[float]], list[float]],
) -> Chart:
    found = [
        (i, way, rounds, change(values))
        for i in range(len(runs))
        for way in ("up", "down")
        for rounds, values in [_without_silent_start(*runs[i].series(f"bytes_{way}"))]
        if values
    ]
    size, unit = units.scale(max((max(values) for *_, values in found), default=0))
    traces, legend = [], []
    for i, way, rounds, values in found:
        single = len(runs) == 1
        colour = (1 if way == "up" else 2) if single else series_of(i)
        dash = "solid" if way == "up" else "dot"
        text = way.capitalize() if single else f"{in_template(names[i])}, {way}"
        label = f"{text}: %{{y:.3~g}} {unit}, round %{{x}}"
        traces.append(line(rounds, [v / size for v in values], colour, dash, label))
        if single or way == "up":
            legend.append(Key(colour, dash, text if single else names[i]))
    if len(runs) > 1:
        caption += " Solid lines are up, dotted ones down."
    return _chart(identifier, title, caption, traces, axes(f"Sent ({unit})"), legend, "sent any")


def _without_silent_start(
    rounds: list[float], values: list[float]
) -> tuple[list[float], list[float]]:
    """Leave out round 0 where nothing was sent before training."""
    skip = int(bool(rounds) and rounds[0] == 0 and values[0] == 0)
    return rounds[skip:], values[skip:]


def client_accuracy(runs: Sequence[Results], names: Sequence[str]) -> Chart | None:
    """Return how the clients' own accuracies are spread; None where no client tests anything."""
    found = [(i, run.client_accuracies()) for i, run in enumerate(runs)]
    found = [(i, values) for i, values in found if values]
    measure = "R²" if all(run.regression for run in runs) else "Accuracy"
    title = f"{measure} of the clients"
    if not found and all(run.finished or _asks_none_to_test(run) for run in runs):
        return None
    if not found:
        text = "No client has tested the model on its own samples yet."
        return Chart("client-accuracy", title, text, None, wide=True)
    largest = max(100.0, *(100 * v for _, values in found for v in values))
    least = min(0.0, *(100 * v for _, values in found for v in values))  # an R² may be below 0
    edges = np.linspace(least, largest, 21)
    if len(runs) == 1:
        traces = [_bars(found[0][1], edges)]
    else:
        traces = [_outline(i, names[i], values, edges) for i, values in found]
    caption = "Each client tests the model that it uses at the end on its own held-out samples."
    if len(runs) == 1:
        reached = np.array(found[0][1])
        plural = "1 client" if len(reached) == 1 else f"{len(reached)} clients"
        caption += f" {plural} did: the median reaches {units.percent(float(np.median(reached)))}"
        if len(reached) >= 10:
            weakest = float(np.quantile(reached, 0.1, method="inverted_cdf"))
            caption += f", the weakest tenth at most {units.percent(weakest)}"
        caption += "."
    vertical = "Clients" if len(runs) == 1 else "Share of a run's clients (%)"
    layout = axes(vertical, whole=len(runs) == 1)
    span = {"range": [least, largest], "showgrid": False}
    layout["xaxis"] = {"title": {"text": f"{measure} (%)"}, **span}
    if max(max(trace["y"]) for trace in traces) <= 6:
        layout["yaxis"] |= {"dtick": 1}
    legend = [Key(series_of(i), dash_of(i), names[i]) for i, _ in found] if len(runs) > 1 else []
    return Chart("client-accuracy", title, caption, figure_of(traces, layout), legend, wide=True)


def _asks_none_to_test(run: Results) -> bool:
    return bool(run.setting("fleet", "evaluate_clients") == 0)


def _bars(values: Sequence[float], edges: NDArray[np.float64]) -> Row:
    """Return one run's clients counted by accuracy."""
    counts, _ = np.histogram(100 * np.array(values), bins=edges)
    return {
        "type": "bar",
        "x": ((edges[:-1] + edges[1:]) / 2).tolist(),
        "y": counts.tolist(),
        "width": float(edges[1] - edges[0]) * 0.92,
        "marker": {"color": colour_of(0)},
        "customdata": np.stack([edges[:-1], edges[1:]], 1).round(1).tolist(),
        "hovertemplate": "%{customdata[0]}–%{customdata[1]} %: %{y} clients<extra></extra>",
    }


def _outline(index: int, name: str, values: Sequence[float], edges: NDArray[np.float64]) -> Row:
    """Return the outline of one run's histogram, as shares, to lie over the others."""
    counts, _ = np.histogram(100 * np.array(values), bins=edges)
    share = np.append(counts, 0) / len(values) * 100
    text = f"{in_template(name)}: from %{{x:.0f}} %, %{{y:.1f}} % of its clients"
    outline = line(edges.tolist(), share.tolist(), series_of(index), dash_of(index), text)
    outline["line"]["shape"] = "hv"
    return {**outline, "mode": "lines"}


def _chart(
    identifier: str,
    title: str,
    caption: str,
    traces: list[Row],
    layout: Row,
    legend: list[Key],
    missing: str,
) -> Chart:
    if not traces:
        return Chart(
            identifier, title, f"No round {missing} yet, so there is nothing to draw.", None
        )
    return Chart(identifier, title, caption, figure_of(traces, layout), legend)


def _curves(
    runs: Sequence[Results],
    names: Sequence[str],
    key: str,
    *,
    factor: float = 1,
    unit: str = "",
    dash: str | None = None,
    label: str = "",
    bars: bool = False,
) -> tuple[list[Row], list[Key]]:
    """Return one curve a run that has the metric, and the legend when runs are compared."""
    traces, legend = [], []
    for i, (run, name) in enumerate(zip(runs, names, strict=True)):
        rounds, values = run.series(key)
        if not values:
            continue
        text = f"%{{y:.4~g}}{unit}, round %{{x}}"
        text = text if len(runs) == 1 else f"{in_template(name)}{label}: {text}"
        scaled = [v * factor for v in values]
        curve = line(rounds, scaled, series_of(i), dash or dash_of(i), text)
        if bars and len(rounds) <= 100:
            keep = {k: curve[k] for k in ("x", "y", "hovertemplate")}
            curve = {"type": "bar", **keep, "marker": {"color": colour_of(i)}}
        traces.append(curve)
        legend.append(Key(series_of(i), dash_of(i), name))
    return traces, legend if len(runs) > 1 else []
