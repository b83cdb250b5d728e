"""How well scores tell members from others: the ROC curve, its area, and the area's interval."""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from simulations.evidence.measures import Array

RESAMPLES = 1_000
LEVEL = 0.95
MOST_POINTS = 200
"""Points of a curve that are kept to be drawn."""


@dataclass(frozen=True)
class Roc:
    """An attack's ROC: its area with a 95 % interval, and true positives at few false ones.

    `fpr` and `tpr` are the corners of the curve, thinned.
    """

    auc: float
    low: float
    high: float
    tpr_at_1: float
    tpr_at_5: float
    members: int
    others: int
    fpr: tuple[float, ...]
    tpr: tuple[float, ...]


def roc(members: Array, others: Array, rng: np.random.Generator) -> Roc:
    """Return the ROC of scores, larger ones meaning member; both sets hold at least one.

    The interval is the percentile bootstrap's, over members and others by themselves.
    """
    fpr, tpr = curve(members, others)
    low, high = interval(members, others, rng)
    at_1, at_5 = tpr_at(fpr, tpr, 0.01), tpr_at(fpr, tpr, 0.05)
    shown = _thinned(fpr, tpr)
    return Roc(
        auc(members, others), low, high, at_1, at_5, len(members), len(others),
        tuple(fpr[shown].tolist()), tuple(tpr[shown].tolist()),
    )  # fmt: skip


def curve(members: Array, others: Array) -> tuple[Array, Array]:
    """Return false and true positive rates at every threshold, from (0, 0) to (1, 1)."""
    thresholds = np.unique(np.concatenate([members, others]))[::-1]
    tpr = 1 - np.searchsorted(np.sort(members), thresholds, "left") / len(members)
    fpr = 1 - np.searchsorted(np.sort(others), thresholds, "left") / len(others)
    return np.concatenate([[0.0], fpr]), np.concatenate([[0.0], tpr])


def tpr_at(fpr: Array, tpr: Array, most: float) -> float:
    """Return the largest true positive rate with at most so many false positives."""
    return float(tpr[fpr <= most + 1e-12].max())


def auc(members: Array, others: Array) -> float:
    """Return the chance that a member scores above another, ties counted half."""
    rank = np.sort(others)
    below = np.searchsorted(rank, members, "left") + np.searchsorted(rank, members, "right")
    return float(below.mean() / (2 * len(others)))


def interval(members: Array, others: Array, rng: np.random.Generator) -> tuple[float, float]:
    """Return the bootstrap's 95 % interval of the area."""
    values, place = np.unique(np.concatenate([members, others]), return_inverse=True)
    ours, theirs = place[: len(members)], place[len(members) :]
    found = np.empty(RESAMPLES)
    for i in range(RESAMPLES):
        own = np.bincount(ours[rng.integers(len(ours), size=len(ours))], minlength=len(values))
        other = np.bincount(
            theirs[rng.integers(len(theirs), size=len(theirs))], minlength=len(values)
        )
        found[i] = own @ (np.cumsum(other) - other / 2) / (len(ours) * len(theirs))
    low, high = np.quantile(found, ((1 - LEVEL) / 2, (1 + LEVEL) / 2))
    return float(low), float(high)


def _thinned(fpr: Array, tpr: Array) -> NDArray[np.int64]:
    """Return the curve's corners, at most MOST_POINTS, dense where false positives are few."""
    level, upright = np.diff(tpr) == 0, np.diff(fpr) == 0
    straight = (level[1:] & level[:-1]) | (upright[1:] & upright[:-1])
    corners = np.flatnonzero(np.concatenate([[True], ~straight, [True]]))
    if len(corners) <= MOST_POINTS:
        return corners
    wanted = np.unique(np.geomspace(1, len(corners), MOST_POINTS).astype(int)) - 1
    found: NDArray[np.int64] = corners[wanted]
    return found
