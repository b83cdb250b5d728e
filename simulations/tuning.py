"""Search for the best settings of each strategy, with as many trials for one as for another.

A trial is a point of a sweep with settings that Optuna's TPE sampler draws from what the
trials before it gave. Each draw depends on the seed and on those trials alone, and they lie in
a journal of JSON lines, so that a search that was cut off goes on as if it never was.
"""

import math
import zlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from fedsparse import registry
from fedsparse.config import Config, override, resolve, settings_of
from fedsparse.errors import ConfigError, MissingExtraError, RunFolderError
from fedsparse.runs import RunFolder, tables
from fedsparse.runs.atomic import writing
from simulations.results import number
from simulations.sweep import Watch, place_of, run_points, state_of
from simulations.variants import Point, command_of, is_dense

if TYPE_CHECKING:
    from optuna import Study
    from optuna.distributions import BaseDistribution
    from optuna.trial import FrozenTrial

JOURNAL = "journal.jsonl"

METRICS: dict[str, Literal["maximize", "minimize"]] = {
    "client_accuracy": "maximize",
    "accuracy": "maximize",
    "loss": "minimize",
    "seconds_to_target": "minimize",
    "bytes_to_target": "minimize",
    "joules_to_target": "minimize",
}
"""What can be tuned for. All but the first look at the test set that results are told of."""

_FIXED = {"run.seed": "--seeds", "strategy.name": "--strategies"}
_EXAMPLE = "'client.lr=log:0.005:0.5', 'strategy.alpha=0.1:0.5' or 'client.momentum=choice:0,0.9'"
_DIGITS = 4


@dataclass(frozen=True)
class Space:
    """A key and what it may be: one of `choices`, or between `low` and `high`."""

    key: str
    low: float | int = 0
    high: float | int = 0
    log: bool = False
    choices: tuple[str, ...] = ()

    @classmethod
    def parse(cls, text: str) -> "Space":
        """Read KEY=LOW:HIGH, KEY=log:LOW:HIGH or KEY=choice:A,B; ConfigError when it is none.

        Bounds that are both written as whole numbers stand for whole numbers.
        """
        key, equals, rest = (part.strip() for part in text.partition("="))
        section, dot, name = key.partition(".")
        if not (equals and dot and section and name):
            raise ConfigError(f"--space '{text}' is not SECTION.KEY=RANGE; examples: {_EXAMPLE}")
        if key in _FIXED:
            raise ConfigError(f"--space '{text}': {key} is not tuned; use {_FIXED[key]}")
        if rest.startswith("choice:"):
            choices = tuple(item.strip() for item in rest.removeprefix("choice:").split(","))
            if not all(choices) or len(set(choices)) < 2:
                raise ConfigError(f"--space '{text}': give at least two different choices")
            return cls(key, choices=choices)
        log = rest.startswith("log:")
        low, colon, high = rest.removeprefix("log:").partition(":")
        try:
            bounds = [_bound(low), _bound(high)]
        except ValueError:
            bounds = []
        if not colon or not bounds or not all(map(math.isfinite, bounds)):
            raise ConfigError(f"--space '{text}' is no range; examples: {_EXAMPLE}")
        if bounds[0] >= bounds[1] or (log and bounds[0] <= 0):
            least = "0 < LOW < HIGH" if log else "LOW < HIGH"
            raise ConfigError(f"--space '{text}': the range must have {least}")
        return cls(key, bounds[0], bounds[1], log)

    @property
    def whole(self) -> bool:
        """Whether it takes whole numbers alone."""
        return isinstance(self.low, int) and isinstance(self.high, int)

    def ends(self) -> list[str]:
        """Return what is tried before a search, as assignments: all choices, or both bounds."""
        values = self.choices or (str(self.low), str(self.high))
        return [f"{self.key}={value}" for value in values]

    def assignment(self, value: Any) -> str:
        """Return a drawn value as `KEY=VALUE`; a real number is rounded to what people read."""
        if self.choices or self.whole:
            return f"{self.key}={value}"
        rounded = float(f"{value:.{_DIGITS}g}")
        return f"{self.key}={min(max(rounded, float(self.low)), float(self.high))!r}"

    def applies(self, strategy: str) -> bool:
        """Whether a strategy has this key; its own keys are no one else's."""
        section, _, name = self.key.partition(".")
        if section != "strategy":
            return True
        settings = settings_of(strategy)
        if name == "density" and is_dense(strategy):
            return False
        return name in settings.model_fields or settings.model_config.get("extra") == "allow"

    def distribution(self) -> "BaseDistribution":
        """Return the same as Optuna says it."""
        from optuna import distributions

        if self.choices:
            return distributions.CategoricalDistribution(self.choices)
        if self.whole:
            return distributions.IntDistribution(int(self.low), int(self.high), log=self.log)
        return distributions.FloatDistribution(self.low, self.high, log=self.log)


