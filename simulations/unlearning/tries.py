"""Approximate unlearning: the runs that are tried, each a method with a strength, and the best.

A try is a run of its own whose strategy is the method and whose start is the parent's model. The
best is the one with the smallest gap to a reference; how strong a method must be depends on model
and data, so no strength is taken for granted.
"""

import math
import shutil
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fedsparse import registry
from fedsparse.config import Config, resolve
from fedsparse.errors import (
    ConfigError,
    FedSparseError,
    RunFolderError,
    TooFewRepliesError,
    TrainingError,
)
from fedsparse.runs import RunFolder
from fedsparse.runs.progress import Progress
from simulations.evidence import examine
from simulations.evidence.examine import Subject
from simulations.experiment import resume_experiment, run_experiment
from simulations.unlearning.target import Target, tree_of, without
from strategies.task import Task
from strategies.unlearning import choice
from strategies.unlearning.base import Unlearning

AUTO = "auto"
MORE = 1
"""Tries after those of the grid, near the best."""
Watch = Callable[[str], Progress]
"""Makes the watcher of a run, given what is said of it."""


@dataclass(frozen=True)
class Try:
    """A method with a strength (None where it has none, or where that was given), ready to run."""

    method: str
    knob: str
    value: float | None
    config: Config

    @property
    def name(self) -> str:
        """A name for its folder."""
        return self.method if self.value is None else f"{self.method}-{self.knob}-{self.value:g}"


@dataclass(frozen=True)
class Tried:
    """A try that was run: its folder, its measures and their gap to the reference, or an error."""

    which: Try
    folder: Path
    measures: Mapping[str, float | None]
    gap: float | None
    error: str | None = None

    def plain(self) -> dict[str, Any]:
        """Return the row of a record."""
        row = {"method": self.which.method, "value": self.which.value, "gap": self.gap}
        return {**row, "measures": dict(self.measures), "error": self.error}


