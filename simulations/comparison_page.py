"""The page of a comparison: one file, in the style of a run's report, that works offline.

The table, accuracy against each cost, learning curves, and where each run lies. All that
comes from files is escaped.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any
from urllib.parse import quote

from fedsparse.errors import FedSparseError
from fedsparse.runs.atomic import write_file, writing
from simulations import pages, units
from simulations.comparison import PERSONAL, Plan, Row
from simulations.comparison_charts import Group, cost_charts, curve_charts, groups_of
from simulations.results import Results, read
from simulations.sweep import POINTS, place_of

PAGE = "comparison.html"


def write_page(folder: Path, plan: Plan, rows: Sequence[Row], table: Sequence[Row]) -> Path:
    """Write `comparison.html` and return its path; raises MissingExtraError."""
    page = render(folder, plan, rows, table)
    with writing(folder):
        write_file(folder / PAGE, page.encode())
    return folder / PAGE


def render(folder: Path, plan: Plan, rows: Sequence[Row], table: Sequence[Row]) -> str:
    """Return the page as HTML; raises MissingExtraError without the extra `report`."""
    groups = groups_of(plan)
    runs = _runs(folder, plan, groups)
    flat = [run for own in runs for run in own]
    measure = measure_of(flat)
    charts = {
        "What accuracy costs": cost_charts(groups, *_measured(plan, table, measure)),
        "How it is learnt": curve_charts(groups, runs, measure),
    }
    figures = {c.id: c.figure for found in charts.values() for c in found if c.figure}
    return pages.render(
        "comparison.html.jinja",
        figures,
        what="the page of a comparison",
        title=_title(plan),
        about=_about(plan),
        measure=measure,
        columns=columns_of(plan, measure),
        lines=[
            {"key": group, "cells": cells_of(plan, row)}
            for group, row in zip(groups, table, strict=True)
        ],
        baseline=plan.baseline,
        targeted=plan.targeted,
        charts={section: found for section, found in charts.items() if found},
        failed=[row for row in rows if row["status"] == "failed"],
        open=[row for row in rows if row["status"] in ("unfinished", "not started")],
        points=[_point_text(point, row) for point, row in zip(plan.points, rows, strict=True)],
        folder=str(folder),
        command=plan.command,
    )


def _runs(folder: Path, plan: Plan, groups: Sequence[Group]) -> list[list[Results]]:
    """Return the finished runs of each line; one that cannot be read is left out."""
    found: dict[tuple[str, float], list[Results]] = {(g.variant, g.density): [] for g in groups}
    for point in plan.points:
        try:
            run = read(place_of(folder, point))
        except FedSparseError:
            continue
        if run.finished:
            found[point.variant, point.density].append(run)
    return list(found.values())


def _measured(plan: Plan, table: Sequence[Row], measure: str) -> tuple[Sequence[Row], str]:
    """Return what is set against costs: where clients have models of their own, those'."""
    mean = PERSONAL[0]
    if not plan.personal or not any(row[mean] is not None for row in table):
        return table, measure
    found = [{**row, "accuracy": row[mean], "accuracy_ci95": row[f"{mean}_ci95"]} for row in table]
    return found, f"{measure} of clients' own models"


def measure_of(runs: Sequence[Results]) -> str:
    """Return what accuracy is called: a regression's is R²."""
    return "R²" if runs and all(run.regression for run in runs) else "Accuracy"


def _title(plan: Plan) -> str:
    names = plan.variants
    if len(names) == 1:
        return f"{names[0]}, {len(plan.groups())} densities"
    if len(names) > 3:
        return f"{len(names)} variants compared"
    return f"{', '.join(names[:-1])} and {names[-1]}"


def _about(plan: Plan) -> str:
    """Return one sentence: how many runs, on what."""
    seeds = sorted({point.seed for point in plan.points})
    config = plan.points[0].config
    shown = ", ".join(map(str, seeds[:12])) + (", ..." if len(seeds) > 12 else "")
    return (
        f"{len(plan.points)} runs: {len(plan.groups())} lines, each with "
        f"{'seed' if len(seeds) == 1 else 'seeds'} {shown}. The first trains the model "
        f"{config.model.name} on {config.data.name} with {config.fleet.clients} clients for "
        f"{config.run.rounds} rounds."
    )


