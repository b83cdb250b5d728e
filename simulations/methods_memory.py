"""What `devices.json` of a run folder says: the fleet, its limits, and what methods need.

Memory is counted by `fedsparse.sparsity.cost`, for the run's model, batch and optimizer, so
that FedTiny's bounded buffer stands beside the dense gradient of PruneFL and FedDST.
"""

from collections.abc import Mapping
from dataclasses import asdict
from typing import Any

import numpy as np

from fedsparse import models
from fedsparse.messages import Plan
from fedsparse.sparsity.cost import MemoryCost
from fedsparse.training.price import optimizer_of
from simulations.enrolment import Enrolment
from strategies.fedtiny import FedTinySettings
from strategies.seats import Kept, KeptOf
from strategies.task import Task

PAPER = FedTinySettings()
"""FedTiny's defaults, for runs of other strategies."""

USUAL_DENSITY = 0.1
"""Density at which sparse methods are shown beside a dense run."""


def devices_json(
    enrolment: Enrolment, plan: Plan, kept: Kept | KeptOf | None, fits: frozenset[str]
) -> dict[str, Any]:
    """Return the fleet's mixture, who is refused or given less, and memory by method, in bytes."""
    fleet, refused = enrolment.fleet, enrolment.refusals(plan, kept, fits)
    columns = fleet.columns()
    counts = np.bincount(columns.profile, minlength=len(fleet.profiles))
    return {
        "profile": enrolment.task.config.fleet.profile,
        "profiles": {p.name: int(n) for p, n in zip(fleet.profiles, counts, strict=True)},
        "limits": {p.name: p.memory_bytes for p in fleet.profiles},
        "refused": refused.reasons,
        "refused_by_profile": refused.profiles,
        "reduced": refused.reduced,
        "memory_by_method": {
            label: asdict(memory)
            for label, memory in memory_by_method(
                enrolment, None if callable(kept) else kept
            ).items()
        },
    }


def memory_by_method(enrolment: Enrolment, kept: Mapping[str, int] | None) -> dict[str, MemoryCost]:
    """Return what training holds at its peak under each kind of method.

    PruneFL and FedDST take the gradient of every weight in rounds that adjust the mask;
    FedTiny keeps the largest of one block's (METHODS of its paper, memory accounting).
    """
    task = enrolment.task
    if kept is None:
        kept = enrolment.nominal(USUAL_DENSITY) or {}
    density = sum(kept.values()) / sum(enrolment.whole.values())
    settings = task.config.client
    common: dict[str, Any] = {
        "optimizer": optimizer_of(settings),
        "batch_size": settings.batch_size,
    }
    memory = task.cost.training_memory
    weights = sum(enrolment.whole.values())
    return {
        "FedAvg, dense": memory(**common),
        f"PruneFL at {density:.3g}": memory(kept=kept, dense_gradient_entries=weights, **common),
        f"FedTiny at {density:.3g}": memory(
            kept=kept, buffer_entries=largest_buffer(task, kept), **common
        ),
        f"Static mask at {density:.3g}": memory(kept=kept, **common),
    }


def largest_buffer(task: Task, kept: Mapping[str, int]) -> int:
    """Return the most gradients that FedTiny asks for at once: alpha n_l over a block's layers."""
    given = task.config.strategy
    alpha, number = (given.get(key, getattr(PAPER, key)) for key in ("alpha", "blocks"))
    blocks = models.blocks(task.model, task.prunable, number)
    return max(sum(int(alpha * kept[name]) for name in block) for block in blocks)