def tries(
    parent: RunFolder,
    target: Target,
    method: str,
    *,
    changes: Sequence[str] = (),
    rounds: int | None = None,
    budget: float = 1.0,
    note: Callable[[str], None],
) -> list[Try]:
    """Return what is to be tried: one method's strengths, or the few methods of `auto`.

    Those of a method share `budget` times the parent's rounds, of which each has what it needs at
    least, unless `rounds` says how many each takes. What the parent does not allow is left out with
    a note; raises ConfigError where nothing is left.
    """
    names = list(choice.tried(target.kind)) if method == AUTO else [method]
    given = {change.partition("=")[0].strip() for change in changes}
    if parent.summary()["accuracy"] is None:
        raise ConfigError(
            f"clients of '{parent.config.strategy['name']}' have models of their own, and there is "
            "no global one to change; choose --method exact"
        )
    density = float(parent.summary()["density"])
    wanted = [(name, value) for name in names for value in _strengths(name, given, density)]
    own_tries = Counter(name for name, _ in wanted)
    allowed = math.floor(budget * parent.config.run.rounds)
    found: list[Try] = []
    refused: list[str] = []
    for name, value in wanted:
        cls = registry.load("methods", name)
        usual = cls.usual_rounds(parent.config.run.rounds, value)
        alone = own_tries[name] == 1
        each = usual if alone else min(usual, allowed // (own_tries[name] + MORE))
        own = rounds or max(cls.least_rounds, each)
        try:
            config = _config(parent, target, name, cls.knob, value, own, changes)
            registry.load("strategies", name)(Task.of(config))  # says whether it can be
        except ConfigError as error:
            refused.append(str(error))
            continue
        found.append(Try(name, cls.knob, value, config))
    if not found:
        raise ConfigError(refused[-1])
    for text in refused:
        note(f"left out: {text}")
    return found


def between(tried: Sequence[Tried]) -> Try | None:
    """Return one more try, between the best strength and the better of its neighbours.

    Strengths are ratios: the middle is the geometric one. A best strength at the end of the grid
    has the next one outside. None where there are no strengths to be between.
    """
    chosen = best(tried).which
    if chosen.value is None or not isinstance(chosen.config.strategy[chosen.knob], float):
        return None
    gaps = {
        each.which.value: each.gap
        for each in tried
        if each.which.method == chosen.method and each.gap is not None and each.which.value
    }
    values = sorted(gaps)
    place = values.index(chosen.value)
    beside = [value for value in values[max(0, place - 1) : place + 2] if value != chosen.value]
    if not beside:
        return None
    if place in (0, len(values) - 1):
        value = chosen.value**2 / beside[0]
    else:
        value = math.sqrt(chosen.value * min(beside, key=lambda each: gaps[each] or 0.0))
    value = float(f"{value:.3g}")
    tree = tree_of(chosen.config)
    tree["strategy"] = {**tree["strategy"], chosen.knob: value}
    try:
        config = resolve(tree)
        registry.load("strategies", chosen.method)(Task.of(config))
    except ConfigError:
        return None
    return Try(chosen.method, chosen.knob, value, config)


def _strengths(method: str, given: set[str], density: float) -> Sequence[float | None]:
    cls: type[Unlearning] = registry.load("methods", method)
    if not cls.knob or f"strategy.{cls.knob}" in given:
        return (None,)
    return cls.strengths(density)


def _config(
    parent: RunFolder,
    target: Target,
    method: str,
    knob: str,
    value: float | None,
    rounds: int,
    changes: Sequence[str],
) -> Config:
    """Return the configuration of a try: the parent's, but for strategy, rounds and target."""
    config = parent.config
    mark = parent.digest("model.safetensors")
    if mark is None:
        raise ConfigError(f"'{parent.path}' has no global model to change; choose --method exact")
    strategy = {
        "name": method,
        "parent": str(parent.path.absolute()),
        "parent_model": mark,
        "values": config.strategy["values"],
    }
    if value is not None:
        strategy[knob] = value
    tree = tree_of(config) | {"strategy": strategy}
    tree["run"] = {k: v for k, v in tree["run"].items() if k != "target_accuracy"}
    tree["run"]["rounds"] = rounds
    base = Config.model_validate(tree)
    return without(base, target, changes)


def run(which: Try, folder: Path, *, command: str, progress: Progress) -> RunFolder:
    """Run a try into a folder, or go on with one that was begun, and return the folder."""
    begin_or_go_on(which.config, folder, command=command, progress=progress)
    return RunFolder.open(folder)


def begin_or_go_on(config: Config, folder: Path, *, command: str, progress: Progress) -> None:
    """Run a configuration into a folder, or finish the run of it that is there.

    Raises ConfigError where the folder holds a run of another configuration.
    """
    if not (folder / "run.json").exists():
        run_experiment(config, folder, command=command, progress=progress)
        return
    there = RunFolder.open(folder)
    if not same(there.config, config):
        raise ConfigError(
            f"'{folder}' holds a run with other settings; delete it, or choose another --out"
        )
    if not there.finished:
        resume_experiment(folder, progress=progress)


def same(one: Config, other: Config) -> bool:
    """Tell whether two runs do the same work; what was left to be chosen may differ."""
    loose: Any = {"engine": True, "client": {"backend", "sparse_linear_below", "sparse_conv_below"}}
    return one.model_dump(exclude=loose) == other.model_dump(exclude=loose)


def best(tried: Sequence[Tried]) -> Tried:
    """Return the try with the smallest gap, the weakest of equals.

    Raises ConfigError where none came to an end.
    """
    ended = [each for each in tried if each.gap is not None]
    if not ended:
        reasons = [each.error for each in tried if each.error]
        raise ConfigError(f"no try came to an end; the last: {reasons[-1] if reasons else 'none'}")
    return min(ended, key=lambda each: each.gap or 0.0)


def run_all(
    which: Sequence[Try],
    home: Path,
    gap_of: Callable[[Subject], tuple[Mapping[str, float | None], float | None]],
    *,
    command: str,
    watch: Watch,
) -> list[Tried]:
    """Run every try below a folder and measure it, then one more near the best.

    One that diverges is told, and no more. Raises ConfigError where none came to an end.
    """

    def tried(each: Try, number: int) -> Tried:
        folder = home / each.name
        progress = watch(f"try {number} of {len(which) + MORE}: {each.name}")
        try:
            made = run(each, folder, command=command, progress=progress)
        except (TrainingError, TooFewRepliesError) as error:
            return Tried(each, folder, {}, None, str(error))
        return Tried(each, folder, *gap_of(examine.subject_of(made)))

    found = [tried(each, number) for number, each in enumerate(which, 1)]
    more = between(found)
    return found if more is None else [*found, tried(more, len(found) + 1)]


def copied(source: Path, out: Path) -> None:
    """Copy a finished run to its own place, whole or not at all, unless it is there already.

    Raises RunFolderError where the place holds another.
    """
    made = RunFolder.open(source)
    if (out / "run.json").exists():
        if RunFolder.open(out).digest("model.safetensors") != made.digest("model.safetensors"):
            raise RunFolderError(f"'{out}' holds another run; choose another --out")
        return
    subject = examine.subject_of(made)
    temporary = out.with_name(f".{out.name}.copy")
    shutil.rmtree(temporary, ignore_errors=True)
    try:
        shutil.copytree(source, temporary)
        copy = RunFolder.open(temporary)
        copy.finish(subject.state, subject.mask, {**made.summary(), "run": str(out)})
        if out.exists():
            out.rmdir()  # it is empty
        temporary.rename(out)
    except OSError as error:
        shutil.rmtree(temporary, ignore_errors=True)
        raise FedSparseError(f"'{out}' cannot be written: {error.strerror or error}") from error
