"""The command that searches for settings: equal trials for each strategy, and the best of each.

Help needs click alone; what a command works with is imported in its body.
"""

import shlex
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from simulations.command_parts import ENGINES, path_type
from simulations.sweep_commands import FAILED, Options, check_own, free_folder, show_table

if TYPE_CHECKING:
    from simulations.tuning import Search, Trial

PLAN = "tune.json"

TUNE_EXAMPLES = """\b
Examples:
  fedsparse tune --preset demo --strategies fedavg,fedtiny --trials 20 \\
      --space "client.lr=log:0.005:0.5" --space "strategy.alpha=0.1:0.5"
  fedsparse tune my.toml --strategies static --trials 30 --seeds 0,1 \\
      --space "client.momentum=choice:0,0.9" --space "client.local_epochs=1:4"
"""


@click.command(epilog=TUNE_EXAMPLES, short_help="Search for the best settings of strategies.")
@click.argument("config", required=False, metavar="[CONFIG.toml]", type=path_type)
@click.option("--preset", metavar="NAME", help="Start from a preset; see `fedsparse list presets`.")
@click.option("--strategies", required=True, metavar="A,B,..", help="Strategies to tune.")
@click.option(
    "--space",
    "spaces",
    multiple=True,
    required=True,
    metavar='"KEY=RANGE"',
    help="LOW:HIGH, log:LOW:HIGH or choice:A,B; repeatable. Whole bounds: whole numbers.",
)
@click.option(
    "--trials", type=click.IntRange(min=1), required=True, metavar="N", help="Of each strategy."
)
@click.option(
    "--metric",
    default="client_accuracy",
    show_default=True,
    metavar="NAME",
    help="Or accuracy, loss, seconds_to_target, bytes_to_target, joules_to_target.",
)
@click.option("--seeds", metavar="N,N,..", help="Runs of a trial; its value is their mean.")
@click.option(
    "--set", "assignments", multiple=True, metavar="KEY=VALUE", help="Change one key; repeatable."
)
@click.option(
    "--batch",
    type=click.IntRange(min=1),
    default=1,
    show_default=True,
    metavar="N",
    help="Trials of a strategy that are drawn before any of them is judged.",
)
@click.option(
    "--search-seed",
    type=click.IntRange(min=0),
    default=0,
    show_default=True,
    metavar="N",
    help="Seed of the draws.",
)
@click.option(
    "--jobs", type=click.IntRange(min=1), metavar="N", help="Runs at a time; one a core if unset."
)
@click.option("--engine", type=click.Choice(ENGINES), help="What carries messages; else inline.")
@click.option("--out", type=path_type, metavar="DIR", help="The search's folder; else a new one.")
@click.option("--json", "as_json", is_flag=True, help="Print best and trials as one JSON object.")
@click.option("--quiet", is_flag=True, help="Show no progress.")
def tune(
    config: Path | None,
    preset: str | None,
    strategies: str,
    spaces: tuple[str, ...],
    trials: int,
    metric: str,
    seeds: str | None,
    assignments: tuple[str, ...],
    batch: int,
    search_seed: int,
    jobs: int | None,
    engine: str | None,
    out: Path | None,
    as_json: bool,
    quiet: bool,
) -> int:
    """Search for each strategy's best settings, with the same number of trials for each.

    Trials are judged on the samples that clients hold out for their own test, not on the
    test set that results are told of. Started again with the same --out, the search goes on;
    a larger --trials extends it.
    """
    from simulations.sweep import held
    from simulations.sweep_commands import jobs_for, watched
    from simulations.tuning import require_optuna, run_search, studies_of, trials_of

    if config is not None and preset is not None:
        raise click.UsageError("CONFIG.toml and --preset: give one; --set changes single keys")
    options = Options(config, preset, strategies, (), None, seeds, assignments, engine)
    search = _search(options, spaces, metric, batch, search_seed)
    search.check()
    require_optuna()
    at_once = jobs_for({search.engine}, jobs)
    folder = out if out is not None else free_folder(options, "tune")
    check_own(folder, PLAN)
    words = ["fedsparse", "tune", *options.words()]
    words += [word for space in spaces for word in ("--space", space)]
    words += ["--trials", str(trials), "--metric", metric, "--batch", str(batch)]
    words += ["--search-seed", str(search_seed), "--out", str(folder)]
    _keep_plan(folder, search, shlex.join(words))
    with held(folder):
        studies = studies_of(search, folder)
        runs = len(search.seeds)
        judged = sum(trial.status != "open" for trial in trials_of(search, studies, folder))
        with watched(quiet, shlex.join(words)) as watch:
            watch.start(trials * len(search.strategies) * runs, judged * runs)
            run_search(search, studies, folder, trials, jobs=at_once, watch=watch)
        return _conclude(search, studies, folder, as_json=as_json)


