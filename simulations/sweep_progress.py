"""Progress of a sweep on stderr: a bar over points on a terminal, a line a point elsewhere."""

import sys

import click
from rich.console import Console
from rich.markup import escape
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)

from simulations.sweep import Status
from simulations.variants import Point


class Quiet:
    """Says nothing."""

    def start(self, total: int, done: int) -> None:
        """Say nothing."""

    def point_started(self, point: Point) -> None:
        """Say nothing."""

    def point_done(self, point: Point, status: Status, reason: str) -> None:
        """Say nothing."""

    def stop(self) -> None:
        """Say nothing."""


class Lines(Quiet):
    """A line for each point that ends, as a log keeps it."""

    def __init__(self) -> None:
        self.total = self.done = 0

    def start(self, total: int, done: int) -> None:
        """Remember how many points there are; say so when some are done already."""
        self.total, self.done = total, done
        if done:
            click.echo(f"{done} of {total} runs are finished already", err=True)

    def point_done(self, point: Point, status: Status, reason: str) -> None:
        """Print how the point ended."""
        self.done += 1
        text = f"{point.slug}: {status}" + (f": {reason}" if reason else "")
        click.echo(f"run {self.done}/{self.total}: {text}", err=True)


class Bars(Quiet):
    """A bar over points, and the names of those that run."""

    def __init__(self) -> None:
        self.running: list[str] = []
        self.console = Console(stderr=True)
        self.bars = Progress(
            TextColumn("runs"),
            BarColumn(bar_width=24),
            MofNCompleteColumn(),
            TimeElapsedColumn(),
            TimeRemainingColumn(),
            TextColumn("{task.description}", style="dim"),
            console=self.console,
            transient=True,
        )
        self.task = self.bars.add_task("", total=None)

    def start(self, total: int, done: int) -> None:
        """Show the bar."""
        self.bars.update(self.task, total=total, completed=done)
        self.bars.start()

    def point_started(self, point: Point) -> None:
        """Name the point."""
        self.running.append(point.slug)
        self._name()

    def point_done(self, point: Point, status: Status, reason: str) -> None:
        """Move the bar; a failure is a line above it."""
        self.running.remove(point.slug)
        self.bars.advance(self.task)
        self._name()
        if status != "finished":
            text = f"{point.slug}: {status}" + (f": {reason}" if reason else "")
            self.console.print(text, style="red", highlight=False, markup=False, soft_wrap=True)

    def _name(self) -> None:
        self.bars.update(self.task, description=escape(", ".join(self.running)))

    def stop(self) -> None:
        """Take the bar away."""
        self.bars.stop()


def watcher(quiet: bool) -> Quiet:
    """Return a bar for a terminal, lines for a file or a pipe, or nothing."""
    if quiet:
        return Quiet()
    return Bars() if sys.stderr.isatty() else Lines()
