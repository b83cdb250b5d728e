"""Masks made from what clients say, so that no minority of them can make one alone.

Under a rule of `[robust]` clients vote on masks: their gradients count no more than the median
client's, a weight grows only if more clients name it than may be hostile, and of losses, scores
and BatchNorm's statistics the median counts. Without a rule, methods do as their papers say.
"""

from collections.abc import Mapping, Sequence

import numpy as np
from numpy.typing import NDArray

from fedsparse.config import RobustConfig
from fedsparse.sparsity import State
from strategies.robust import hostile

Floats = NDArray[np.float64]


def bounded(robust: RobustConfig) -> bool:
    """Return whether clients vote on masks: under any rule but the mean."""
    return robust.rule != "mean"


def grow_votes(votes: Sequence[State], asked: int, robust: RobustConfig) -> dict[str, Floats]:
    """Return by layer the strength with which clients want pruned weights to grow.

    g~_j = (1 / n) sum_k g_kj min(1, median_i |g_i| / |g_k|), but 0 where no more than f clients
    sent a g_kj. So f hostile clients grow nothing that no honest client asks for.
    """
    f = hostile(robust.hostile, max(asked, len(votes)))
    return {name: _layer_votes([vote[name] for vote in votes], f) for name in votes[0]}


def _layer_votes(votes: Sequence[NDArray[np.float32]], f: int) -> Floats:
    norms = np.array([np.sqrt(np.sum(np.square(vote, dtype=np.float64))) for vote in votes])
    limit = float(np.median(norms))
    total, voters = np.zeros(votes[0].shape), np.zeros(votes[0].shape, np.int64)
    for vote, norm in zip(votes, norms, strict=True):
        share = min(1.0, limit / norm) if norm > 0 else 1.0
        total += vote.astype(np.float64) * (share / len(votes))
        voters += vote != 0
    return np.where(voters > f, total, 0.0)


def least_median(losses: Floats) -> int:
    """Return the candidate whose median loss over clients is least; losses are (clients, c)."""
    return int(np.argmin(np.median(np.where(np.isfinite(losses), losses, np.inf), axis=0)))


def median_scores(scores: Sequence[State]) -> State:
    """Return the median over clients of scores that each client's own sum to 1."""
    shares = []
    for own in scores:
        total = sum(float(np.abs(value).sum(dtype=np.float64)) for value in own.values())
        shares.append({n: value.astype(np.float64) / (total or 1.0) for n, value in own.items()})
    return median_state(shares)


def median_state(states: Sequence[Mapping[str, NDArray[np.floating]]]) -> State:
    """Return the median of some states, entry by entry."""
    return {
        name: np.median(np.stack([state[name] for state in states]), axis=0).astype(np.float32)
        for name in states[0]
    }
