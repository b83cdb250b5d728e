"""Prune and grow: move a layer's kept weights without changing their number.

Both functions work on one layer and return its new bits; new weights start at zero,
which is the caller's to ensure.
"""

from typing import Any

import numpy as np
from numpy.typing import NDArray

from fedsparse.errors import MaskError

Bits = NDArray[np.bool_]


def prune_and_grow(
    weights: NDArray[Any], mask: Bits, gradients: NDArray[Any], count: int, *, regrow: bool = False
) -> Bits:
    """Drop the `count` smallest |w|, then grow the `count` largest |g| (RigL, section 3).

    With `regrow`, weights dropped just now may grow again. `count` is capped by the kept
    weights less one and by what is there to grow.
    """
    flat, magnitude = _checked(weights, mask)
    if np.shape(gradients) != np.shape(mask):
        found = np.shape(gradients)
        raise MaskError(f"gradients {found} and mask {np.shape(mask)} differ in shape")
    kept = np.flatnonzero(flat)
    pruned = np.flatnonzero(~flat)
    count = _capped(count, len(kept) - 1, len(pruned) + (count if regrow else 0))
    dropped = _smallest(magnitude, kept, count)
    candidates = np.sort(np.concatenate([pruned, dropped])) if regrow else pruned
    grown = _largest(np.abs(np.asarray(gradients).reshape(-1)[candidates]), candidates, count)
    return _moved(flat, dropped, grown).reshape(mask.shape)


def grow_and_prune(
    weights: NDArray[Any],
    mask: Bits,
    candidates: NDArray[np.int64],
    gradients: NDArray[Any],
    count: int,
) -> Bits:
    """Grow the `count` largest |g| of the candidates, then drop as many smallest |w|.

    FedTiny's order: `candidates` are flat positions of pruned weights, `gradients` the
    aggregated values there; those that are zero or kept already don't count. Dropped are
    the smallest of the weights that were kept before.
    """
    flat, magnitude = _checked(weights, mask)
    strength = np.abs(np.asarray(gradients, np.float64))
    index = np.asarray(candidates, np.int64)
    if index.size and not (index.min() >= 0 and index.max() < flat.size):
        raise MaskError(f"candidate positions must lie in [0, {flat.size})")
    if index.shape != strength.shape or len(np.unique(index)) != index.size:
        raise MaskError("candidates must be distinct positions with one gradient each")
    usable = (strength > 0) & ~flat[index]
    index, strength = index[usable], strength[usable]
    kept = np.flatnonzero(flat)
    count = _capped(count, len(kept) - 1, len(index))
    grown = _largest(strength, index, count)
    return _moved(flat, _smallest(magnitude, kept, count), grown).reshape(mask.shape)


def _checked(weights: NDArray[Any], mask: Bits) -> tuple[Bits, NDArray[Any]]:
    if np.shape(weights) != np.shape(mask):
        raise MaskError(f"weights {np.shape(weights)} and mask {np.shape(mask)} differ in shape")
    return np.asarray(mask).reshape(-1), np.abs(np.asarray(weights).reshape(-1))


def _capped(count: int, *limits: int) -> int:
    if count < 0:
        raise MaskError(f"cannot adjust {count} weights; pass 0 or more")
    return max(0, min(count, *limits))


def _smallest(magnitude: NDArray[Any], among: NDArray[np.int64], count: int) -> NDArray[np.int64]:
    return among[np.argsort(magnitude[among], kind="stable")[:count]]


def _largest(strength: NDArray[Any], among: NDArray[np.int64], count: int) -> NDArray[np.int64]:
    return among[np.lexsort((among, -strength))[:count]]


def _moved(flat: Bits, dropped: NDArray[np.int64], grown: NDArray[np.int64]) -> Bits:
    moved = flat.copy()
    moved[dropped] = False
    moved[grown] = True
    return moved
