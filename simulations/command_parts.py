"""What commands that start runs share: options, the configuration they mean, progress, the end.

Help needs click alone; what a function works with is imported in its body.
"""

import json
import logging
import os
import shlex
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

if TYPE_CHECKING:
    from fedsparse.config import Config
    from fedsparse.runs.progress import Progress

ENGINES = ("auto", "inline", "ray", "flower")
INTERRUPTED = 130


class _Path(click.Path):
    """A path that is not empty, which would be taken for the present folder."""

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        if not value:
            self.fail("it is empty; name a file or a folder", param, ctx)
        return super().convert(value, param, ctx)


path_type = _Path(path_type=Path)
json_option = click.option(
    "--json", "as_json", is_flag=True, help="Print the summary as one JSON object."
)
no_report_option = click.option("--no-report", is_flag=True, help="Write no report and no events.")
quiet_option = click.option("--quiet", is_flag=True, help="Show no progress.")
preset_option = click.option(
    "--preset", metavar="NAME", help="Start from a preset; see `fedsparse list presets`."
)
set_option = click.option(
    "--set", "assignments", multiple=True, metavar="KEY=VALUE", help="Change one key; repeatable."
)
seed_option = click.option(
    "--seed", type=click.IntRange(min=0), metavar="N", help="The run's seed."
)
out_option = click.option(
    "--out", type=path_type, metavar="DIR", help="The run folder; a new one if unset."
)


def read_configuration(config: Path | None, preset: str | None) -> dict[str, Any]:
    """Read the file or the preset, without the tables that only a comparison reads."""
    from simulations.variants import OWN

    tree = read_whole(config, preset)
    return {name: tree[name] for name in tree if name not in OWN}


def read_whole(config: Path | None, preset: str | None) -> dict[str, Any]:
    """Read the file or the preset; a file that is missing but a preset's name is told so."""
    from fedsparse.config import read_toml
    from fedsparse.errors import ConfigError
    from simulations import presets

    if config is None:
        return presets.load(str(preset))
    if str(config) in presets.names() and not config.exists():
        raise ConfigError(f"no configuration file '{config}'; did you mean '--preset {config}'?")
    return read_toml(config)


def changes_of(
    assignments: tuple[str, ...], engine: str | None, seed: int | None, ray_address: str | None
) -> list[str]:
    """Return every change of a key, the options' last, for they are the more explicit."""
    changes = list(assignments)
    if ray_address is not None:
        changes += ["engine.name=ray", f"engine.ray_address={ray_address}"]
    changes += [f"engine.name={engine}"] if engine is not None else []
    changes += [f"run.seed={seed}"] if seed is not None else []
    return changes


def free_folder(stem: str, config: "Config") -> Path:
    """Return the first of runs/STEM-STRATEGY-sSEED, -2, -3, ... that is not there yet."""
    strategy = str(config.strategy["name"]).rpartition(":")[2].lower()
    first = Path("runs") / f"{stem}-{strategy}-s{config.run.seed}"
    number, folder = 1, first
    while folder.exists():
        number += 1
        folder = first.with_name(f"{first.name}-{number}")
    return folder


def check_way(folder: Path) -> None:
    """Refuse a run folder whose place, or a folder above it, is something else."""
    from fedsparse.errors import RunFolderError

    for place in (*reversed(folder.parents), folder):
        if os.path.lexists(place) and not place.is_dir():
            what = "a file" if place.exists() else "a link that leads nowhere"
            raise RunFolderError(f"'{place}' is {what}, not a folder; choose another --out")


@contextmanager
def flower_quiet(quiet: bool) -> Iterator[None]:
    """Keep what Flower's strategies log at each step off stderr; warnings stay unless quiet."""
    from flwr.common.logger import FLOWER_LOGGER

    level = FLOWER_LOGGER.level
    FLOWER_LOGGER.setLevel(logging.ERROR if quiet else logging.WARNING)
    try:
        yield
    finally:
        FLOWER_LOGGER.setLevel(level)


def watched(
    work: Callable[["Progress"], dict[str, Any]],
    folder: Path,
    quiet: bool,
    heading: str = "",
    again: str = "fedsparse resume",
) -> dict[str, Any]:
    """Do the work with progress on stderr; say how to go on when it is interrupted.

    `again` is what is typed before the folder.
    """
    from fedsparse.runs.progress import Silent
    from simulations.progress import watcher

    progress = Silent() if quiet else watcher(heading)
    try:
        with flower_quiet(quiet):
            return work(progress)
    except KeyboardInterrupt:
        progress.stop()
        begun = (folder / "run.json").exists()
        go_on = f"; to go on: {again} {shlex.quote(str(folder))}" if begun else ""
        click.echo(f"fedsparse: interrupted{go_on}", err=True)
        raise click.exceptions.Exit(INTERRUPTED) from None
    finally:
        progress.stop()


def finish(folder: Path, summary: dict[str, Any], *, as_json: bool, report: bool) -> None:
    """Write the report and show the summary; the run itself is safe on the disk."""
    page = _report(folder) if report else None
    if as_json:
        click.echo(json.dumps(summary))
        return
    from simulations.progress import show_summary

    show_summary(summary, folder, page)


def _report(folder: Path) -> Path | None:
    """Write report.html and TensorBoard events; where that fails, a line says why."""
    from fedsparse.errors import FedSparseError
    from simulations.report import write_report
    from simulations.tensorboard import write_events

    page = None
    try:
        page = write_report([folder])
        write_events(folder)
    except FedSparseError as error:
        missing = "no TensorBoard events" if page is not None else "no report"
        click.echo(f"{missing}: {error}", err=True)
    return page
