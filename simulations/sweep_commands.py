"""The command that compares: many runs, one table, one page.

Help needs click alone; what a command works with is imported in its body. Progress and
notes go to stderr, the table to stdout.
"""

import dataclasses
import os
import shlex
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from simulations.command_parts import ENGINES, INTERRUPTED, check_way, path_type

if TYPE_CHECKING:
    from collections.abc import Iterator

    from simulations.comparison import Plan, Row
    from simulations.sweep_progress import Quiet
    from simulations.variants import Asked

FAILED = 3

COMPARE_EXAMPLES = """\b
Examples:
  fedsparse compare --preset demo --strategies fedavg,static,fedtiny --seeds 0,1,2
  fedsparse compare --preset demo --strategies static,fedtiny --densities 0.02,0.1 --out runs/cmp
  fedsparse compare my.toml --strategies fedavg \\
      --variant "prox: strategy.name=fedavg strategy.proximal_mu=0.1" --baseline fedavg
  fedsparse compare --out runs/cmp
"""


@dataclass(frozen=True)
class Options:
    """What says which runs are compared, as given."""

    config: Path | None
    preset: str | None
    strategies: str | None = None
    variants: tuple[str, ...] = ()
    densities: str | None = None
    seeds: str | None = None
    assignments: tuple[str, ...] = ()
    engine: str | None = None

    @property
    def source(self) -> list[str]:
        """The words that name the configuration to start from."""
        if self.config is not None:
            return [str(self.config)]
        return ["--preset", self.preset if self.preset is not None else "demo"]

    def words(self) -> list[str]:
        """Return the options as they stand in a command."""
        words = list(self.source)
        for option, values in (
            ("--strategies", [self.strategies]),
            ("--variant", self.variants),
            ("--densities", [self.densities]),
            ("--seeds", [self.seeds]),
            ("--set", self.assignments),
            ("--engine", [self.engine]),
        ):
            words += [word for value in values if value is not None for word in (option, value)]
        return words

    def tree(self) -> dict[str, Any]:
        """Return the configuration, with the tables that are for a comparison alone."""
        from simulations.command_parts import read_whole

        return read_whole(self.config, self.source[1] if self.config is None else None)


@click.command(epilog=COMPARE_EXAMPLES, short_help="Run several variants and compare them.")
@click.argument("config", required=False, metavar="[CONFIG.toml]", type=path_type)
@click.option("--preset", metavar="NAME", help="Start from a preset; see `fedsparse list presets`.")
@click.option("--strategies", metavar="A,B,..", help="Strategies to compare.")
@click.option(
    "--variant",
    "variants",
    multiple=True,
    metavar='"NAME: KEY=VALUE .."',
    help="A named set of changes to compare; repeatable.",
)
@click.option("--densities", metavar="D,D,..", help="Densities of the sparse variants.")
@click.option("--seeds", metavar="N,N,..", help="Seeds; each variant is run with each.")
@click.option(
    "--set", "assignments", multiple=True, metavar="KEY=VALUE", help="Change one key; repeatable."
)
@click.option(
    "--baseline", metavar="NAME", help="The variant that others are set against; else the first."
)
@click.option(
    "--jobs", type=click.IntRange(min=1), metavar="N", help="Runs at a time; one a core if unset."
)
@click.option("--engine", type=click.Choice(ENGINES), help="What carries messages; else inline.")
@click.option(
    "--out", type=path_type, metavar="DIR", help="The comparison's folder; else a new one."
)
@click.option("--report-only", is_flag=True, help="Run nothing; rewrite table and page.")
@click.option("--json", "as_json", is_flag=True, help="Print points and table as one JSON object.")
@click.option("--quiet", is_flag=True, help="Show no progress.")
def compare(
    config: Path | None,
    preset: str | None,
    strategies: str | None,
    variants: tuple[str, ...],
    densities: str | None,
    seeds: str | None,
    assignments: tuple[str, ...],
    baseline: str | None,
    jobs: int | None,
    engine: str | None,
    out: Path | None,
    report_only: bool,
    as_json: bool,
    quiet: bool,
) -> int:
    """Run variants x densities x seeds, and set them side by side.

    A variant is a strategy, a --variant, or a [[variant]] table of CONFIG.toml. Each run is
    an ordinary run folder in DIR/points. Started again with the same --out, finished runs
    are not repeated; `fedsparse compare --out DIR` alone goes on with what DIR holds.
    """
    from fedsparse.errors import RunFolderError
    from simulations.comparison import check_same, read_plan, write_plan
    from simulations.sweep import held

    if config is not None and preset is not None:
        raise click.UsageError("CONFIG.toml and --preset: give one; --set changes single keys")
    options = Options(config, preset, strategies, variants, densities, seeds, assignments, engine)
    if out is not None:
        _check_out(out, report_only)
    there = read_plan(out) if out is not None and (out / "comparison.json").exists() else None
    if there is not None and options == Options(None, None):
        plan = _with_baseline(there, baseline)
    else:
        if out is not None and there is None and options == Options(None, None):
            raise RunFolderError(
                f"'{out}' holds no comparison to go on with; give one's --out, or what to compare, "
                "such as --strategies fedavg,fedtiny"
            )
        plan = _plan(options, baseline)
        if out is not None and there is not None:
            check_same(out, there, plan)
    folder = out if out is not None else free_folder(options, "compare")
    at_once = jobs_for({point.config.engine.name for point in plan.points}, jobs)
    if there is None:
        write_plan(folder, plan)
    with held(folder):
        check_same(folder, read_plan(folder), plan)
        if not report_only:
            _run(plan, folder, at_once, quiet)
        return _conclude(plan, folder, as_json=as_json)


