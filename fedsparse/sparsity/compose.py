"""Criterion x allocation x pattern = mask, in one line.

static_mask(model, names, 0.05, criterion="snip", allocation="erk", batches=data, rng=rng)
"""

from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from fedsparse.errors import MaskError, UnknownNameError
from fedsparse.sparsity.allocation import ALLOCATIONS, check_density, global_counts, layer_counts
from fedsparse.sparsity.mask import Mask
from fedsparse.sparsity.patterns import UNSTRUCTURED, Pattern, top

if TYPE_CHECKING:
    from torch import nn

    from fedsparse.sparsity.criteria import Batch

SYNFLOW_STEPS = 100
GLOBAL = "global"


def top_mask(
    scored: Mapping[str, NDArray[Any]],
    counts: Mapping[str, int],
    pattern: Pattern = UNSTRUCTURED,
) -> Mask:
    """Keep the `counts[layer]` highest scores of each layer; ties go to the lower position.

    Under a pattern, what it keeps for that count.
    """
    bits = {}
    for name, score in scored.items():
        if not 0 <= counts[name] <= score.size:
            raise MaskError(f"cannot keep {counts[name]} of the {score.size} weights of '{name}'")
        bits[name] = pattern.keep(score, counts[name])
    return Mask.from_arrays(bits)


def top_mask_global(scored: Mapping[str, NDArray[Any]], density: float) -> Mask:
    """Keep the highest scores of all layers together; a layer may end up empty."""
    count = global_counts(scored, density)
    kept = top(np.concatenate([score.reshape(-1) for score in scored.values()]), count)
    ends = np.cumsum([score.size for score in scored.values()])[:-1]
    parts = np.split(kept, ends)
    return Mask.from_arrays(
        {n: part.reshape(s.shape) for (n, s), part in zip(scored.items(), parts, strict=True)}
    )


def mask_from_scores(
    scored: Mapping[str, NDArray[Any]],
    density: float,
    allocation: str = "erk",
    pattern: Pattern = UNSTRUCTURED,
) -> Mask:
    """Return the mask of the highest scores under an allocation, or ranked globally.

    Raises MaskError for a global ranking under a pattern: it is of single weights.
    """
    if allocation == GLOBAL:
        if pattern != UNSTRUCTURED:
            raise MaskError("a global ranking is of single weights; choose another allocation")
        return top_mask_global(scored, density)
    if allocation not in ALLOCATIONS:
        raise UnknownNameError("allocation", allocation, [*ALLOCATIONS, GLOBAL])
    shapes = {name: score.shape for name, score in scored.items()}
    return top_mask(scored, layer_counts(shapes, ALLOCATIONS[allocation](shapes, density)), pattern)


def static_mask(
    model: "nn.Module",
    names: Sequence[str],
    density: float,
    criterion: str = "magnitude",
    allocation: str = "erk",
    batches: "Iterable[Batch]" = (),
    *,
    rng: np.random.Generator,
    pattern: Pattern = UNSTRUCTURED,
) -> Mask:
    """Return the mask of one criterion under one allocation at an overall density.

    SynFlow prunes in 100 steps with density d^(k/100), as its paper asks (section 6);
    every other criterion in one. The model is left as it was.
    """
    from fedsparse.sparsity.criteria import scores

    check_density(density)
    data = list(batches)
    if criterion != "synflow":
        scored = scores(criterion, model, names, data, rng=rng)
        return mask_from_scores(scored, density, allocation, pattern)
    mask: Mask | None = None
    for step in range(1, SYNFLOW_STEPS + 1):
        scored = scores(criterion, model, names, data, rng=rng, mask=mask)
        mask = mask_from_scores(scored, density ** (step / SYNFLOW_STEPS), allocation, pattern)
    assert mask is not None
    return mask
