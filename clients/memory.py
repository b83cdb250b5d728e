"""What a client keeps between messages, in Flower's `Context.state`, sparse-coded.

Optimizer state is kept only where `client.keep_optimizer` asks for it; candidate models
only between the two exchanges of BatchNorm selection.
"""

from flwr.app import ArrayRecord, Context

from clients.job import Job
from fedsparse import messages, wire
from fedsparse.sparsity import Mask, State

OPTIMIZER = "optimizer"


def remember_optimizer(context: Context, slots: dict[str, State], mask: Mask | None) -> None:
    """Store optimizer tensors by slot; entries of pruned weights are not stored."""
    for slot, values in slots.items():
        context.state[f"{OPTIMIZER}.{slot}"] = wire.pack(
            wire.encode(values, mask=_of(mask, values))
        )


def recall_optimizer(context: Context, job: Job, mask: Mask | None) -> dict[str, State]:
    """Return the stored optimizer tensors, zero where the present mask prunes."""
    parameters = dict(job.model.named_parameters())
    slots: dict[str, State] = {}
    for key, record in context.state.array_records.items():
        prefix, _, slot = key.partition(".")
        if prefix != OPTIMIZER:
            continue
        scalar = slot == "step"
        schema = wire.Schema(
            tuple((n, () if scalar else tuple(p.shape)) for n, p in parameters.items())
        )
        slots[slot] = wire.decode(wire.unpack(record), schema).state
        if mask is not None and not scalar:
            mask.apply_(slots[slot])
    return slots


def _of(mask: Mask | None, values: State) -> Mask | None:
    """Return the mask where it covers these tensors (a step counter has no mask)."""
    if mask is None or any(values[name].shape != mask.shapes[name] for name in mask.names):
        return None
    return mask


def remember_candidates(context: Context, candidates: ArrayRecord) -> None:
    """Keep the candidate payloads until their losses are asked for."""
    context.state[messages.CANDIDATES] = candidates


def take_candidates(context: Context) -> ArrayRecord | None:
    """Return the kept candidate payloads and forget them."""
    if messages.CANDIDATES not in context.state.array_records:
        return None
    candidates = context.state.array_records[messages.CANDIDATES]
    del context.state[messages.CANDIDATES]
    return candidates
