"""Which blocks a client uses within its budget: pFedGate's knapsack.

Blocks have a value (how important the gate finds them) and a weight (their entries). The budget
is a fraction of the model; first blocks are always used and count to it. Blocks of linear layers
and all others are solved apart, as in the paper. What is then left of the budget goes to the most
valuable blocks that still fit (rule "exact"), so that less than one block of it stays unused.
"""

from collections.abc import Callable, Mapping

import numpy as np
from numpy.typing import NDArray

from fedsparse.errors import ConfigError
from fedsparse.sparsity.blocks import Blocks, Counts

Values = NDArray[np.int64]

DIGITS = 10
"""Gates in [0, 1] are rounded to so many steps before they compete."""


def least_gate(blocks: Blocks, budget: float) -> float:
    """s_min = min(max(1 / B, 0.1), s): gates are clipped to it from below."""
    return min(max(1 / blocks.count, 0.1), budget)


def choose(
    gate: NDArray[np.float64],
    blocks: Blocks,
    budget: float,
    *,
    solver: str = "greedy",
    capacity: str = "exact",
    available: Counts | None = None,
    sized: bool = False,
) -> Counts:
    """Return how many entries of each block are used within a budget in (0, 1].

    `gate` is the importance of each block in [0, 1]. No more of a block is used than what is
    `available` of it, all if unset. Solvers are "greedy", "exact" (dynamic programming) and
    "fractional"; capacities "exact" and "paper-code", which leaves part of the budget unused.
    With `sized`, a block's value is the mean of its gate and its size relative to the largest.
    Raises ConfigError for a budget below the first blocks.
    """
    limit = blocks.sizes if available is None else available
    if solver == "fractional":
        return _fractional(gate, blocks, budget, limit)
    check_budget(blocks, budget)
    there = limit == blocks.sizes
    weighed = (gate + blocks.sizes / blocks.sizes.max()) / 2 if sized else gate
    values = np.rint(DIGITS * weighed).astype(np.int64)
    used = blocks.first & there
    room = capacities(blocks, budget, capacity)
    solve = SOLVERS[solver]
    for linear, free in ((True, room[0]), (False, room[1])):
        group = np.flatnonzero(~blocks.first & (blocks.in_linear == linear) & there)
        used[group[solve(values[group], gate[group], blocks.sizes[group], free)]] = True
    if capacity == "exact":
        free = int(budget * blocks.entries + 1e-9) - int(blocks.sizes[used].sum())
        rest = np.flatnonzero(~used & there)
        used[rest[greedy(values[rest], gate[rest], blocks.sizes[rest], free)]] = True
    return np.where(used, blocks.sizes, 0)


def check_budget(blocks: Blocks, budget: float) -> None:
    """Raise ConfigError for a budget that the first blocks alone exceed."""
    if budget < blocks.least:
        needed = -(-1 // budget)
        raise ConfigError(
            f"a budget of {budget:g} is less than the first of strategy.blocks = {blocks.count} "
            f"blocks of each tensor, which are always kept and are {blocks.least:.4g} of this "
            f"model; raise it, or set strategy.blocks to {int(needed) * 2:d}"
        )


def capacities(blocks: Blocks, budget: float, rule: str) -> tuple[int, int]:
    """Return the entries that blocks beyond the first may use, of linear layers and of others.

    "exact": s N_g less the first blocks of the group; what a group's first blocks exceed is taken
    from the other. "paper-code": round(sum of sizes (s - s_min)) over the blocks beyond the first.
    """
    sizes = [
        (blocks.sizes[blocks.in_linear == linear], blocks.first[blocks.in_linear == linear])
        for linear in (True, False)
    ]
    total = int(budget * blocks.entries + 1e-9) - int(blocks.sizes[blocks.first].sum())
    if rule == "paper-code":
        slack = budget - least_gate(blocks, budget)
        linear, other = (round(float(size[~first].sum() * slack)) for size, first in sizes)
        linear = min(linear, total)
        return linear, min(other, total - linear)
    size, first = sizes[0]
    linear = int(budget * size.sum() + 1e-9) - int(size[first].sum())
    linear = min(max(linear, 0), total)
    return linear, total - linear


def greedy(
    values: Values, gate: NDArray[np.float64], sizes: NDArray[np.int64], capacity: int
) -> NDArray[np.int64]:
    """Return the items taken by falling value where they fit; equal values by their gate."""
    taken = []
    for item in np.lexsort((np.arange(len(gate)), -gate, -values)):
        if sizes[item] <= capacity:
            capacity -= int(sizes[item])
            taken.append(item)
    return np.array(taken, np.int64)


def exact(
    values: Values, gate: NDArray[np.float64], sizes: NDArray[np.int64], capacity: int
) -> NDArray[np.int64]:
    """Return items of the largest total value within the capacity, by dynamic programming.

    Over values, which are small, not over weights: lightest[v] is the least weight of items worth
    v together.
    """
    worth = int(values.sum())
    never = np.iinfo(np.int64).max // 2
    lightest = np.full(worth + 1, never)
    lightest[0] = 0
    takes = np.zeros((len(values), worth + 1), bool)
    for item, (value, size) in enumerate(zip(values, sizes, strict=True)):
        if value == 0:
            continue
        other = np.full(worth + 1, never)
        other[value:] = lightest[: worth + 1 - value] + size
        takes[item] = other < lightest
        lightest = np.minimum(lightest, other)
    left = int(np.flatnonzero(lightest <= capacity).max()) if capacity >= 0 else 0
    taken = []
    for item in reversed(range(len(values))):
        if takes[item, left]:
            taken.append(item)
            left -= int(values[item])
    return np.array(taken[::-1], np.int64)


Solver = Callable[[Values, NDArray[np.float64], NDArray[np.int64], int], NDArray[np.int64]]

SOLVERS: Mapping[str, Solver] = {"greedy": greedy, "exact": exact}


def _fractional(gate: NDArray[np.float64], blocks: Blocks, budget: float, limit: Counts) -> Counts:
    """Return s_min of each block, and more of blocks by falling value for their size."""
    least = (least_gate(blocks, budget) * blocks.sizes).astype(np.int64)
    counts = np.minimum(np.maximum(least, blocks.first), limit)
    free = int(budget * blocks.entries + 1e-9) - int(counts.sum())
    if free < 0:
        raise ConfigError(
            f"a budget of {budget:g} is less than one entry of each tensor; raise it, or choose a "
            "larger model"
        )
    for item in np.lexsort((np.arange(len(gate)), -gate / blocks.sizes)):
        if free <= 0:
            break
        more = min(free, int(limit[item] - counts[item]))
        counts[item] += more
        free -= more
    return counts
