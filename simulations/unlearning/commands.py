"""The command that makes a run forget.

Help needs click alone; what the command works with is imported in its body.
"""

import json
import shlex
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from simulations.command_parts import ENGINES, INTERRUPTED, path_type

if TYPE_CHECKING:
    from fedsparse.runs.progress import Progress
    from simulations.unlearning.unlearn import Unlearned

EXAMPLES = """\b
Examples:
  fedsparse unlearn runs/demo-fedtiny-s0 --client 3
  fedsparse unlearn runs/demo-fedtiny-s0 --class 3 --method l1-sparse
  fedsparse unlearn runs/demo-fedtiny-s0 --samples ids.txt --method auto --retrain --references 4
  fedsparse unlearn runs/poisoned --backdoor --method prune-finetune --set strategy.density=0.05

\b
`fedsparse list methods` names the methods; `fedsparse influence RUN --client ID` tells what an
exact rerun would take. Exit code 3: an exact result that is not a retrained run's, to the bit.
"""


@click.command(epilog=EXAMPLES, short_help="Make a run forget a client, a class or samples.")
@click.argument("folder", metavar="RUN", type=path_type)
@click.option(
    "--client",
    "clients",
    type=click.IntRange(min=0, max=10**9),
    multiple=True,
    metavar="ID",
    help="A client to forget; repeatable.",
)
@click.option(
    "--class",
    "classes",
    type=click.IntRange(min=0, max=10**9),
    multiple=True,
    metavar="C",
    help="A class to forget; repeatable.",
)
@click.option(
    "--samples",
    type=path_type,
    metavar="FILE",
    help="Samples to forget: a text file of rows of the training set, one a line.",
)
@click.option(
    "--backdoor", is_flag=True, help="Forget the clients that planted the run's backdoor."
)
@click.option(
    "--method",
    default="exact",
    show_default=True,
    metavar="NAME",
    help="exact, a method of `fedsparse list methods`, or auto: the best of a few.",
)
@click.option(
    "--set",
    "assignments",
    multiple=True,
    metavar="KEY=VALUE",
    help="Change one key of the new run, such as strategy.gamma=0.01; repeatable.",
)
@click.option(
    "--rounds",
    type=click.IntRange(min=1, max=100_000),
    metavar="N",
    help="Rounds of an approximate method; its usual number if unset.",
)
@click.option(
    "--budget",
    type=click.FloatRange(min=0, min_open=True, max=100),
    default=0.8,
    show_default=True,
    metavar="X",
    help="Rounds of a method's tries together, in those of RUN, where --rounds is unset.",
)
@click.option("--retrain", is_flag=True, help="Retrain without the target, too, and compare.")
@click.option(
    "--references",
    type=click.IntRange(min=0, max=64),
    default=0,
    metavar="N",
    help="Retrain with N other seeds, too: intervals, and the strong attacks.",
)
@click.option(
    "--reference",
    "given",
    type=path_type,
    metavar="RUN",
    help="A retrained run that is there already.",
)
@click.option("--engine", type=click.Choice(ENGINES), help="What carries the messages.")
@click.option("--out", type=path_type, metavar="DIR", help="The new run folder.")
@click.option("--json", "as_json", is_flag=True, help="Print the record as one JSON object.")
@click.option("--quiet", is_flag=True, help="Show no progress.")
def unlearn(
    folder: Path,
    clients: tuple[int, ...],
    classes: tuple[int, ...],
    samples: Path | None,
    backdoor: bool,
    method: str,
    assignments: tuple[str, ...],
    rounds: int | None,
    budget: float,
    retrain: bool,
    references: int,
    given: Path | None,
    engine: str | None,
    out: Path | None,
    as_json: bool,
    quiet: bool,
) -> None:
    """Make the finished run in folder RUN forget clients, classes or samples.

    The result is a new run folder with `unlearning.json` and a page; RUN is not touched. `exact`
    goes back to before the target's first influence and runs on without it: the bits of a run
    that never had it. Other methods change the model in a few rounds over the retained data. How
    strongly is chosen by the gap to a retrained model (--retrain, --reference), or to a stated
    proxy. What was tried lies in DIR-trials; the same command goes on after an interruption.
    """
    from fedsparse.errors import RunFolderError, UnknownNameError
    from fedsparse.registry import names
    from fedsparse.runs import RunFolder
    from simulations.command_parts import check_way, flower_quiet
    from simulations.unlearning.target import target_of
    from simulations.unlearning.unlearn import FAILED, Request
    from simulations.unlearning.unlearn import unlearn as forget

    if method not in ("exact", "auto", *names("methods")) and ":" not in method:
        raise UnknownNameError("method of unlearning", method, ["exact", "auto", *names("methods")])
    if method == "exact" and rounds is not None:
        raise click.UsageError("--rounds: an exact rerun has the run's own rounds; leave it out")
    if retrain and given is not None:
        raise click.UsageError("--retrain and --reference: give one")
    run = RunFolder.open(folder)
    target = target_of(run.config, clients, classes, samples, backdoor)
    place = out or _free(folder, target.kind, method)
    check_way(place)
    if place.exists() and not (place / "run.json").exists() and any(place.iterdir()):
        raise RunFolderError(f"'{place}' is not empty; choose another --out")
    changes = (*assignments, *((f"engine.name={engine}",) if engine else ()))
    request = Request(
        folder, target, method, place, changes, rounds, budget, retrain, references, given
    )
    shown: list[Progress] = []
    try:
        with flower_quiet(quiet):
            done = forget(
                request, command=_command(), watch=lambda text: _watcher(text, quiet, shown)
            )
    except KeyboardInterrupt:
        _stop(shown)
        click.echo(
            "fedsparse: interrupted; to go on, give the same command again with "
            f"--out {shlex.quote(str(place))}",
            err=True,
        )
        raise click.exceptions.Exit(INTERRUPTED) from None
    finally:
        _stop(shown)
    if as_json:
        click.echo(json.dumps(for_json(done)))
    else:
        _show(done)
    if done.failed:
        raise click.exceptions.Exit(FAILED)


