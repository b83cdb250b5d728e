"""One model's examination: what it says of every set, and the measures that need no other model."""

from collections.abc import Mapping
from dataclasses import dataclass

import safetensors
import safetensors.numpy

from fedsparse import models, seeds
from fedsparse.data import Dataset
from fedsparse.errors import RunFolderError
from fedsparse.runs import RunFolder
from fedsparse.sparsity import Mask, State
from simulations.evidence import membership, relearn
from simulations.evidence.measures import Answers, accuracy, outputs, unlearning_accuracy
from simulations.evidence.record import PAPER
from simulations.evidence.samples import SEED, Samples
from strategies.task import Task, masked

SETS = ("forgotten", "retained", "test", "test_forgotten", "triggered")

MEASURES: Mapping[str, tuple[str, str]] = {
    "ua": (
        "Unlearning accuracy (UA)",
        "Share of the forgotten training samples that the model now gets wrong. Neither high nor "
        "low is good by itself: it should be what a model retrained without them has.",
    ),
    "mia": (
        "Membership efficacy (MIA)",
        "Share of the forgotten samples that the paper's attacker, a support vector machine on the "
        "confidence of the true label, takes for never seen.",
    ),
    "mia_success": (
        "MIA's attacker, right",
        "Share of retained and test samples, as many of each, that this attacker tells apart. Near "
        "50 % it is a coin, and what it says of the forgotten samples means nothing.",
    ),
    "ra": (
        "Remaining accuracy (RA)",
        "Accuracy on the training samples that stay: what they taught should still be there.",
    ),
    "ta": (
        "Test accuracy (TA)",
        "Accuracy on the test set, without the forgotten classes: how useful the model still is.",
    ),
    "ua_test": (
        "UA on test samples",
        "Share of test samples of the forgotten classes that the model gets wrong.",
    ),
    "backdoor": (
        "Backdoor success",
        "Share of test samples of other classes that the planted trigger turns into its class.",
    ),
    "lira_auc": (
        "LiRA, area under ROC",
        "Chance that the strong attack ranks a forgotten sample above a never seen one of the same "
        "class. 50 % is a coin; below it the forgotten ones stand out as too little known.",
    ),
    "lira_tpr_1": (
        "LiRA, found at 1 %",
        "Share of the forgotten samples that LiRA finds while it accuses at most 1 % of the never "
        "seen ones. A coin finds 1 %.",
    ),
    "lira_tpr_5": (
        "LiRA, found at 5 %",
        "The same with at most 5 % of the never seen ones accused. A coin finds 5 %.",
    ),
    "rmia_auc": (
        "RMIA, area under ROC",
        "The same chance for a second strong attack, which compares with a population of others.",
    ),
    "relearn": (
        "Relearn time",
        "Mini-batch steps of training on the forgotten samples until the model knows them as well "
        f"as the original did, at most {relearn.MOST_STEPS}. Few steps mean that it was still "
        "in there.",
    ),
}
"""Name and plain explanation of each measure, in the order in which they are shown."""


@dataclass(frozen=True)
class Subject:
    """A model to examine."""

    state: State
    mask: Mask | None

    @property
    def whole(self) -> State:
        """The state, zero where the mask prunes."""
        return masked(self.state, self.mask)


@dataclass(frozen=True)
class Examined:
    """A model with what it says of each set, and its own measures."""

    subject: Subject
    answers: Mapping[str, Answers]
    measures: Mapping[str, float | None]


def subject_of(folder: RunFolder) -> Subject:
    """Return a finished run's model; raises RunFolderError where it has none or a damaged one."""
    folder.summary()
    lost = [name for name in folder.lost() if name.endswith(".safetensors")]
    if lost:
        raise RunFolderError(
            f"'{folder.path / lost[0]}' is missing or damaged; "
            f"`fedsparse resume {folder.path}` makes it again"
        )
    path = folder.path / "mask.safetensors"
    try:
        state = safetensors.numpy.load_file(folder.path / "model.safetensors")
    except (OSError, safetensors.SafetensorError):
        raise RunFolderError(
            f"run '{folder.path}' has no global model to examine; its clients have models of their "
            "own"
        ) from None
    return Subject(state, Mask.load(path) if path.exists() else None)


def examine(task: Task, samples: Samples, subject: Subject) -> Examined:
    """Return what a model says of all sets, with UA, MIA, RA, TA and what else it tells alone."""
    models.load_state(task.model, subject.whole)
    answers = {name: outputs(task.model, _set(samples, name)) for name in SETS}
    rng = seeds.stream(SEED, 0, seeds.SERVER, "audit: attacker")
    attacked = membership.attack(answers["retained"], answers["test"], answers["forgotten"], rng)
    measures = {
        "ua": unlearning_accuracy(answers["forgotten"]),
        "mia": None if attacked is None else attacked.efficacy,
        "mia_success": None if attacked is None else attacked.success,
        "ra": accuracy(answers["retained"]),
        "ta": accuracy(answers["test"]),
        "ua_test": unlearning_accuracy(answers["test_forgotten"]),
        "backdoor": accuracy(answers["triggered"]),
    }
    return Examined(subject, answers, measures)


def _set(samples: Samples, name: str) -> Dataset:
    found: Dataset = getattr(samples, name)
    return found


def average_gap(
    ours: Mapping[str, float | None], theirs: Mapping[str, float | None]
) -> float | None:
    """Return the mean of |ours - theirs| over UA, MIA, RA and TA (Jia et al. 2023, table 2).

    MIA is left out where its attacker on our model guesses: its answers are then chance.
    """
    success = ours.get("mia_success")
    guesses = success is not None and success < membership.TELLING
    names = [name for name in PAPER if not (guesses and name == "mia")]
    pairs = [(ours.get(name), theirs.get(name)) for name in names]
    apart = [abs(a - b) for a, b in pairs if a is not None and b is not None]
    return sum(apart) / len(apart) if apart else None


def relearn_steps(
    task: Task, samples: Samples, subject: Subject, goal: float | None = None
) -> tuple[int | None, float]:
    """Return the steps to relearn the forgotten samples, and the accuracy on them before.

    Without a `goal` the model is the original, whose accuracy is the goal of the others.
    """
    rng = seeds.stream(SEED, 0, seeds.SERVER, "audit: relearning")
    train, test = relearn.shown(samples.forgotten, rng)
    model = task.backend.load(subject.state, subject.mask)
    before = model.evaluate(test).accuracy
    wanted = before if goal is None else goal
    return relearn.steps(model, train, test, task.config.client, wanted, rng), before
