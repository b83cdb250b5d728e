"""What one round's training costs a client: arithmetic and memory, by its plan.

A client reports these figures with its reply, and the server foresees them to ask only
clients that can hold the training. Both call this, so that they cannot differ.
"""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Literal

from fedsparse.config import ClientConfig
from fedsparse.messages import Plan
from fedsparse.sparsity.cost import VALUE_BYTES, MemoryCost, ModelCost
from fedsparse.training.results import largest_batch

Optimizer = Literal["sgd", "momentum", "adam"]


@dataclass(frozen=True)
class Price:
    """FLOPs of a round on one client, and the bytes that it holds at its peak.

    `dense_flops` of the FLOPs are computed on whole weights, as gradients of pruned ones are.
    """

    flops: float
    memory: MemoryCost
    dense_flops: float = 0.0


def settings_for(settings: ClientConfig, plan: Plan) -> ClientConfig:
    """Return the settings of local training as a plan changes them."""
    if not plan.batch_size:
        return settings
    return settings.model_copy(update={"batch_size": plan.batch_size})


def growth_samples(settings: ClientConfig, plan: Plan, samples: int) -> int:
    """Return how many samples the gradient of pruned weights is taken on."""
    wanted = plan.samples or settings.batch_size
    return min(wanted, plan.batch_size or wanted, samples)


def price(
    cost: ModelCost,
    settings: ClientConfig,
    plan: Plan,
    samples: int,
    kept: Mapping[str, int] | None = None,
) -> Price:
    """Return what training on `samples` samples costs, with `kept` weights by layer (all if None).

    Growth adds its own passes over one batch, and a buffer of the gradients asked for
    (FedTiny, progressive pruning). What a program holds beside the training counts as parameters.
    """
    settings = settings_for(settings, plan)
    batch = largest_batch(samples, settings.batch_size)
    epochs = settings.local_epochs * plan.work
    flops, dense = 3 * samples * epochs * cost.flops_of(kept), 0.0
    if plan.grow:
        grown = growth_samples(settings, plan, samples)
        dense = cost.dense_gradient_flops(grown, plan.grow)
        flops += cost.growth_flops(grown, plan.grow, kept)
        batch = max(batch, grown)
    memory = cost.training_memory(
        kept=kept,
        optimizer=optimizer_of(settings),
        batch_size=batch,
        buffer_entries=sum(plan.grow.values()),
    )
    memory = replace(memory, parameters=memory.parameters + VALUE_BYTES * plan.held)
    return Price(float(flops), memory, dense)


def optimizer_of(settings: ClientConfig) -> Optimizer:
    """Return which optimizer the settings make, by the state that it keeps."""
    if settings.optimizer == "adam":
        return "adam"
    return "momentum" if settings.momentum else "sgd"
