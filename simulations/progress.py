"""Progress of a run on stderr: bars on a terminal, a line a round elsewhere.

The summary at the end is the one thing that goes to stdout, for it is the result.
"""

import shlex
import sys
from pathlib import Path
from typing import Any

import click
from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TaskID,
    TextColumn,
    TimeRemainingColumn,
)
from rich.table import Table

from fedsparse.runs import RunFolder
from fedsparse.runs import progress as seam
from simulations.units import FLOPS, JOULES, duration, in_units, percent


def watcher(heading: str = "") -> seam.Progress:
    """Return bars for a terminal, lines for a file or a pipe.

    The heading is shown when the run starts, so that a refused run is one line alone.
    """
    return Bars(heading) if sys.stderr.isatty() else Lines(heading)


class Lines:
    """A line for each round, as a log keeps it."""

    def __init__(self, heading: str) -> None:
        self.heading = heading
        self.total = 0

    def start(self, total_rounds: int, first_round: int) -> None:
        """Remember the number of rounds; say so when the run does not begin at its start."""
        self.total = total_rounds
        if self.heading:
            self.note(self.heading)
        if first_round:
            self.note(f"going on after round {first_round}")

    def clients(self, done: int, total: int) -> None:
        """Say nothing: a line a client would be too many."""

    def round_done(self, row: dict[str, Any]) -> None:
        """Print the round's figures."""
        self.note(f"round {row['round']}/{self.total}: {figures(row)}")

    def note(self, text: str) -> None:
        """Print a line."""
        click.echo(text, err=True)

    def stop(self) -> None:
        """Say nothing."""


class Bars:
    """A bar of rounds, with the newest figures and the time left, and one of clients."""

    def __init__(self, heading: str) -> None:
        self.heading = heading
        self.console = Console(stderr=True)
        self.bars = Progress(
            TextColumn("{task.description}"),
            BarColumn(bar_width=24),
            MofNCompleteColumn(),
            TextColumn("{task.fields[figures]}"),
            TimeRemainingColumn(elapsed_when_finished=True),
            console=self.console,
            transient=True,
        )
        self.rounds: TaskID | None = None
        self.cohort: TaskID | None = None

    def start(self, total_rounds: int, first_round: int) -> None:
        """Show the bars."""
        if self.heading:
            self.note(self.heading)
        self.rounds = self.bars.add_task(
            "rounds", total=total_rounds, completed=first_round, figures=""
        )
        self.cohort = self.bars.add_task("clients", total=None, figures="")
        self.bars.start()

    def clients(self, done: int, total: int) -> None:
        """Move the bar of clients."""
        if self.cohort is not None:
            self.bars.update(self.cohort, completed=done, total=total)

    def round_done(self, row: dict[str, Any]) -> None:
        """Move the bar of rounds and show the newest figures."""
        if self.rounds is not None and self.cohort is not None:
            self.bars.update(self.rounds, completed=row["round"], figures=figures(row))
            self.bars.reset(self.cohort, total=None, figures="")

    def note(self, text: str) -> None:
        """Print a line above the bars."""
        self.console.print(text, style="dim", highlight=False, markup=False, soft_wrap=True)

    def stop(self) -> None:
        """Take the bars away."""
        self.bars.stop()


def figures(row: dict[str, Any]) -> str:
    """Return a round's figures in a few words; the accuracy only where it was measured."""
    parts = [f"density {row['density']:.4g}"]
    if row["accuracy"] is not None:
        parts.insert(0, f"accuracy {row['accuracy']:.3f}")
    if row.get("simulated_seconds") is not None:
        parts.append(f"clock {duration(row['simulated_seconds'])}")
    if row.get("waited_seconds"):
        parts.append(f"waited {duration(row['waited_seconds'])} for clients to be there")
    lost = {"late": row.get("clients_late", 0), "dropped": row.get("clients_dropped", 0)}
    lost["failed"] = row["clients_failed"] - sum(lost.values())
    of = f"of {row['clients_asked']} clients "
    for how, count in lost.items():
        if count:
            parts.append(f"{count} {of}{how}")
            of = ""
    return ", ".join(parts)


def show_summary(summary: dict[str, Any], folder: Path, page: Path | None) -> None:
    """Print the headline figures and what to do next, on stdout."""
    table = Table(show_header=False, box=None, pad_edge=False)
    for name, value in headlines(summary, regression=_regression(folder)):
        table.add_row(name, value)
    Console(highlight=False, markup=False).print(table)
    place = shlex.quote(str(folder))
    click.echo(f"\nrun folder  {folder}")
    if page is not None:
        click.echo(f"report      {page}")
        click.echo(f"compare it  fedsparse report {place} OTHER_RUN")
    else:
        click.echo(f"report it   fedsparse report {place}")


def _regression(folder: Path) -> bool:
    """Tell whether a run's targets are numbers, which count as one class."""
    classes: int = RunFolder.open(folder).read_json("partition.json")["classes"]
    return classes == 1


def headlines(summary: dict[str, Any], *, regression: bool = False) -> list[tuple[str, str]]:
    """Return what a reader wants to know first, in the units that people read.

    What a summary calls accuracy is R² in a `regression`.
    """
    found = [
        ("strategy", f"{summary['strategy']} on {summary['dataset']} with {summary['model']}"),
        ("rounds", f"{summary['rounds']} over {summary['clients']} clients"),
        ("R²" if regression else "accuracy", percent(summary["accuracy"])),
        *_personal(summary),
        ("density", f"{summary['density']:.4g}"),
        ("sent up", in_units(summary["bytes_up"])),
        ("sent down", in_units(summary["bytes_down"])),
        ("arithmetic", in_units(summary["train_flops"], FLOPS)),
        ("client memory", in_units(summary["peak_client_memory_bytes"])),
        ("wall time", duration(summary["wall_seconds"])),
    ]
    if (epsilon := summary.get("epsilon")) is not None:
        found.append(("privacy", f"epsilon {epsilon:.3g} at delta {summary['delta']:g}"))
    if summary.get("simulated_seconds") is not None:
        found.append(("simulated time", duration(summary["simulated_seconds"])))
        found.append(("energy", in_units(summary["energy_joules"], JOULES)))
        found.append(("refused", f"{summary['clients_refused']} clients cannot hold the training"))
    if (target := summary.get("target_accuracy")) is not None:
        found.append((f"to {percent(target)}", _to_target(summary)))
    return found


def _personal(summary: dict[str, Any]) -> list[tuple[str, str]]:
    """Return how clients' own models do; of clients that use the global one, the same of that."""
    mean, weakest = (summary.get(f"accuracy_personal_{key}") for key in ("mean", "p10"))
    if mean is None or weakest is None:
        return []
    found = [("at clients", f"{percent(mean)}, the weakest tenth {percent(weakest)}")]
    if (novel := summary.get("accuracy_novel_mean")) is not None:
        found.append(("at novel ones", percent(novel)))
    return found


def _to_target(summary: dict[str, Any]) -> str:
    """Return what it took to the target accuracy, in a few words."""
    if summary["rounds_to_target"] is None:
        return "not reached"
    parts = [f"{summary['rounds_to_target']} rounds", in_units(summary["bytes_to_target"])]
    if summary["seconds_to_target"] is not None:
        parts.append(duration(summary["seconds_to_target"]))
        parts.append(in_units(summary["joules_to_target"], JOULES))
    return ", ".join(parts)
