"""Iterative magnitude pruning at a client: what LotteryFL and Sub-FedAvg share.

A client starts from the dense model and prunes the same fraction of what each layer keeps,
again and again, until each has come down to its share of the density that was asked for.
"""

import math
from collections.abc import Mapping
from dataclasses import replace

import numpy as np

from clients.job import Job
from clients.program import Visit
from fedsparse.sparsity import Mask, State, allocation, top_mask
from fedsparse.training.price import Price, price


def floors(visit: Visit) -> dict[str, int]:
    """Return how many weights of each layer are left when the density is reached."""
    shapes, settings = visit.job.shapes, visit.settings
    density = float(settings["density"])
    share = allocation.ALLOCATIONS[str(settings["allocation"])]
    return allocation.layer_counts(shapes, share(shapes, density))


def can_prune(mask: Mask, least: Mapping[str, int]) -> bool:
    """Tell whether some layer keeps more than it will be left with."""
    return any(count > least[name] for name, count in mask.layer_kept().items())


def prune_smallest(state: State, mask: Mask, rate: float, least: Mapping[str, int]) -> Mask:
    """Drop the smallest `rate` of the kept weights of each layer, and no more than it may.

    Rounded up, so that each step prunes of every layer that is not down yet.
    """
    size = {name: np.where(bits, np.abs(state[name]), -1.0) for name, bits in mask.items()}
    return top_mask(
        size,
        {
            name: min(count, max(least[name], count - math.ceil(rate * count - 1e-9)))
            for name, count in mask.layer_kept().items()
        },
    )


def accuracy(visit: Visit, state: State, mask: Mask) -> float:
    """Return a model's accuracy on the client's own training samples.

    Its held-out samples are for the test of the personal model, and decide nothing.
    """
    return visit.job.backend.load(state, mask).evaluate(visit.job.data.train).accuracy


def cost_of(job: Job, trained: Mask, tested: Mask | None) -> Price:
    """Return what training under a mask takes, and a look at the accuracy under another."""
    plan, samples = replace(job.plan, work=1.0), len(job.data.train.y)
    cost = price(job.cost, job.config.client, plan, samples, trained.layer_kept())
    if tested is None:
        return cost
    return replace(cost, flops=cost.flops + samples * job.cost.flops_of(tested.layer_kept()))
