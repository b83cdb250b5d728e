"""The audit of an unlearned model: examined beside the original and retrained ones.

Everything is read from run folders, which are not changed. Models are tested with their running
statistics, all on the same samples.
"""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from fedsparse.config import Config
from fedsparse.errors import RunFolderError
from fedsparse.runs import RunFolder
from simulations.evidence import attacks
from simulations.evidence.distance import Distance, distance
from simulations.evidence.examine import (
    MEASURES,
    SETS,
    Examined,
    Subject,
    average_gap,
    examine,
    relearn_steps,
    subject_of,
)
from simulations.evidence.measures import Confidence, confidence
from simulations.evidence.record import Evidence, Measured
from simulations.evidence.samples import MOST, Samples, samples
from simulations.evidence.spread import spread
from strategies.task import Task


def audit(
    parent: RunFolder,
    child: RunFolder,
    retrained: RunFolder | None = None,
    references: Sequence[RunFolder] = (),
) -> Evidence:
    """Examine an unlearned run beside its parent and runs that never had the target.

    `retrained` has the parent's seed, `references` have others; all have the child's `[forget]`
    and the parent's data. Raises RunFolderError for runs that do not fit or are not finished, and
    DataError where there is nothing to audit.
    """
    for other in (child, *([retrained] if retrained else ()), *references):
        _check_alike(parent, child, other)
    task, looked_at = setting(parent, child.config)
    models = {"original": subject_of(parent), "unlearned": subject_of(child)}
    again = None if retrained is None else subject_of(retrained)
    found = evidence(task, looked_at, models, again, [subject_of(each) for each in references])
    if retrained is None or _same_work(child.config, retrained.config):
        return found
    return replace(found, identical_to_retrained=None)


def setting(parent: RunFolder, child: Config, most: int = MOST) -> tuple[Task, Samples]:
    """Return the model to load states into, and the samples to look at, `most` of a set."""
    trained = {
        row["client"]
        for row in parent.clients()
        if row["kind"] == "train" and row["status"] == "ok"
    }
    return Task.of(parent.config), samples(parent.config, child, most, trained)


def evidence(
    task: Task,
    looked_at: Samples,
    models: Mapping[str, Subject],
    retrained: Subject | None,
    references: Sequence[Subject],
) -> Evidence:
    """Return the evidence on models in memory: `original` and `unlearned`, and retrained ones."""
    own = {name: examine(task, looked_at, each) for name, each in models.items()}
    again = None if retrained is None else examine(task, looked_at, retrained)
    others = [examine(task, looked_at, each) for each in references]
    every = [*([] if again is None else [again]), *others]
    named = {**own, **({} if again is None else {"retrained": again})}
    alone = again is not None and not others and _identical(own["unlearned"], again)
    attacked = attacks.attack(looked_at, own, None if alone else again, others)
    found = {name: dict(each.measures) for name, each in named.items()}
    for kind, curves in attacked.curves.items():
        for name, curve in curves.items():
            found[name] |= attacks.figures(kind, curve)
    over: dict[str, Sequence[float | None]] = {
        key: [each.measures[key] for each in every] for key in own["original"].measures
    }
    steps, goal = relearn_steps(task, looked_at, models["original"])
    found["original"]["relearn"] = steps
    for name in named.keys() - {"original"}:
        found[name]["relearn"] = relearn_steps(task, looked_at, named[name].subject, goal)[0]
    own_steps = [] if again is None else [found["retrained"]["relearn"]]
    over["relearn"] = own_steps + [
        relearn_steps(task, looked_at, each.subject, goal)[0] for each in others
    ]
    measured = _measured(found, {**over, **attacked.retrained})
    base = {name: _base(each) for name, each in measured.items()}
    gaps = {name: average_gap(found[name], base) for name in own}
    return Evidence(
        kind=looked_at.kind,
        samples=looked_at.sizes(),
        measures=measured,
        gaps={name: gap for name, gap in gaps.items() if gap is not None},
        attacks=attacked.curves,
        confidence={name: _confidence(each) for name, each in named.items()},
        distances=_distances(task, own, again, others),
        references=len(others),
        identical_to_retrained=None if again is None else _identical(own["unlearned"], again),
        identical_to_original=_identical(own["unlearned"], own["original"]),
    )