def _check_out(out: Path, report_only: bool) -> None:
    """Refuse a folder that holds something else, or nothing to report on."""
    from fedsparse.errors import RunFolderError

    check_way(out)
    if report_only and not (out / "comparison.json").exists():
        raise RunFolderError(f"'{out}' holds no comparison to report on; give the --out of one")
    check_own(out, "comparison.json")


def check_own(out: Path, mark: str) -> None:
    """Refuse a folder that is neither empty nor has the file that marks it as ours."""
    from fedsparse.errors import RunFolderError

    check_way(out)
    if out.exists() and not (out / mark).exists() and any(out.iterdir()):
        holds = "holds a run" if (out / "run.json").exists() else "is not empty"
        raise RunFolderError(f"'{out}' {holds}; choose another --out")


def _with_baseline(plan: "Plan", baseline: str | None) -> "Plan":
    from simulations.variants import check_baseline

    if baseline is None:
        return plan
    return dataclasses.replace(plan, baseline=check_baseline(baseline, plan.variants))


def _plan(options: Options, baseline: str | None) -> "Plan":
    """Return the points with their configurations, all of them checked."""
    from simulations.comparison import Plan
    from simulations.variants import OWN, check_baseline, points_of

    whole = options.tree()
    asked = _asked(options, whole)
    tree = {section: values for section, values in whole.items() if section not in OWN}
    points = points_of(tree, options.source, options.assignments, asked, options.engine)
    names = list(dict.fromkeys(point.variant for point in points))
    words = ["fedsparse", "compare", *options.words()]
    words += ["--baseline", baseline] if baseline is not None else []
    chosen = check_baseline(baseline if baseline is not None else asked.baseline, names)
    return Plan(tuple(points), chosen, shlex.join(words))


def _asked(options: Options, tree: dict[str, Any]) -> "Asked":
    """Return what the options and the configuration ask for; the options win."""
    from simulations.variants import Asked, Variant, asked_by, densities_of, seeds_of, words_of

    own = asked_by(tree)
    named = words_of(options.strategies, "--strategies") or []
    variants = [Variant.of_strategy(name) for name in named]
    variants += [Variant.parse(text) for text in options.variants]
    densities = densities_of(words_of(options.densities, "--densities"), "--densities")
    seeds = seeds_of(words_of(options.seeds, "--seeds"), "--seeds")
    return Asked(
        (*variants, *own.variants), densities or own.densities, seeds or own.seeds, own.baseline
    )