def _search(
    options: Options, spaces: tuple[str, ...], metric: str, batch: int, search_seed: int
) -> "Search":
    """Return what is searched, each part of it checked."""
    from fedsparse.config import settings_of
    from fedsparse.errors import ConfigError, UnknownNameError
    from simulations.tuning import METRICS, Search, Space
    from simulations.variants import OWN, engine_of, seeds_of, words_of

    if metric not in METRICS:
        raise UnknownNameError("metric", metric, METRICS)
    names = words_of(options.strategies, "--strategies") or []
    for i, name in enumerate(names):
        settings_of(name)
        if name in names[:i]:
            raise ConfigError(f"--strategies: {name} stands there twice; give each once")
    tree = {key: values for key, values in options.tree().items() if key not in OWN}
    changed = _changed(tree, options)
    seeds = seeds_of(words_of(options.seeds, "--seeds"), "--seeds")
    return Search(
        tree=tree,
        source=tuple(options.source),
        assignments=options.assignments,
        strategies=tuple(names),
        spaces=tuple(Space.parse(text) for text in spaces),
        metric=metric,
        seeds=seeds or (changed.get("run", {}).get("seed", 0),),
        engine=options.engine or str(engine_of(changed)),
        sampler_seed=search_seed,
        batch=batch,
    )


def _changed(tree: dict[str, Any], options: Options) -> dict[str, Any]:
    from fedsparse.config import override

    return override(tree, options.assignments)


def _keep_plan(folder: Path, search: "Search", command: str) -> None:
    """Write down what is searched; refuse the folder of another search.

    More trials or another engine make no other search.
    """
    import json

    import fedsparse
    from fedsparse.errors import RunFolderError
    from fedsparse.runs import tables
    from fedsparse.runs.atomic import write_file, writing

    path = folder / PLAN
    plan = json.loads(tables.to_json(plan_of(search)))
    if path.exists():
        try:
            there = json.loads(path.read_bytes())["plan"]
            differ = [key for key in plan if there.get(key) != plan[key]]
        except (KeyError, TypeError, ValueError, AttributeError, RecursionError):
            raise RunFolderError(f"'{path}' is damaged; start again with another --out") from None
        if differ:
            first = differ[0]
            raise RunFolderError(
                f"'{folder}' holds another search ({first}: {there.get(first)!r} there, "
                f"{plan[first]!r} asked for); choose another --out"
            )
    content = {"fedsparse": fedsparse.__version__, "command": command, "plan": plan}
    with writing(folder):
        folder.mkdir(parents=True, exist_ok=True)
        write_file(path, (tables.to_json(content) + "\n").encode())


def plan_of(search: "Search") -> dict[str, Any]:
    """Return what makes a search the same one: its draws and its runs follow from it."""
    import dataclasses
    import json

    configs = {
        name: json.loads(search.config(name, [], search.seeds[0]).to_json())
        for name in search.strategies
    }
    for config in configs.values():
        del config["engine"]
    flat = {
        f"{name}: {section}.{key}": value
        for name, config in configs.items()
        for section, values in config.items()
        for key, value in values.items()
    }
    return {
        "strategies": list(search.strategies),
        "spaces": [dataclasses.asdict(space) for space in search.spaces],
        "metric": search.metric,
        "seeds": list(search.seeds),
        "search_seed": search.sampler_seed,
        "batch": search.batch,
        **flat,
    }


def _conclude(search: "Search", studies: Any, folder: Path, *, as_json: bool) -> int:
    """Write tune.csv, show the best of each strategy, and return the exit code."""
    from fedsparse.runs.tables import to_json
    from simulations.comparison import write_points
    from simulations.tuning import best_of, trials_of

    trials = trials_of(search, studies, folder)
    best = best_of(search, trials)
    rows = [_row(search, trial) for trial in trials]
    write_points(folder, rows, stem="tune")
    if as_json:
        found = {name: None if t is None else _row(search, t) for name, t in best.items()}
        result = {"best": found, "trials": rows, "metric": search.metric, "out": str(folder)}
        click.echo(to_json(result))
    else:
        _show(search, trials, best, folder)
    missing = [name for name, trial in best.items() if trial is None]
    if missing:
        reason = next((t.reason for t in trials if t.strategy == missing[0] and t.reason), "")
        text = f"no trial of {', '.join(missing)} has a {search.metric}"
        text += f"; the first failed: {' '.join(reason.split())[:300]}" if reason else ""
        click.echo(f"fedsparse: error: {text}", err=True)
        return FAILED
    return 0


def _row(search: "Search", trial: "Trial") -> dict[str, Any]:
    return {
        "strategy": trial.strategy,
        "trial": trial.number,
        "status": trial.status,
        search.metric: trial.value,
        "set": settings_text(trial),
        "reason": trial.reason or None,
    }


def settings_text(trial: "Trial") -> str:
    """Return a trial's settings as arguments of `fedsparse run`."""
    changes = [f"strategy.name={trial.strategy}", *trial.changes]
    return shlex.join([word for change in changes for word in ("--set", change)])


def _show(
    search: "Search", trials: "list[Trial]", best: "dict[str, Trial | None]", folder: Path
) -> None:
    from simulations import units

    lines = []
    for name, trial in best.items():
        own = [t for t in trials if t.strategy == name]
        failed = sum(t.status == "failed" for t in own)
        told = f"{len(own)}" + (f" ({failed} failed)" if failed else "")
        if trial is None or trial.value is None:
            lines.append([name, told, units.NONE, units.NONE])
        else:
            lines.append([name, told, str(trial.number), f"{trial.value:.4g}"])
    show_table(["Strategy", "Trials", "Best", search.metric], lines)
    click.echo("")
    for trial in best.values():
        if trial is not None:
            click.echo(settings_text(trial))
    click.echo(f"\nfolder  {folder}")
    click.echo("Compare them with seeds that were not tuned on: fedsparse compare --seeds ...")