def _bound(text: str) -> float | int:
    try:
        return int(text)
    except ValueError:
        return float(text)


@dataclass(frozen=True)
class Search:
    """What is searched: a configuration, strategies, spaces, and how trials are judged."""

    tree: Mapping[str, Any]
    source: tuple[str, ...]
    assignments: tuple[str, ...]
    strategies: tuple[str, ...]
    spaces: tuple[Space, ...]
    metric: str
    seeds: tuple[int, ...]
    engine: str
    sampler_seed: int = 0
    batch: int = 1
    """Trials of a strategy that are drawn before any of them is judged."""

    def config(self, strategy: str, changes: Sequence[str], seed: int) -> Config:
        """Return the configuration of a trial; raises ConfigError."""
        chosen = override(override(self.tree, self.assignments), [f"strategy.name={strategy}"])
        last = [*changes, f"run.seed={seed}", f"engine.name={self.engine}"]
        return resolve(override(chosen, last))

    def check(self) -> None:
        """Refuse, before anything runs, what no trial could do; raises ConfigError."""
        for space in self.spaces:
            takers = [name for name in self.strategies if space.applies(name)]
            for name in takers or self.strategies[:1]:
                for end in space.ends():
                    try:
                        self.config(name, [end], self.seeds[0])
                    except ConfigError as error:
                        raise ConfigError(f"--space: '{end}' for {name}: {error}") from None
            if not takers:
                raise ConfigError(f"--space: none of the strategies has a key '{space.key}'")
        keys = [space.key for space in self.spaces]
        if twice := next((key for i, key in enumerate(keys) if key in keys[:i]), None):
            raise ConfigError(f"--space: {twice} stands there twice; give each key once")
        for name in self.strategies:
            if not any(space.applies(name) for space in self.spaces):
                raise ConfigError(f"{name} has none of the keys to tune: {', '.join(keys)}")
            self._check_metric(self.config(name, [], self.seeds[0]))

    def _check_metric(self, config: Config) -> None:
        if self.metric.endswith("_to_target") and config.run.target_accuracy is None:
            raise ConfigError(f"--metric {self.metric} needs a target; --set run.target_accuracy=")
        if self.metric in ("seconds_to_target", "joules_to_target") and not config.fleet.profile:
            raise ConfigError(f"--metric {self.metric} needs simulated devices; set fleet.profile")
        cls = registry.load("strategies", str(config.strategy["name"]))
        if self.metric != "client_accuracy" and not getattr(cls, "global_model", True):
            raise ConfigError(
                f"--metric {self.metric}: '{config.strategy['name']}' has no global model to test; "
                "use --metric client_accuracy"
            )
        tests = config.data.client_test_fraction and config.fleet.evaluate_clients
        if self.metric == "client_accuracy" and not tests:
            raise ConfigError(
                "--metric client_accuracy needs samples that clients test on; raise "
                "data.client_test_fraction and fleet.evaluate_clients, or use --metric accuracy"
            )

    def points(self, strategy: str, number_: int, trial: "FrozenTrial") -> list[Point]:
        """Return the runs of a trial, one a seed; raises ConfigError for what does not fit."""
        changes = self.changes(trial.params)
        found = []
        for seed in self.seeds:
            config = self.config(strategy, changes, seed)
            words = [*self.assignments, f"strategy.name={strategy}", *changes]
            command = command_of(self.tree, self.source, words, config)
            name = f"{strategy}-t{number_}"
            found.append(Point(name, float(config.strategy["density"]), seed, config, command))
        return found

    def changes(self, params: Mapping[str, Any]) -> list[str]:
        """Return drawn settings as `KEY=VALUE`, in the order of the spaces."""
        return [s.assignment(params[s.key]) for s in self.spaces if s.key in params]


