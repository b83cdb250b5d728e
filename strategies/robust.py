"""Robust aggregation: rules by which a minority of hostile clients cannot choose the next model.

Each works on entries that clients keep under their masks: an entry is made from those that keep
it, and stays as it was where nobody does. Everything is in float64 and deterministic.

median, trimmed-mean: Yin et al. 2018. krum, multi-krum: Blanchard et al. 2017. norm-clip: Sun et
al. 2019. trust: FLTrust, Cao et al. 2021. Buckets: Karimireddy et al. 2022. docs/robustness.md says
which is for what.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from fedsparse.config import RobustConfig
from fedsparse.data.samples import spread
from fedsparse.errors import TooFewRepliesError
from fedsparse.sparsity import State
from strategies.replies import Before, Reply
from strategies.stack import Floats, Stack, flattened
from strategies.task import Task


class Robust:
    """The rule of `[robust]`: turns a round's replies into the next model."""

    def __init__(self, task: Task) -> None:
        self.task = task
        self.settings = task.config.robust
        if self.settings.rule == "trust":
            _ = task.public

    def __call__(self, replies: Sequence[Reply], before: Before) -> State:
        """Return the next values of `before.shared`; raises TooFewRepliesError for too few."""
        asked = max(before.asked, len(replies))
        needed = needed_replies(self.settings, asked)
        if len(replies) < needed:
            raise TooFewRepliesError(
                f"{len(replies)} usable replies; robust.rule = '{self.settings.rule}' with "
                f"robust.hostile = {self.settings.hostile:g} of {asked} needs {needed}"
            )
        stack = Stack.of(replies, before)
        usual = max(1, int(np.median(stack.examples)))
        size = min(self.settings.bucket_size, (len(replies) - 1) // max(1, needed - 1))
        if size > 1:
            order = self.task.rng(before.round_number, "buckets").permutation(len(stack.clients))
            stack = bucketed(stack, order, size, self.settings.weights)
        f = hostile(self.settings.hostile, asked)
        return stack.model(self.entries(stack, f, before, usual), before)

    def entries(self, stack: Stack, f: int, before: Before, usual: int) -> Floats:
        """Return the next value of each entry, with `f` hostile clients at most.

        `usual` is the samples of the median client.
        """
        s = self.settings
        weights = weights_of(stack, s.weights)
        if s.rule == "median":
            return coordinate_median(stack)
        if s.rule == "trimmed-mean":
            return trimmed_mean(stack, f, weights)
        if s.rule == "krum":
            return krum(stack, f)
        if s.rule == "multi-krum":
            return multi_krum(stack, f, weights)
        if s.rule == "norm-clip":
            return norm_clip(stack, weights, s.clip_norm)
        own = flattened(self.server_model(before, usual), stack.schema)
        return trust(stack, own[stack.positions].astype(np.float64) - stack.old)

    def server_model(self, before: Before, samples: int) -> State:
        """Return what the round's model becomes on the server's own data, trained as clients do.

        On so many `samples` as the median client has, drawn anew each round: FLTrust takes as many
        steps everywhere, and by more steps the clients' updates would be made too long.
        """
        client, public = self.task.config.client, self.task.public
        drawn = spread(public.y, samples, self.task.rng(before.round_number, "trust-samples"))
        model = self.task.backend.load(before.shared, before.mask)
        model.train(
            public.take(drawn),
            client,
            rng=self.task.rng(before.round_number, "trust"),
            lr=client.lr * client.lr_decay ** max(0, before.round_number - 1),
        )
        whole = model.whole()
        return {name: whole[name] for name in before.shared}


def hostile(fraction: float, asked: int) -> int:
    """Return f, the most hostile clients among those asked."""
    return math.ceil(fraction * asked - 1e-9)


def needed_replies(settings: RobustConfig, asked: int, bucket_size: int = 1) -> int:
    """Return the least replies for a rule's guarantee: n > 2 f + 2 for Krum, else n > 2 f.

    n counts buckets, of which f clients spoil f at most.
    """
    f = hostile(settings.hostile, asked)
    buckets = 2 * f + (3 if settings.rule in ("krum", "multi-krum") else 1)
    return (buckets - 1) * bucket_size + 1


def bucketed(stack: Stack, order: NDArray[np.int64], size: int, weights: str) -> Stack:
    """Return the means of so many models each, dealt by `order` (Karimireddy et al. 2022, alg. 1).

    Means are nearer to each other than models of unlike data are, so that a rule takes fewer honest
    ones for hostile. An entry is made by those of a bucket that keep it. Buckets are as few as can
    be with `size` models at most, and alike in size within one.
    """
    groups = [np.sort(group) for group in np.array_split(order, -(-len(order) // size))]
    counts = weights_of(stack, weights)
    has = None if stack.has is None else np.stack([stack.has[g].any(axis=0) for g in groups])
    values = np.empty((len(groups), stack.values.shape[1]), np.float32)
    for row, group in enumerate(groups):
        values[row] = weighted_mean(stack.rows(group), counts[group])
    if has is not None:
        values[~has] = 0
    return replace(
        stack,
        clients=tuple(range(len(groups))),
        examples=np.array([stack.examples[group].sum() for group in groups], np.int64),
        values=values,
        has=has,
    )


def weights_of(stack: Stack, how: str) -> Floats:
    """Return how much each client counts: all alike, or by the samples that it tells."""
    return stack.examples.astype(np.float64) if how == "samples" else np.ones(len(stack.clients))


# -- entry by entry ---------------------------------------------------------------------


def coordinate_median(stack: Stack) -> Floats:
    """w_j = the median of w_kj over the clients k that keep j (Yin et al., definition 1)."""
    return _by_entry(stack, _median_of)


def trimmed_mean(stack: Stack, f: int, weights: Floats) -> Floats:
    """w_j = the mean without the f smallest and f largest w_kj (Yin et al., definition 2).

    Where too few clients keep an entry for that, as many are left out as leave one or two.
    """

    def mean_of_rest(values: Floats, has: NDArray[np.bool_]) -> Floats:
        order = np.argsort(np.where(has, values, np.inf), axis=0, kind="stable")
        ranked = np.take_along_axis(np.where(has, values, 0.0), order, axis=0)
        count = has.sum(axis=0)
        cut = np.minimum(f, (count - 1) // 2)
        rank = np.arange(len(values))[:, None]
        counts = np.where((rank >= cut) & (rank < count - cut), weights[order], 0.0)
        return np.asarray((counts * ranked).sum(axis=0) / counts.sum(axis=0))

    return _by_entry(stack, mean_of_rest)


def weighted_mean(stack: Stack, weights: Floats) -> Floats:
    """w_j = sum_k p_k w_kj / sum_k p_k over the clients that keep j; old where none counts."""

    def mean(values: Floats, has: NDArray[np.bool_]) -> Floats:
        counts = np.where(has, weights[:, None], 0.0)
        total = counts.sum(axis=0)
        return np.asarray(
            np.where(
                total > 0, (counts * values).sum(axis=0) / np.where(total > 0, total, 1), np.nan
            )
        )

    found = _by_entry(stack, mean)
    return np.where(np.isnan(found), stack.old, found)


def _median_of(values: Floats, has: NDArray[np.bool_]) -> Floats:
    ranked = np.sort(np.where(has, values, np.inf), axis=0)
    count = has.sum(axis=0)
    low, high = ((count - 1) // 2)[None], (count // 2)[None]
    pair = np.take_along_axis(ranked, low, axis=0), np.take_along_axis(ranked, high, axis=0)
    return np.asarray(((pair[0] + pair[1]) / 2)[0])


def _by_entry(stack: Stack, rule: Callable[[Floats, NDArray[np.bool_]], Floats]) -> Floats:
    """Apply a rule to the columns of the models, piece by piece."""
    pieces = [
        rule(stack.values[:, part].astype(np.float64), stack.shares(part))
        for part in stack.columns()
    ]
    return np.concatenate([np.zeros(0), *pieces])


# -- model by model ---------------------------------------------------------------------


def krum(stack: Stack, f: int) -> Floats:
    """Return the one model that is nearest to its n - f - 2 nearest others (Krum).

    What its client does not keep stays old.
    """
    chosen = int(np.argmin(krum_scores(distances(stack), f)))
    return stack.old + stack.update(chosen)


def multi_krum(stack: Stack, f: int, weights: Floats) -> Floats:
    """Return the mean of the n - f models of least Krum score."""
    scores = krum_scores(distances(stack), f)
    chosen = np.argsort(scores, kind="stable")[: len(scores) - f]
    counts = np.zeros(len(scores))
    counts[chosen] = weights[chosen]
    return weighted_mean(stack, counts)


def krum_scores(squared: Floats, f: int) -> Floats:
    """s(k) = sum of |w_k - w_i|^2 over the n - f - 2 nearest i (Blanchard et al., section 4)."""
    others = np.sort(squared + np.diag(np.full(len(squared), np.inf)), axis=1)
    return np.asarray(others[:, : max(1, len(squared) - f - 2)].sum(axis=1))


def distances(stack: Stack) -> Floats:
    """Return |w_k - w_i|^2 over the entries that both keep, as if that were all entries.

    Times entries / common entries, so that a client is not near to others by keeping little; two
    with nothing in common are infinitely far apart.
    """
    clients, entries = stack.values.shape
    squared = np.zeros((clients, clients))
    for k in range(clients):
        for i in range(k):
            apart = stack.values[k].astype(np.float64) - stack.values[i]
            scale = 1.0
            if stack.has is not None:
                both = stack.has[k] & stack.has[i]
                apart = apart[both]
                scale = entries / len(apart) if len(apart) else np.inf
            found = float(np.sum(np.square(apart)))
            squared[k, i] = squared[i, k] = scale * found if np.isfinite(scale) else np.inf
    return squared


# -- lengths and directions -------------------------------------------------------------


def norm_clip(stack: Stack, weights: Floats, longest: float | None) -> Floats:
    """w + mean of u_k min(1, C / |u_k|), C the median length if not given (Sun et al. 2019).

    BatchNorm's statistics, which no step has moved, are the clients' median.
    """
    norms = stack.norms(stack.trained)
    limit = float(np.median(norms)) if longest is None else longest
    factors = np.minimum(1.0, limit / np.where(norms > 0, norms, np.inf))
    factors[norms == 0] = 1.0
    return _stepped(stack, weights, factors)


def trust(stack: Stack, own: Floats) -> Floats:
    """w + sum_k TS_k u_k |u_0| / |u_k| / sum_k TS_k, TS_k = max(0, cos(u_k, u_0)) (FLTrust).

    `own` is u_0, the server's update, looked at where the client keeps. Where no client has any
    trust the model takes the server's step. BatchNorm's statistics are the clients' median.
    """
    clients = range(len(stack.clients))
    scores, factors = np.zeros(len(clients)), np.zeros(len(clients))
    for k in clients:
        update = stack.update(k)[stack.trained]
        guide = (own if stack.has is None else np.where(stack.has[k], own, 0.0))[stack.trained]
        lengths = np.sqrt(np.sum(update**2)), np.sqrt(np.sum(guide**2))
        if all(lengths):
            scores[k] = max(0.0, float(np.sum(update * guide)) / (lengths[0] * lengths[1]))
            factors[k] = lengths[1] / lengths[0]
    if not scores.any():
        return np.where(stack.trained, stack.old + own, coordinate_median(stack))
    return _stepped(stack, scores, factors)


def _stepped(stack: Stack, weights: Floats, factors: Floats) -> Floats:
    """Return w + the mean of f_k u_k, over those that keep; statistics are the median."""
    total, counts = np.zeros(len(stack.old)), np.zeros(len(stack.old))
    for k in range(len(stack.clients)):
        total += weights[k] * factors[k] * stack.update(k)
        counts += weights[k] if stack.has is None else weights[k] * stack.has[k]
    step = np.where(counts > 0, total / np.where(counts > 0, counts, 1.0), 0.0)
    return np.where(stack.trained, stack.old + step, coordinate_median(stack))