def _free(folder: Path, kind: str, method: str) -> Path:
    """Return a place beside the run that is not taken."""
    own = folder if folder.name else folder.resolve()
    first = own.with_name(f"{own.name}-without-{kind}-{method.rpartition(':')[2]}")
    number, place = 1, first
    while place.exists():
        number += 1
        place = first.with_name(f"{first.name}-{number}")
    return place


def _command() -> str:
    import sys

    return shlex.join(["fedsparse", *sys.argv[1:]])


def _watcher(text: str, quiet: bool, shown: list["Progress"]) -> "Progress":
    """Return a watcher of the next run; the one before has ended."""
    from fedsparse.runs.progress import Silent
    from simulations.progress import watcher

    _stop(shown)
    shown[:] = [Silent() if quiet else watcher(text)]
    return shown[0]


def _stop(shown: list["Progress"]) -> None:
    for progress in shown:
        progress.stop()
    shown.clear()


def for_json(done: "Unlearned") -> dict[str, Any]:
    """Return the record as it is printed: without curves, with the new run's headline figures."""
    evidence = done.record["evidence"]
    short = evidence and {k: v for k, v in evidence.items() if k not in ("attacks", "confidence")}
    keys = ("accuracy", "loss", "density", "rounds", "run")
    page = None if done.page is None else str(done.page)
    summary = {key: done.summary[key] for key in keys}
    return {**summary, **done.record, "evidence": short, "page": page}


def _show(done: "Unlearned") -> None:
    from simulations.evidence.examine import MEASURES
    from simulations.sweep_commands import show_table

    record, evidence = done.record, done.record["evidence"]
    if evidence:
        columns = ("original", "unlearned", "retrained", "gap")
        lines = [
            [MEASURES[key][0], *(_shown(key, row[column]) for column in columns)]
            for key, row in evidence["measures"].items()
        ]
        show_table(["measure", *columns], lines)
    search = record["search"]
    if search:
        click.echo(f"\nstrength     {search['chosen']}, closest to {search['reference']}")
    click.echo(f"\ncertificate  {record['certificate']}")
    click.echo(f"verdict      {done.verdict.headline}")
    ratio = record["costs"]["ratio"]
    if ratio:
        told = ", ".join(
            f"{value:.2g} x {key}" for key, value in ratio.items() if key in SHOWN_COSTS
        )
        than = "retraining" if record["costs"]["retraining_of"] == "the run" else "the original run"
        tries = ", tries included, models retrained to compare with not" if search else ""
        click.echo(f"cost         {told} of {than}{tries}")
    for note in done.notes:
        click.echo(f"note         {note}")
    click.echo(f"run          {done.summary['run']}")
    if done.page is not None:
        click.echo(f"page         {done.page}")


SHOWN_COSTS = ("rounds", "bytes", "flops", "seconds")


def _shown(key: str, value: float | None) -> str:
    if value is None:
        return "-"
    return f"{value:g}" if key == "relearn" else f"{100 * value:.1f} %"