@dataclass(frozen=True)
class Trial:
    """How a trial stands: `value` is None while it is open, and where it failed."""

    strategy: str
    number: int
    status: str
    value: float | None
    changes: tuple[str, ...]
    reason: str = ""


def require_optuna() -> None:
    """Raise MissingExtraError without the extra `tune`."""
    try:
        import optuna  # noqa: F401
    except ImportError:
        raise MissingExtraError("tuning", "tune") from None


def studies_of(search: Search, folder: Path) -> dict[str, "Study"]:
    """Open the journal in `folder`, and a study in it for each strategy.

    Of Optuna's storages this one keeps JSON alone: its file backend takes no snapshots, which
    would be pickled. Only for the process that holds the folder.
    """
    import optuna
    from optuna.storages import JournalStorage
    from optuna.storages.journal import JournalFileBackend

    optuna.logging.set_verbosity(optuna.logging.WARNING)
    path = folder / JOURNAL
    path.with_name(f"{JOURNAL}.lock").unlink(missing_ok=True)  # of a process that was killed
    with writing(folder):
        tables.append(path, [])  # cuts off a last line that a kill has torn
    try:
        storage = JournalStorage(JournalFileBackend(str(path)))
        return {
            name: optuna.create_study(
                study_name=name,
                storage=storage,
                direction=METRICS[search.metric],
                load_if_exists=True,
            )
            for name in search.strategies
        }
    except (ValueError, TypeError, KeyError, IndexError):
        raise RunFolderError(f"'{path}' is damaged; start again with another --out") from None


def run_search(
    search: Search,
    studies: Mapping[str, "Study"],
    folder: Path,
    trials: int,
    *,
    jobs: int,
    watch: Watch,
) -> None:
    """Bring each strategy to `trials` trials, the strategies side by side.

    Trials are drawn `search.batch` at a time, and judged in their order, so that neither
    `jobs` nor an interruption changes what is drawn.
    """
    for want in range(search.batch, trials + search.batch, search.batch):
        drawn = {name: _drawn(search, name, studies[name], min(want, trials)) for name in studies}
        points = [
            point
            for name, found in drawn.items()
            for number_, trial in found
            for point in _points_if_valid(search, name, number_, trial)
        ]
        run_points(points, folder, jobs=jobs, watch=watch)
        for name, found in drawn.items():
            for number_, trial in found:
                _judge(search, name, studies[name], number_, trial, folder)


def _drawn(search: Search, name: str, study: "Study", want: int) -> list[tuple[int, "FrozenTrial"]]:
    """Draw trials up to `want`, and return those that are not judged yet, with their numbers.

    A trial that a kill left half drawn is given up and drawn again.
    """
    from optuna.samplers import TPESampler
    from optuna.trial import TrialState

    spaces = [space for space in search.spaces if space.applies(name)]
    for trial in study.get_trials(states=(TrialState.RUNNING,)):
        if not _whole(search, name, trial):
            study.tell(trial.number, state=TrialState.FAIL)
    while (count := len(_whole_trials(search, name, study))) < want:
        seed = zlib.crc32(f"{search.sampler_seed}:{count}".encode())
        study.sampler = TPESampler(seed=seed)
        study.ask({space.key: space.distribution() for space in spaces})
    trials = enumerate(_whole_trials(search, name, study))
    return [(number_, trial) for number_, trial in trials if trial.state == TrialState.RUNNING]