def free_folder(options: Options, what: str) -> Path:
    """Return the first of runs/STEM-WHAT, -2, -3, ... that is not there yet."""
    stem = options.config.stem if options.config is not None else options.source[1]
    first = Path("runs") / f"{stem}-{what}"
    number, folder = 1, first
    while folder.exists():
        number += 1
        folder = first.with_name(f"{first.name}-{number}")
    check_way(folder)
    return folder


def jobs_for(engines: set[str], jobs: int | None) -> int:
    """Return how many points run at once: one a core, or one where each fills the cores."""
    others = engines - {"inline"}
    if not others:
        return jobs if jobs is not None else len(os.sched_getaffinity(0))
    if jobs is not None and jobs > 1:
        raise click.UsageError(
            f"--jobs {jobs}: each run on the engine '{others.pop()}' uses every core by itself; "
            "leave --jobs out, or use --engine inline"
        )
    return 1


@contextmanager
def watched(quiet: bool, again: str) -> "Iterator[Quiet]":
    """Show the progress of points on stderr; `again` is how to go on after an interruption."""
    from simulations.sweep_progress import watcher

    watch = watcher(quiet)
    try:
        yield watch
    except KeyboardInterrupt:
        watch.stop()
        click.echo(f"fedsparse: interrupted; to go on: {again}", err=True)
        raise click.exceptions.Exit(INTERRUPTED) from None
    finally:
        watch.stop()


def _run(plan: "Plan", folder: Path, jobs: int, quiet: bool) -> None:
    """Run what is not finished of a comparison."""
    from simulations.sweep import run_points, state_of

    done = sum(state_of(folder, point).status == "finished" for point in plan.points)
    with watched(quiet, shlex.join(["fedsparse", "compare", "--out", str(folder)])) as watch:
        watch.start(len(plan.points), done)
        run_points(plan.points, folder, jobs=jobs, watch=watch)


def _conclude(plan: "Plan", folder: Path, *, as_json: bool) -> int:
    """Write what the points gave, show it, and return the exit code."""
    from simulations.comparison import point_rows, table_of, write_plan, write_points

    rows = point_rows(folder, plan.points)
    table = table_of(plan, rows)
    write_plan(folder, plan, rows, table)
    write_points(folder, rows)
    page = _page(folder, plan, rows, table)
    if as_json:
        from fedsparse.runs.tables import to_json

        click.echo(to_json({"points": rows, "table": table, "out": str(folder)}))
    else:
        _show(plan, table, folder, page)
    failed = [row for row in rows if row["status"] == "failed"]
    if not failed:
        return 0
    first = f"{failed[0]['variant']}, density {failed[0]['asked_density']:g}"
    click.echo(
        f"fedsparse: error: {len(failed)} of {len(rows)} runs failed; the first, {first}, seed "
        f"{failed[0]['seed']}: {' '.join(str(failed[0]['reason']).split())[:300]}",
        err=True,
    )
    return FAILED


def _page(folder: Path, plan: "Plan", rows: "list[Row]", table: "list[Row]") -> Path | None:
    """Write the page; where that fails, a line says why."""
    from fedsparse.errors import FedSparseError
    from simulations.comparison_page import write_page

    try:
        return write_page(folder, plan, rows, table)
    except FedSparseError as error:
        click.echo(f"no page: {error}", err=True)
        return None


def _show(plan: "Plan", table: "list[Row]", folder: Path, page: Path | None) -> None:
    """Print the table and where the files are, on stdout."""
    from simulations.comparison_page import cells_of, columns_of

    show_table([name for name, _ in columns_of(plan)], [cells_of(plan, row) for row in table])
    click.echo(f"\n± is half a 95 % confidence interval; differences are to {plan.baseline}")
    click.echo(f"folder  {folder}")
    if page is not None:
        click.echo(f"page    {page}")


def show_table(names: list[str], lines: list[list[str]]) -> None:
    """Print a table on stdout: the first column to the left, the others to the right."""
    import sys

    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    found = Table(box=None, pad_edge=False, header_style="bold")
    for number, name in enumerate(names):
        found.add_column(name, justify="right" if number else "left")
    for cells in lines:
        found.add_row(*(Text(cell) for cell in cells))
    console = Console(highlight=False, markup=False, width=None if sys.stdout.isatty() else 400)
    console.print(found)
