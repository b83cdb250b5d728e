"""Rows of results: for JSON, for the terminal, for a picture.

A row has the same keys whoever made it: where it was measured decides whether it holds
milliseconds or instructions, never both.
"""

import hashlib
import platform
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from edge_export.bench.arm import ArmCost
from edge_export.bench.local import LocalCost
from edge_export.bench.picture import Point
from edge_export.bench.runtimes import sidecar

Row = dict[str, Any]
X86 = ("x86_64", "AMD64", "i686")
ABOUT = ("accuracy", "accuracy_torch", "layout", "values")
"""What export says of a file, and a row repeats."""


def about(files: Sequence[Path]) -> dict[Path, Row]:
    """Return what export wrote of each file, None where it wrote nothing; raises BenchError.

    What it wrote of other content, by its digest, counts as nothing.
    """
    found = {}
    for file in files:
        content = sidecar(file)
        if content and content.get("sha256") != hashlib.sha256(file.read_bytes()).hexdigest():
            content = {}
        found[file] = {key: content.get(key) for key in ABOUT}
    return found


def of_local(costs: Sequence[LocalCost], about: Mapping[Path, Row]) -> list[Row]:
    """Return rows of what was measured here; `ratio` is of medians, to the first file's."""
    rows = []
    for cost in costs:
        figures = {
            "p50_ms": cost.p50_ms,
            "p90_ms": cost.p90_ms,
            "p99_ms": cost.p99_ms,
            "samples": cost.samples,
            "cold_start_ms": cost.cold_start_ms,
            "import_ms": cost.import_ms,
            "peak_memory_bytes": cost.peak_memory_bytes,
            "ratio": _ratio(cost.p50_ms, costs[0].p50_ms),
        }
        rows.append(_row(cost, "local", None, cost.threads, figures, about[cost.file]))
    return rows


def of_arm(costs: Sequence[ArmCost], about: Mapping[Path, Row]) -> list[Row]:
    """Return rows of what was counted; `ratio` is of instructions, to the first file's."""
    rows = []
    for cost in costs:
        figures = {
            "instructions": cost.instructions,
            "setup_instructions": cost.setup_instructions,
            "ratio": _ratio(cost.instructions, costs[0].instructions),
        }
        rows.append(_row(cost, "arm", cost.core, 1, figures, about[cost.file]))
    return rows


def _row(
    cost: LocalCost | ArmCost,
    target: str,
    core: str | None,
    threads: int,
    figures: Row,
    about: Row,
) -> Row:
    return {
        "file": str(cost.file),
        "runtime": cost.runtime,
        "runtime_version": cost.version,
        "target": target,
        "core": core,
        "threads": threads,
        **figures,
        "file_bytes": cost.file_bytes,
        "sha256": hashlib.sha256(cost.file.read_bytes()).hexdigest(),
        **about,
    }


def _ratio(cost: float, first: float) -> float | None:
    """Return cost over the first file's; None where that took nothing."""
    return cost / first if first else None


def points(rows: Sequence[Row]) -> list[Point]:
    """Return what a picture shows of rows."""
    on_arm = rows[0]["target"] == "arm"
    unit = f"instructions on {rows[0]['core']}" if on_arm else "ms on this machine"
    key = "instructions" if on_arm else "p50_ms"
    return [
        Point(
            label=_label(row, rows),
            accuracy=row["accuracy"],
            nbytes=row["file_bytes"],
            cost=row[key],
            unit=unit,
            sparse=row["layout"] == "sparse",
        )
        for row in rows
    ]


def _label(row: Row, rows: Sequence[Row]) -> str:
    """Return a file's name, with its folder where that tells it from another."""
    name = Path(row["file"]).name
    alike = [other for other in rows if Path(other["file"]).name == name]
    return name if len(alike) == 1 else row["file"]


def show(rows: Sequence[Row]) -> None:
    """Print a table of rows."""
    from simulations import units
    from simulations.sweep_commands import show_table

    on_arm = rows[0]["target"] == "arm"
    told = any(row["accuracy"] is not None for row in rows)
    if on_arm:
        names = ["file", "instructions", "to set up", "against the first", "size"]
    else:
        names = [
            "file",
            "median",
            "p90",
            "p99",
            "against the first",
            "cold start",
            "memory",
            "size",
        ]
    lines = []
    for number, row in enumerate(rows):
        against = "" if number == 0 else _against(row["ratio"], "fewer" if on_arm else "faster")
        size = units.in_units(row["file_bytes"])
        if on_arm:
            counts = (row["instructions"], row["setup_instructions"])
            cells = [*(f"{count / 1e6:,.3f} M" for count in counts), against, size]
        else:
            times = [f"{row[key]:.3f} ms" for key in ("p50_ms", "p90_ms", "p99_ms")]
            memory = units.in_units(row["peak_memory_bytes"])
            cells = [*times, against, f"{row['cold_start_ms']:.1f} ms", memory, size]
        accuracy = [units.percent(row["accuracy"])] if told else []
        lines.append([_label(row, rows), *cells, *accuracy])
    show_table([*names, *(["accuracy"] if told else [])], lines)
    print(f"\n{_conditions(rows)}")


def _against(ratio: float | None, better: str) -> str:
    """Return a ratio of costs in words: `2.83x fewer`, `1.10x more`."""
    worse = {"fewer": "more", "faster": "slower"}[better]
    if not ratio:
        return "-"
    if 0.995 <= ratio <= 1.005:
        return "the same"
    return f"{1 / ratio:.2f}x {better}" if ratio <= 1 else f"{ratio:.2f}x {worse}"


def _conditions(rows: Sequence[Row]) -> str:
    used = ", ".join(dict.fromkeys(f"{row['runtime']} {row['runtime_version']}" for row in rows))
    if rows[0]["target"] == "arm":
        return (
            f"{used}; instructions on an emulated {rows[0]['core']}, one thread: a count, no time"
        )
    threads = rows[0]["threads"]
    said = f"{used}; {threads} thread{'s' if threads > 1 else ''} on this machine, files in turn"
    if platform.machine() in X86 and any(row["layout"] == "sparse" for row in rows):
        said += "; on x86 sparse files compute densely, on ARM sparsely: see --on arm"
    return said
