"""What unlearning is held against: retrained runs where there are any, else a stated proxy."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from fedsparse import seeds
from fedsparse.config import Config
from fedsparse.errors import ConfigError
from fedsparse.runs import RunFolder
from simulations.evidence import membership
from simulations.evidence.examine import Examined, Subject, average_gap, examine, subject_of
from simulations.evidence.measures import unlearning_accuracy
from simulations.evidence.record import PAPER
from simulations.evidence.samples import SEED, Samples
from simulations.unlearning import tries
from simulations.unlearning.target import Target, without
from strategies.task import Task

Measures = Mapping[str, float | None]


@dataclass(frozen=True)
class Reference:
    """The measures that a perfectly unlearned model would have, and where they come from."""

    measures: Measures
    words: str


def root_of(parent: RunFolder) -> RunFolder:
    """Return the run whose training a run's model began with: itself, unless it unlearned.

    Raises RunFolderError where that run is gone.
    """
    seen = parent
    while origin := seen.config.strategy.get("parent"):
        seen = RunFolder.open(Path(str(origin)))
    return seen


def retraining(parent: RunFolder, target: Target, number: int = 0) -> Config:
    """Return the configuration of a run that never had the target nor what was forgotten before.

    Number 0 has the parent's seed; others train with other seeds on the same data.
    """
    root, config = root_of(parent), parent.config
    own = without(root.config, Target(config.forget)) if config.forget.kind else root.config
    data_seed = config.run.seed if config.data.seed is None else config.data.seed
    changes = [f"run.seed={config.run.seed + number}", f"data.seed={data_seed}"] if number else []
    return without(own, target, changes)


def retrained(
    parent: RunFolder,
    target: Target,
    home: Path,
    numbers: Sequence[int],
    *,
    command: str,
    watch: tries.Watch,
) -> list[RunFolder]:
    """Retrain without the target below a folder, one run a number, or finish what is there."""
    found = []
    for number in numbers:
        folder = home / ("retrained" if number == 0 else f"retrained-{number}")
        config = retraining(parent, target, number)
        said = "retraining without it" + (f", seed {config.run.seed}" if number else "")
        tries.begin_or_go_on(config, folder, command=command, progress=watch(said))
        found.append(RunFolder.open(folder))
    return found


def from_retrained(task: Task, looked_at: Samples, folders: Sequence[RunFolder]) -> Reference:
    """Return the mean measures of retrained runs."""
    found = [examine(task, looked_at, subject_of(folder)).measures for folder in folders]
    count = len(found)
    words = "the retrained model" if count == 1 else f"the mean of {count} retrained models"
    return Reference({key: _mean([each.get(key) for each in found]) for key in PAPER}, words)


def proxy(task: Task, looked_at: Samples, original: Subject) -> Reference:
    """Return what stands for a retrained model where none was made.

    Of a forgotten class nothing is known: UA and MIA are 1. Other forgotten samples are like test
    samples with the same labels to a model that never saw them, so UA and MIA are the original's
    on those. RA and TA stay as they were.
    """
    own: Examined = examine(task, looked_at, original)
    kept = {"ra": own.measures["ra"], "ta": own.measures["ta"]}
    if looked_at.kind == "class":
        return Reference(
            {"ua": 1.0, "mia": 1.0, **kept},
            "no retrained model; UA and MIA of 100 %, and RA and TA as the original's",
        )
    answers = own.answers
    alike = answers["test"].take(looked_at.unseen)
    rng = seeds.stream(SEED, 0, seeds.SERVER, "audit: attacker")
    attacked = membership.attack(answers["retained"], answers["test"], alike, rng)
    unseen = {
        "ua": unlearning_accuracy(alike),
        "mia": None if attacked is None else attacked.efficacy,
    }
    return Reference(
        {**unseen, **kept},
        "no retrained model; UA and MIA as the original's on test samples with the same labels, "
        "and RA and TA as the original's",
    )


def gap_to(
    task: Task, looked_at: Samples, reference: Reference, subject: Subject
) -> tuple[Measures, float | None]:
    """Return a model's UA, MIA, RA and TA, and their mean distance from the reference's."""
    found = examine(task, looked_at, subject).measures
    return {key: found[key] for key in PAPER}, average_gap(found, reference.measures)


def _mean(values: Sequence[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return sum(known) / len(known) if known else None


def check_given(parent: RunFolder, target: Target, folder: Path) -> RunFolder:
    """Return a retrained run that was given; raises ConfigError unless it forgets the same."""
    given = RunFolder.open(folder)
    wanted = without(parent.config, target).forget
    if given.config.forget != wanted:
        raise ConfigError(
            f"--reference '{folder}' was not made without the same; it needs [forget] "
            f"{ {k: v for k, v in wanted.model_dump().items() if v} }"
        )
    given.summary()
    return given