def _measured(
    found: Mapping[str, Mapping[str, float | None]], over: Mapping[str, Sequence[float | None]]
) -> dict[str, Measured]:
    """Return every measure that was taken, by name in the order of MEASURES."""
    measured = {}
    for key in MEASURES:
        values = {n: found.get(n, {}).get(key) for n in ("original", "unlearned", "retrained")}
        each = Measured(**values, spread=spread(over.get(key, ())), gap=None)
        base, ours = _base(each), each.unlearned
        gap = None if base is None or ours is None else abs(ours - base)
        if any(value is not None for value in values.values()):
            measured[key] = Measured(**values, spread=each.spread, gap=gap)
    return measured


def _base(measured: Measured) -> float | None:
    """Return what the unlearned model is held against."""
    if measured.retrained is not None or measured.spread is None:
        return measured.retrained
    return measured.spread.mean


def _confidence(model: Examined) -> dict[str, Confidence]:
    found = {name: confidence(model.answers[name]) for name in SETS}
    return {name: each for name, each in found.items() if each is not None}


def _distances(
    task: Task, own: Mapping[str, Examined], again: Examined | None, others: Sequence[Examined]
) -> dict[str, Distance]:
    """Return distances to the retrained model, of others of its kind the mean."""
    if again is None:
        return {}
    names = [name for name, _ in task.model.named_parameters()]

    def apart(model: Examined) -> Distance:
        return distance(
            (model.subject.whole, again.subject.whole),
            (model.subject.mask, again.subject.mask),
            (model.answers["test"], again.answers["test"]),
            names,
        )

    found = {name: apart(model) for name, model in own.items()}
    if others:
        all_apart = [vars(apart(model)) for model in others]
        found["reference"] = Distance(
            **{
                key: None
                if any(each[key] is None for each in all_apart)
                else float(np.mean([each[key] for each in all_apart]))
                for key in all_apart[0]
            }
        )
    return found


def _same_work(child: Config, retrained: Config) -> bool:
    """Tell whether two runs do the same work, so that their bits are to be the same."""
    ours, theirs = (each.model_dump(exclude={"engine"}) for each in (child, retrained))
    return ours == theirs


def _identical(model: Examined, other: Examined) -> bool:
    ours, theirs = model.subject, other.subject
    return (
        ours.mask == theirs.mask
        and ours.state.keys() == theirs.state.keys()
        and all(
            value.tobytes() == theirs.state[name].tobytes() for name, value in ours.state.items()
        )
    )


def _check_alike(parent: RunFolder, child: RunFolder, other: RunFolder) -> None:
    """Raise RunFolderError unless a run has the parent's data and model, and the child's target."""
    if not child.config.forget.kind:
        raise RunFolderError(f"run '{child.path}' forgets nothing: its [forget] is empty")
    expected = _world(parent.config) | {"forget": child.config.forget}
    found = _world(other.config) | {"forget": other.config.forget}
    for name, value in expected.items():
        if found[name] != value:
            raise RunFolderError(
                f"run '{other.path}' has another [{name}] than '{_owner(name, parent, child)}'; "
                "compare runs that differ in run.seed and [strategy] alone, with data.seed set"
            )


def _owner(name: str, parent: RunFolder, child: RunFolder) -> Path:
    return child.path if name == "forget" else parent.path


def _world(config: Config) -> dict[str, Any]:
    """Return what all runs of an audit share."""
    seed = config.run.seed if config.data.seed is None else config.data.seed
    return {
        "data": config.data.model_copy(update={"seed": seed}),
        "fleet": (config.fleet.clients, config.fleet.novel_clients),
        "model": config.model,
        "attack": config.attack,
    }
