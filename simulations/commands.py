"""The commands of the simulator: run, resume, report.

Help needs click alone; what a command works with is imported in its body. Progress and
notes go to stderr, results to stdout.
"""

import shlex
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from simulations.command_parts import (
    ENGINES,
    changes_of,
    check_way,
    finish,
    free_folder,
    json_option,
    no_report_option,
    out_option,
    path_type,
    preset_option,
    quiet_option,
    read_configuration,
    seed_option,
    set_option,
    watched,
)

if TYPE_CHECKING:
    from fedsparse.runs.progress import Progress

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


@click.command(epilog=RUN_EXAMPLES, short_help="Train a federated model.")
@click.argument("config", required=False, metavar="[CONFIG.toml]", type=path_type)
@preset_option
@set_option
@click.option("--engine", type=click.Choice(ENGINES), help="What carries the messages.")
@click.option(
    "--ray-address", metavar="HOST:PORT", help="A Ray cluster to run on; implies --engine ray."
)
@seed_option
@out_option
@json_option
@no_report_option
@quiet_option
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
    tree = read_configuration(config, name)
    changes = changes_of(assignments, engine, seed, ray_address)
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

        summary = watched(work, folder, quiet, heading)
    finish(folder, summary, as_json=as_json, report=not no_report)


@click.command(epilog=RESUME_EXAMPLES, short_help="Continue an interrupted run.")
@click.argument("folder", metavar="RUN", type=path_type)
@json_option
@no_report_option
@quiet_option
def resume(folder: Path, as_json: bool, no_report: bool, quiet: bool) -> None:
    """Continue the interrupted run in folder RUN, to the same bits as if never interrupted.

    A finished run is left as it is, and its summary shown.
    """

    def work(progress: "Progress") -> dict[str, Any]:
        from simulations.experiment import resume_experiment

        return resume_experiment(folder, progress=progress)

    summary = watched(work, folder, quiet)
    finish(folder, summary, as_json=as_json, report=not no_report)


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
