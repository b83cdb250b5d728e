"""The commands of the simulator: run, resume, report.

Help needs click alone; what a command works with is imported in its body. Progress and
notes go to stderr, results to stdout.
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

RUN_EXAMPLES = """\b
Examples:
  fedsparse run --preset demo
  fedsparse run --preset fashion --engine ray --set engine.workers=2
  fedsparse run my.toml --set strategy.density=0.05 --seed 1 --out runs/mine
  fedsparse run --preset demo --set strategy.name=fedavg --json
"""
RESUME_EXAMPLES = """\b
Examples:
  fedsparse resume runs/demo-fedtiny-s0
  fedsparse resume runs/demo-fedtiny-s0 --json
"""
REPORT_EXAMPLES = """\b
Examples:
  fedsparse report runs/demo-fedtiny-s0
  fedsparse report runs/demo-fedtiny-s0 runs/demo-fedavg-s0 --out both.html
"""


class _Path(click.Path):
    """A path that is not empty, which would be taken for the present folder."""

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        if not value:
            self.fail("it is empty; name a file or a folder", param, ctx)
        return super().convert(value, param, ctx)


path_type = _Path(path_type=Path)
_json = click.option(
    "--json", "as_json", is_flag=True, help="Print the summary as one JSON object."
)
_no_report = click.option("--no-report", is_flag=True, help="Write no report and no events.")
_quiet = click.option("--quiet", is_flag=True, help="Show no progress.")
_preset = click.option(
    "--preset", metavar="NAME", help="Start from a preset; see `fedsparse list presets`."
)
_set = click.option(
    "--set", "assignments", multiple=True, metavar="KEY=VALUE", help="Change one key; repeatable."
)
_seed = click.option("--seed", type=click.IntRange(min=0), metavar="N", help="The run's seed.")
_out = click.option(
    "--out", type=path_type, metavar="DIR", help="The run folder; a new one if unset."
)


@click.command(epilog=RUN_EXAMPLES, short_help="Train a federated model.")
@click.argument("config", required=False, metavar="[CONFIG.toml]", type=path_type)
@_preset
@_set
@click.option("--engine", type=click.Choice(ENGINES), help="What carries the messages.")
@click.option(
    "--ray-address", metavar="HOST:PORT", help="A Ray cluster to run on; implies --engine ray."
)
@_seed
@_out
@_json
@_no_report
@_quiet
def run(
    config: Path | None,
    preset: str | None,
    assignments: tuple[str, ...],
    engine: str | None,
    ray_address: str | None,
    seed: int | None,
    out: Path | None,
    as_json: bool,
    no_report: bool,
    quiet: bool,
) -> None:
    """Train a federated model from CONFIG.toml or from a preset (`demo` if neither is given).

    Keys are those of the configuration's sections, such as strategy.density. The run
    folder holds the model, every figure and the report; an interrupted run goes on with
    `fedsparse resume`.
    """
    from fedsparse.config import override, resolve
    from simulations import early

    if config is not None and preset is not None:
        raise click.UsageError("CONFIG.toml and --preset: give one; --set changes single keys")
    if ray_address is not None and engine not in (None, "auto", "ray"):
        raise click.UsageError(f"--ray-address: --engine {engine} runs on no cluster; leave it out")
    by_default = config is None and preset is None
    heading = "no configuration given: this is the preset 'demo'" if by_default else ""
    name = "demo" if by_default else preset
    tree = _read(config, name)
    changes = _changes(assignments, engine, seed, ray_address)
    with early.prepared(tree, changes, out) as session:
        resolved = resolve(override(tree, changes))
        stem = config.stem if config is not None else str(name)
        folder = out if out is not None else free_folder(stem, resolved)
        check_way(folder)
        command = command_of(config, name, assignments, engine, seed, out, ray_address)

        def work(progress: "Progress") -> dict[str, Any]:
            from simulations.experiment import run_experiment

            return run_experiment(
                resolved, folder, command=command, progress=progress, session=session
            )

        summary = _watched(work, folder, quiet, heading)
    _finish(folder, summary, as_json=as_json, report=not no_report)


@click.command(epilog=RESUME_EXAMPLES, short_help="Continue an interrupted run.")
@click.argument("folder", metavar="RUN", type=path_type)
@_json
@_no_report
@_quiet
def resume(folder: Path, as_json: bool, no_report: bool, quiet: bool) -> None:
    """Continue the interrupted run in folder RUN, to the same bits as if never interrupted.

    A finished run is left as it is, and its summary shown.
    """

    def work(progress: "Progress") -> dict[str, Any]:
        from simulations.experiment import resume_experiment

        return resume_experiment(folder, progress=progress)

    summary = _watched(work, folder, quiet)
    _finish(folder, summary, as_json=as_json, report=not no_report)


@click.command(epilog=REPORT_EXAMPLES, short_help="Write one page about one run or several.")
@click.argument("runs", metavar="RUN...", nargs=-1, required=True, type=path_type)
@click.option(
    "--out",
    type=path_type,
    metavar="FILE",
    help="The page; if unset report.html in RUN, or beside the folders of several.",
)
def report(runs: tuple[Path, ...], out: Path | None) -> None:
    """Write one self-contained page about a run, finished or not, or several side by side."""
    from simulations.report import write_report

    click.echo(write_report(list(runs), out))


def _read(config: Path | None, preset: str | None) -> dict[str, Any]:
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


def _changes(
    assignments: tuple[str, ...], engine: str | None, seed: int | None, ray_address: str | None
) -> list[str]:
    """Return every change of a key, the options' last, for they are the more explicit."""
    changes = list(assignments)
    if ray_address is not None:
        changes += ["engine.name=ray", f"engine.ray_address={ray_address}"]
    changes += [f"engine.name={engine}"] if engine is not None else []
    changes += [f"run.seed={seed}"] if seed is not None else []
    return changes


def command_of(
    config: Path | None,
    preset: str | None,
    assignments: tuple[str, ...],
    engine: str | None,
    seed: int | None,
    out: Path | None,
    ray_address: str | None = None,
) -> str:
    """Return the exact command that repeats a run."""
    words = ["fedsparse", "run"]
    words += [str(config)] if config is not None else ["--preset", str(preset)]
    for assignment in assignments:
        words += ["--set", assignment]
    words += ["--engine", engine] if engine is not None else []
    words += ["--ray-address", ray_address] if ray_address is not None else []
    words += ["--seed", str(seed)] if seed is not None else []
    words += ["--out", str(out)] if out is not None else []
    return shlex.join(words)


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


def _watched(
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


def _finish(folder: Path, summary: dict[str, Any], *, as_json: bool, report: bool) -> None:
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
