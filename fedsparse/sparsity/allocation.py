"""Layer-wise allocation: how an overall density is shared out over layers.

Every rule gives a density a layer; `layer_counts` turns those into whole weights whose
sum is exactly the overall budget.
"""

import math
from collections.abc import Callable, Mapping

import numpy as np

from fedsparse.errors import MaskError

Shapes = Mapping[str, tuple[int, ...]]


def check_density(value: float) -> float:
    """Return a density in (0, 1]; raises MaskError otherwise."""
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 < value <= 1:
        raise MaskError(f"density {value!r} must be a number above 0 and at most 1")
    return float(value)


def _sizes(shapes: Shapes) -> dict[str, int]:
    sizes = {name: math.prod(shape) for name, shape in shapes.items()}
    if not sizes or min(sizes.values()) < 1:
        raise MaskError("there are no weights to share the density over; name prunable layers")
    return sizes


def uniform(shapes: Shapes, density: float) -> dict[str, float]:
    """The same density in every layer."""
    _sizes(shapes)
    return dict.fromkeys(shapes, check_density(density))


def er(shapes: Shapes, density: float) -> dict[str, float]:
    """Erdos-Renyi (Mocanu et al. 2018): proportional to (in + out) / (in * out) channels."""
    _sizes(shapes)
    raw = {name: sum(shape[:2]) / math.prod(shape[:2]) for name, shape in shapes.items()}
    return rescale(shapes, raw, density)


def erk(shapes: Shapes, density: float) -> dict[str, float]:
    """Erdos-Renyi-Kernel (RigL, Evci et al. 2020): sum of dimensions over their product."""
    _sizes(shapes)
    raw = {name: sum(shape) / math.prod(shape) for name, shape in shapes.items()}
    return rescale(shapes, raw, density)


ALLOCATIONS: Mapping[str, Callable[[Shapes, float], dict[str, float]]] = {
    "uniform": uniform,
    "er": er,
    "erk": erk,
}


def rescale(shapes: Shapes, raw: Mapping[str, float], density: float) -> dict[str, float]:
    """Return eps * raw_l with sum_l min(1, eps * raw_l) N_l = density * sum_l N_l.

    A layer that would exceed 1 becomes dense and is taken out, and eps computed anew,
    until none does.
    """
    check_density(density)
    sizes = _sizes(shapes)
    dense: set[str] = set()
    while True:
        budget = density * sum(sizes.values()) - sum(sizes[name] for name in dense)
        weight = sum(raw[name] * sizes[name] for name in sizes if name not in dense)
        if weight <= 0:
            return dict.fromkeys(sizes, 1.0)
        eps = budget / weight
        over = {name for name in sizes if name not in dense and eps * raw[name] > 1}
        if not over:
            return {name: 1.0 if name in dense else eps * raw[name] for name in sizes}
        dense |= over


def layer_counts(shapes: Shapes, densities: Mapping[str, float]) -> dict[str, int]:
    """Return kept weights by layer: their sum is the rounded total budget.

    By largest remainder, so each is within one of its share. Every layer keeps at least
    one weight: what that takes is taken from the largest, and may exceed a small budget.
    """
    sizes = _sizes(shapes)
    exact = {name: densities[name] * size for name, size in sizes.items()}
    counts = {name: min(sizes[name], math.floor(value + 1e-9)) for name, value in exact.items()}
    missing = round(sum(exact.values())) - sum(counts.values())
    by_remainder = sorted(sizes, key=lambda name: counts[name] - exact[name])
    for name in by_remainder:
        if missing > 0 and counts[name] < sizes[name]:
            counts[name] += 1
            missing -= 1
    empty = [name for name in sizes if counts[name] == 0]
    for name in empty:
        counts[name] = 1
        largest = max(counts, key=lambda n: counts[n])
        if counts[largest] > 1:
            counts[largest] -= 1
    return counts


def global_counts(scores: Mapping[str, np.ndarray], density: float) -> int:
    """Return how many weights a global ranking keeps: at least one."""
    sizes = _sizes({name: score.shape for name, score in scores.items()})
    return max(1, round(check_density(density) * sum(sizes.values())))