# -- the table, for the page and for the terminal ----------------------------------------


PERSONAL_COLUMNS = (
    ("Own models", "of the models that clients use, on their own samples: mean over clients"),
    ("Its difference", "to the baseline, paired by seed ± half its 95 % interval"),
    ("Weakest tenth", "of clients: the 10th percentile of their own models' accuracy"),
)


def columns_of(plan: Plan, measure: str = "Accuracy") -> list[tuple[str, str]]:
    """Return the table's columns: name, and what it says in plain words."""
    found = [
        ("Variant", "what is compared"),
        ("Density", "asked for: the kept fraction of the prunable weights"),
        ("Seeds", "runs that finished"),
        (measure, "mean on the held-out test set ± half its 95 % confidence interval"),
        ("Difference", f"to {plan.baseline}, paired by seed ± half its 95 % interval"),
        *(PERSONAL_COLUMNS if plan.personal else ()),
        ("Sent", "up and down together, mean"),
        ("Work", "floating-point operations of training, all clients, mean"),
        ("Memory", "the most that training needs on one client, mean"),
        ("Time", "on the simulated clock, mean"),
        ("Energy", "of all devices, mean"),
        ("Refused", "clients whose devices cannot hold the training, mean"),
    ]
    if plan.targeted:
        found += [
            ("Reached", "seeds that reached the target accuracy"),
            ("Time to it", "simulated, mean over the seeds that reached it"),
            ("Sent to it", "up and down, mean over the seeds that reached it"),
            ("Energy to it", "of all devices, mean over the seeds that reached it"),
        ]
    return found


def cells_of(plan: Plan, row: Mapping[str, Any]) -> list[str]:
    """Return a line of the table in words and units; what was not measured is a dash."""
    asked = row["seeds"] + row["failed"] + row["missing"]
    cells = [
        row["variant"],
        units.percent(row["density"]),
        str(asked) if row["seeds"] == asked else f"{row['seeds']} of {asked}",
        _with_interval(row["accuracy"], row["accuracy_ci95"]),
        _with_interval(row["difference"], row["difference_ci95"], signed=True),
        *(_personal_cells(row) if plan.personal else ()),
        units.in_units(row["bytes"]),
        units.in_units(row["train_flops"], units.FLOPS),
        units.in_units(row["peak_client_memory_bytes"]),
        units.duration(row["simulated_seconds"]),
        units.in_units(row["energy_joules"], units.JOULES),
        units.NONE if row["clients_refused"] is None else f"{row['clients_refused']:g}",
    ]
    if plan.targeted:
        cells += [
            f"{row['reached']} of {row['seeds']}" if row["seeds"] else units.NONE,
            units.duration(row["seconds_to_target"]),
            units.in_units(row["bytes_to_target"]),
            units.in_units(row["joules_to_target"], units.JOULES),
        ]
    return cells


def _personal_cells(row: Mapping[str, Any]) -> list[str]:
    mean, weakest = PERSONAL
    apart = f"{mean}_difference"
    return [
        _with_interval(row[mean], row[f"{mean}_ci95"]),
        _with_interval(row[apart], row[f"{apart}_ci95"], signed=True),
        _with_interval(row[weakest], row[f"{weakest}_ci95"]),
    ]


def _with_interval(middle: float | None, half: float | None, *, signed: bool = False) -> str:
    """Return a fraction as per cent with its interval: `94.2 ± 0.8 %`."""
    if middle is None:
        return units.NONE
    text = f"{100 * middle:{'+' if signed else ''}.1f}"
    return f"{text} %" if half is None else f"{text} ± {100 * half:.1f} %"


def _point_text(point: Any, row: Row) -> dict[str, str]:
    return {
        "variant": point.variant,
        "density": units.percent(point.density),
        "seed": str(point.seed),
        "status": row["status"],
        "accuracy": units.percent(row.get("accuracy")),
        "path": f"{POINTS}/{point.slug}",
        "link": quote(f"{POINTS}/{point.slug}/"),
        "command": point.command,
    }
