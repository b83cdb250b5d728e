"""The strong membership attack: LiRA, which knows how hard each sample is.

Carlini et al. 2022, "Membership Inference Attacks From First Principles", the offline attack:
reference models that never saw a sample say how confident a model would be of it anyhow. Here these
are retrained models, which saw neither the forgotten samples nor those they are compared with.
"""

import numpy as np
from numpy.typing import NDArray

from simulations.evidence.measures import Answers, Array

PER_SAMPLE = 64
"""Reference models from which on each sample has a variance of its own; below, one for all."""


def logit(answers: Answers) -> Array:
    """Return phi = log(p_y / (1 - p_y)) of the true label (Carlini et al., eq. 3).

    1 - p_y is summed from the other classes, which keeps its digits where p_y is nearly 1.
    """
    rows = np.arange(len(answers))
    others = answers.log_p.copy()
    others[rows, answers.y] = -np.inf
    found: Array = answers.log_p[rows, answers.y] - np.logaddexp.reduce(others, axis=1)
    return found


def scores(target: Array, references: Array) -> Array:
    """Return each sample's score under the target model: larger is more likely a member.

    target: phi (samples,); references: phi (models, samples) of models that never saw them.
    It is the distance from the Gaussian of the references in standard deviations, which ranks
    as the one-sided test 1 - Pr[N(mu_out, sigma_out^2) > phi] does (Carlini et al., eq. 4).
    """
    found: Array = (target - references.mean(0)) / _deviation(references)
    return found


def _deviation(references: Array) -> Array | float:
    """Return the standard deviation of phi over models: by sample, or of all where few."""
    models = len(references)
    if models < 2:
        return 1.0
    variance = references.var(0, ddof=1)
    if models < PER_SAMPLE:
        variance = variance.mean(keepdims=True)
    found: Array = np.sqrt(np.maximum(variance, 1e-12))
    return found


def matched(
    members: NDArray[np.int64], others: NDArray[np.int64], rng: np.random.Generator
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Return positions of members and of others in which labels are alike in proportion.

    An attack must not win by the classes that the two sets hold. Where all labels of one set
    have several times the samples of the other, that many are taken of it for each.
    """
    counts = {
        label: (np.count_nonzero(members == label), np.count_nonzero(others == label))
        for label in np.intersect1d(members, others)
    }
    more = max(1, min((own // other for own, other in counts.values()), default=1))
    fewer = max(1, min((other // own for own, other in counts.values()), default=1))
    chosen: tuple[list[NDArray[np.int64]], list[NDArray[np.int64]]] = ([], [])
    for label, (own, other) in counts.items():
        pairs = min(own // more, other // fewer)
        for found, labels, take in zip(chosen, (members, others), (more, fewer), strict=True):
            held = rng.permutation(np.flatnonzero(labels == label))
            found.append(held[: pairs * take])
    first, second = (np.sort(np.concatenate([np.empty(0, np.int64), *found])) for found in chosen)
    return first, second
