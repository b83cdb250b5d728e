"""Clients that attack: what `attack.updates` makes of an honest client's reply.

For experiments. The reply is changed when it is whole, whatever trained it and whatever grid it
goes over, so that the server meets what a hostile or broken client could really send.
"""

from collections.abc import Callable

import numpy as np
from flwr.app import Array, ArrayRecord, Context, MetricRecord, RecordDict

from clients.job import Job, Received
from fedsparse import messages, seeds, wire
from fedsparse.errors import ConfigError, WireError
from fedsparse.sparsity import Mask, State

EXTRA_BYTES = 2**20
"""What an oversize payload has too much."""

EARLIER = "attack"
"""Key of the client's state under which a stale client keeps its last reply."""

Change = Callable[[State, State, np.random.Generator], State]
"""Makes of a model and the one that was received what is sent."""


def turn(content: RecordDict, job: Job, received: Received, context: Context) -> None:
    """Change a training reply in place, where its client is one of those that attack.

    Raises ConfigError where the reply cannot be attacked in this way.
    """
    attack = job.config.attack
    if attack.updates is None or job.client not in attack.client_set:
        return
    if attack.updates == "stale":
        _repeat(content, context)
    elif attack.updates in CHANGES:
        _change(content, job, received, CHANGES[attack.updates](attack.scale))
    else:
        _break(content, job, received, attack.updates)


# -- updates ----------------------------------------------------------------------------


def scaled(factor: float) -> Change:
    """w + factor u: the update is made longer, to replace the model (Bagdasaryan et al. 2020)."""
    return lambda new, old, _: _moved(new, old, lambda u: factor * u)


def sign_flip(factor: float) -> Change:
    """w - factor u: the update goes the other way; by a factor of 1 as long as it was."""
    return lambda new, old, _: _moved(new, old, lambda u: -factor * u)


def gaussian(factor: float) -> Change:
    """w + factor rms(u) N(0, 1): noise in the place of an update, tensor by tensor."""

    def noise(u: np.ndarray, rng: np.random.Generator) -> np.ndarray:
        return factor * float(np.sqrt(np.mean(u**2))) * rng.standard_normal(u.shape)

    return lambda new, old, rng: _moved(new, old, lambda u: noise(u, rng) if u.size else u)


CHANGES: dict[str, Callable[[float], Change]] = {
    "scaled": scaled,
    "sign-flip": sign_flip,
    "gaussian": gaussian,
}


def _moved(new: State, old: State, change: Callable[[np.ndarray], np.ndarray]) -> State:
    """Return the old model plus a changed update; finite, as float32 must be."""
    most = float(np.finfo(np.float32).max)
    return {
        name: np.clip(old[name] + change(value.astype(np.float64) - old[name]), -most, most).astype(
            np.float32
        )
        for name, value in new.items()
    }


def _change(content: RecordDict, job: Job, received: Received, change: Change) -> None:
    """Put a changed model, and gradients changed alike, in the place of the honest ones."""
    rng = seeds.stream(job.seed, job.plan.stream, job.client, "attack")
    state, mask = _model_of(content, job, received)
    if mask is not None:
        changed = mask.take(change(mask.spread(mask.take(state)), received.state, rng))
        state = mask.spread(changed)
    else:
        state = change(state, received.state, rng)
    content[messages.ARRAYS] = _record(state, mask, job, received)
    if messages.GROWTH in content.array_records:
        schema = wire.Schema(tuple((n, job.shapes[n]) for n in job.shapes if n in job.plan.grow))
        found = wire.decode(wire.unpack(content.array_records[messages.GROWTH]), schema)
        nothing = {name: np.zeros_like(value) for name, value in found.state.items()}
        voted = change(found.state, nothing, rng)
        if found.mask is not None:
            found.mask.apply_(voted)
        content[messages.GROWTH] = wire.pack(wire.encode(voted, mask=found.mask))


def _model_of(content: RecordDict, job: Job, received: Received) -> tuple[State, Mask | None]:
    """Return the model of a reply; raises ConfigError for one under a mask told elsewhere."""
    record = content.array_records[messages.ARRAYS]
    if not received.sparse:
        return {name: array.numpy() for name, array in record.items()}, None
    held = () if received.mask is None else (received.mask,)
    try:
        decoded = wire.decode(wire.unpack(record), job.schema, masks=held, finite=False)
    except WireError as error:
        raise ConfigError(
            f"attack.updates = '{job.config.attack.updates}': clients of "
            f"'{job.config.strategy['name']}' send no model that could be changed so ({error}); "
            "choose another strategy, such as static, fedtiny or fedavg"
        ) from None
    return decoded.state, decoded.mask


def _record(state: State, mask: Mask | None, job: Job, received: Received) -> ArrayRecord:
    """Return a model as an honest client would send it, its values always whole floats."""
    if not received.sparse:
        return ArrayRecord({name: Array(value) for name, value in state.items()})
    if mask is None or mask == received.mask:
        kept = state if mask is None else mask.take(state)
        return wire.pack(wire.encode_kept(kept, job.schema, mask))
    return wire.pack(wire.encode(state, mask=mask))


# -- replies that are broken ------------------------------------------------------------


def _break(content: RecordDict, job: Job, received: Received, how: str) -> None:
    """Make a reply one that no honest client sends: not finite, too long, or under another mask."""
    state, mask = _model_of(content, job, received)
    if how == "not-finite":
        state = {name: np.full_like(value, np.nan) for name, value in state.items()}
        content[messages.ARRAYS] = _record(state, mask, job, received)
    elif how == "oversize":
        payload = wire.encode(state, mask=mask)
        content[messages.ARRAYS] = wire.pack(payload + bytes(len(payload) + EXTRA_BYTES))
    else:
        other = _other_mask(mask, job)
        content[messages.ARRAYS] = wire.pack(wire.encode(state, mask=other))


def _other_mask(mask: Mask | None, job: Job) -> Mask:
    """Return a mask that keeps as many weights elsewhere; of a dense model, every second one."""
    if mask is None:
        half = {n: (np.arange(np.prod(s)) % 2 == 0).reshape(s) for n, s in job.shapes.items()}
        return Mask.from_arrays({n: bits for n, bits in half.items() if n in job.schema.shapes})
    return Mask.from_arrays(
        {name: np.roll(bits.reshape(-1), 1).reshape(bits.shape) for name, bits in mask.items()}
    )


def _repeat(content: RecordDict, context: Context) -> None:
    """Send what was sent in the client's round before, and keep this one for the next."""
    new = dict(content.items())
    earlier = {
        name: context.state[f"{EARLIER}.{name}"]
        for name in new
        if f"{EARLIER}.{name}" in context.state
    }
    for name, record in new.items():
        if isinstance(record, ArrayRecord | MetricRecord):
            context.state[f"{EARLIER}.{name}"] = record
    if earlier:
        content.update(earlier)
