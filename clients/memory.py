"""What a client keeps between messages, in Flower's `Context.state`, sparse-coded.

The mask of the last model stays, so that the server need not send it again. Optimizer state
is kept only where `client.keep_optimizer` asks for it; candidate models only between the two
exchanges of BatchNorm selection. What a program keeps of its personal model lies under `own`.
"""

from collections.abc import Mapping
from functools import lru_cache

import numpy as np
from flwr.app import Array, ArrayRecord, Context

from clients.job import Job
from fedsparse import messages, wire
from fedsparse.sparsity import Mask, State

OPTIMIZER = "optimizer"
OWN = "own"
NAMES = "names"
MASK = "mask"
ANSWER = "ldp"
"""What a client has told of its samples under local privacy: it is never taken back, or it could be
asked again, under other noise."""


def remember_optimizer(context: Context, slots: dict[str, State], mask: Mask | None) -> None:
    """Store optimizer tensors by slot; entries of pruned weights are not stored."""
    for slot, values in slots.items():
        context.state[f"{OPTIMIZER}.{slot}"] = wire.pack(
            wire.encode(values, mask=_of(mask, values))
        )


def recall_optimizer(context: Context, job: Job, mask: Mask | None) -> dict[str, State]:
    """Return the stored optimizer tensors, zero where the present mask prunes."""
    slots: dict[str, State] = {}
    for key, record in context.state.array_records.items():
        prefix, _, slot = key.partition(".")
        if prefix != OPTIMIZER:
            continue
        scalar = slot == "step"
        schema = wire.Schema(
            tuple((n, () if scalar else shape) for n, shape in job.built.parameters.items())
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


def remember_mask(context: Context, mask: Mask | None) -> None:
    """Keep the mask of a received model; forget it with a dense one."""
    if mask is not None:
        context.state[MASK] = wire.pack(_stored(mask))
    elif MASK in context.state.array_records:
        del context.state[MASK]


def recall_mask(context: Context, shapes: Mapping[str, tuple[int, ...]]) -> Mask | None:
    """Return the kept mask, of tensors with these shapes, or None."""
    record = context.state.array_records.get(MASK)
    return None if record is None else _restored(wire.unpack(record), tuple(shapes.items()))


@lru_cache(maxsize=4)
def _stored(mask: Mask) -> bytes:
    """Encode a mask once a worker, however many of its clients keep it."""
    return wire.encode_mask(mask)


@lru_cache(maxsize=4)
def _restored(content: bytes, shapes: tuple[tuple[str, tuple[int, ...]], ...]) -> Mask:
    return wire.decode_mask(content, dict(shapes))


def remember_state(context: Context, key: str, state: State, mask: Mask | None) -> None:
    """Keep some of a model's tensors under a key; entries that the mask prunes are not stored."""
    named = np.frombuffer("\n".join(state).encode(), np.uint8)
    context.state[f"{OWN}.{key}"] = ArrayRecord(
        {
            NAMES: Array(named),  # one object for all clients, as the state's file holds it
            **wire.pack(wire.encode(state, mask=mask)),
        }
    )


def recall_state(
    context: Context, key: str, shapes: Mapping[str, tuple[int, ...]]
) -> wire.Decoded | None:
    """Return what was kept under a key of a model with these shapes, or None."""
    record = dict(context.state.array_records.get(f"{OWN}.{key}") or {})
    if not record:
        return None
    names = record.pop(NAMES).numpy().tobytes().decode().splitlines()
    schema = wire.Schema(tuple((name, shapes[name]) for name in names))
    return wire.decode(wire.unpack(ArrayRecord(record)), schema)


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
