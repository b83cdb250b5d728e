"""The strong attacks on every model of an audit, with retrained models as their references.

The original and the unlearned model are attacked with the retrained models of other seeds; each
retrained model with all the others, for what an attack finds where there is nothing to find.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from fedsparse import seeds
from simulations.evidence import lira, rmia
from simulations.evidence.examine import Examined
from simulations.evidence.measures import Array, true_confidence
from simulations.evidence.roc import Roc, auc, curve, roc, tpr_at
from simulations.evidence.samples import SEED, Samples

LEAST = 10
"""Samples of each kind without which no attack is judged."""


@dataclass(frozen=True)
class Attacked:
    """Curves by attack and model, and the retrained models' figures by measure."""

    curves: dict[str, dict[str, Roc]]
    retrained: dict[str, list[float]]


@dataclass(frozen=True)
class _Told:
    """What one model says: phi and p of members and of others (joined), and p of the population."""

    phi: Array
    p: Array
    population: Array | None


def attack(
    samples: Samples,
    models: Mapping[str, Examined],
    retrained: Examined | None,
    references: Sequence[Examined],
) -> Attacked:
    """Attack the named models, and the retrained ones; nothing where references are lacking.

    Where this seed's retrained model is the only one, it is the reference of the others.
    """
    found = Attacked({}, {})
    if min(len(samples.members), len(samples.unseen)) < LEAST:
        return found
    own = None if retrained is None else _told(samples, retrained)
    others = [_told(samples, each) for each in references]
    pool = others or ([] if own is None else [own])
    if not pool:
        return found
    count = len(samples.members)
    targets = {name: _told(samples, each) for name, each in models.items()}
    targets |= {"retrained": own} if own is not None and others else {}
    for name, target in targets.items():
        for kind, scores in _scores(target, pool).items():
            rng = seeds.stream(SEED, 0, seeds.SERVER, "audit: bootstrap")
            found.curves.setdefault(kind, {})[name] = roc(scores[:count], scores[count:], rng)
    every = [*([] if own is None else [own]), *others]
    for i, target in enumerate(every):
        rest = every[:i] + every[i + 1 :]
        for kind, scores in _scores(target, rest).items() if rest else ():
            for key, value in _figures(kind, scores[:count], scores[count:]).items():
                found.retrained.setdefault(key, []).append(value)
    return found


def figures(attack_name: str, curve_found: Roc) -> dict[str, float]:
    """Return an attack's figures by the names of measures."""
    found = {f"{attack_name}_auc": curve_found.auc}
    if attack_name == "lira":
        found |= {"lira_tpr_1": curve_found.tpr_at_1, "lira_tpr_5": curve_found.tpr_at_5}
    return found


def _figures(kind: str, members: Array, others: Array) -> dict[str, float]:
    """Return the same of scores, without an interval."""
    found = {f"{kind}_auc": auc(members, others)}
    if kind == "lira":
        rates = curve(members, others)
        found |= {"lira_tpr_1": tpr_at(*rates, 0.01), "lira_tpr_5": tpr_at(*rates, 0.05)}
    return found


def _told(samples: Samples, model: Examined) -> _Told:
    compared = "test_forgotten" if samples.kind == "class" else "test"
    both = (
        model.answers["forgotten"].take(samples.members),
        model.answers[compared].take(samples.unseen),
    )
    return _Told(
        np.concatenate([lira.logit(each) for each in both]),
        np.concatenate([true_confidence(each) for each in both]),
        _population(samples, model),
    )


def _population(samples: Samples, model: Examined) -> Array | None:
    """Return p of test samples that are not attacked; None where a class is forgotten.

    A model without a class is surer of all other samples than of that class's: all scores tie.
    """
    if samples.kind == "class":
        return None
    rest = np.setdiff1d(np.arange(len(samples.test)), samples.unseen)
    return true_confidence(model.answers["test"].take(rest)) if len(rest) >= LEAST else None


def _scores(target: _Told, references: Sequence[_Told]) -> dict[str, Array]:
    found = {"lira": lira.scores(target.phi, np.stack([each.phi for each in references]))}
    known = [each.population for each in references if each.population is not None]
    if target.population is not None and known:
        p = np.stack([each.p for each in references])
        found["rmia"] = rmia.scores(target.p, p, target.population, np.stack(known))
    return found