def _whole(search: Search, name: str, trial: "FrozenTrial") -> bool:
    return all(space.key in trial.params for space in search.spaces if space.applies(name))


def _whole_trials(search: Search, name: str, study: "Study") -> list["FrozenTrial"]:
    return [trial for trial in study.get_trials(deepcopy=False) if _whole(search, name, trial)]


def _points_if_valid(search: Search, name: str, number_: int, trial: "FrozenTrial") -> list[Point]:
    """Return the runs of a trial; none where its settings do not go together."""
    try:
        return search.points(name, number_, trial)
    except ConfigError:
        return []


def _judge(
    search: Search, name: str, study: "Study", number_: int, trial: "FrozenTrial", folder: Path
) -> None:
    """Tell the study the mean over the seeds, or that the trial failed."""
    from optuna.trial import TrialState

    values = values_of(search, name, number_, trial, folder)
    if isinstance(values, str):
        study.tell(trial.number, state=TrialState.FAIL)
    else:
        study.tell(trial.number, math.fsum(values) / len(values))


def values_of(
    search: Search, name: str, number_: int, trial: "FrozenTrial", folder: Path
) -> list[float] | str:
    """Return what the runs of a trial measured, one a seed, or why one of them did not."""
    try:
        points = search.points(name, number_, trial)
    except ConfigError as error:
        return str(error)
    values = []
    for point in points:
        state, value = state_of(folder, point), None
        if state.status == "finished":
            value = measured(RunFolder.open(place_of(folder, point)), search.metric)
        if value is None:
            reason = state.reason or f"the run has no {search.metric}"
            return f"seed {point.seed}: {reason}"
        values.append(value)
    return values


def measured(run: RunFolder, metric: str) -> float | None:
    """Return a run's value of a metric; infinity for a target that it did not reach.

    `client_accuracy` is the accuracy of the last model on the samples that clients keep for
    their own test, weighted by how many they are; no result is told of these samples.
    """
    if metric != "client_accuracy":
        value = number(run.summary().get(metric))
        return math.inf if value is None and metric.endswith("_to_target") else value
    rows = [r for r in run.clients() if r.get("kind") == "evaluate" and r.get("status") == "ok"]
    known = [
        (n, a)
        for row in rows
        if (n := number(row.get("examples"))) and (a := number(row.get("accuracy"))) is not None
    ]
    total = math.fsum(n for n, _ in known)
    return math.fsum(n * a for n, a in known) / total if total else None


def trials_of(search: Search, studies: Mapping[str, "Study"], folder: Path) -> list[Trial]:
    """Return all trials so far, strategy by strategy."""
    found = []
    for name, study in studies.items():
        for number_, trial in enumerate(_whole_trials(search, name, study)):
            state, value, reason = trial.state.name, None, ""
            if state == "COMPLETE":
                value = trial.value
            elif state == "FAIL":
                values = values_of(search, name, number_, trial, folder)
                reason = values if isinstance(values, str) else "given up"
            status = {"COMPLETE": "finished", "FAIL": "failed"}.get(state, "open")
            changes = tuple(search.changes(trial.params))
            found.append(Trial(name, number_, status, value, changes, reason))
    return found


def best_of(search: Search, trials: Sequence[Trial]) -> dict[str, Trial | None]:
    """Return each strategy's best trial, the first of equals; None where none got a value."""
    sign = 1 if METRICS[search.metric] == "minimize" else -1
    best: dict[str, Trial | None] = dict.fromkeys(search.strategies)
    for trial in trials:
        value, held = trial.value, best[trial.strategy]
        if value is None or not math.isfinite(value):
            continue
        if held is None or held.value is None or sign * value < sign * held.value:
            best[trial.strategy] = trial
    return best
