"""What a client is asked to train with, so that its device can hold it.

A seat may bring a smaller batch, or a smaller part of the global mask: of each layer the
kept weights of largest magnitude.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from fedsparse.messages import Plan
from fedsparse.sparsity import Mask, State, allocation, top_mask
from strategies.task import Task

Kept = Mapping[str, int]
"""Kept weights by layer."""

KeptOf = Callable[[int], Kept | None]
"""Kept weights by layer of a client, where clients have masks of their own."""

Demands = Sequence[tuple[Plan, Kept | None]]
"""What clients are asked for, with the kept weights by layer; None is the dense model."""


@dataclass(frozen=True)
class Seat:
    """A client's place in a round.

    `batch_size` is 0 where it is the configuration's; `share` is the fraction of the
    globally kept weights that it trains.
    """

    batch_size: int = 0
    share: float = 1.0


FULL = Seat()


def kept_for(kept: Kept | KeptOf | None, client: int) -> Kept | None:
    """Return the kept weights by layer that a client trains."""
    return kept(client) if callable(kept) else kept


def erk_counts(task: Task, density: float, rule: str = "erk") -> dict[str, int] | None:
    """Return kept weights by layer as an allocation shares a density out; None if dense.

    For a ranking of all layers together, which is not known beforehand, ERK stands.
    """
    if density >= 1:
        return None
    share = allocation.ALLOCATIONS.get(rule, allocation.erk)
    return allocation.layer_counts(task.shapes, share(task.shapes, density))


def shared_counts(kept: Mapping[str, int], share: float) -> dict[str, int]:
    """Return how many weights of each layer a share keeps: rounded up, so at least one."""
    return {name: min(count, math.ceil(share * count)) for name, count in kept.items()}


def submask(
    state: State, mask: Mask | None, shapes: Mapping[str, tuple[int, ...]], share: float
) -> Mask | None:
    """Return the part of a mask (of the whole model if None) with the largest weights."""
    if share >= 1:
        return mask
    whole = mask or Mask.full(shapes)
    size = {name: np.where(bits, np.abs(state[name]), -1.0) for name, bits in whole.items()}
    return top_mask(size, shared_counts(whole.layer_kept(), share))
