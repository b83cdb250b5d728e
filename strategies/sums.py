"""The exact mean of a round's models, whoever added them up, and under unlike masks.

w_j = sum_k n_k m_kj w_kj / sum_k n_k m_kj, the old w_j where no client keeps j: FedAvg
(eq. 1 and Algorithm 1) where all masks are one, else FedDST (Bibikar et al. 2022, masked
averaging). Sums are exact, so their bits depend on the replies alone, not on their order.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple, TypeVar

import numpy as np
from flwr.app import Message
from numpy.typing import NDArray

from fedsparse import messages, wire
from fedsparse.sparsity import Mask, State
from fedsparse.sparsity.exact_sum import Addend, ExactSum
from strategies.added import AddedUp, PartialSum
from strategies.replies import Reader, Reply, split, spread

F = TypeVar("F", bound=Callable[..., None])


def adds_up(aggregate: F) -> F:
    """Mark an `aggregate` that asks `self.mean` for the replies' mean and looks at no model alone.

    Its clients' models may be added up where they were trained; `Reply.kept` is then empty.
    """
    aggregate.adds_up = True  # type: ignore[attr-defined]
    return aggregate


class Tally:
    """The sums of a round's replies, one a mask."""

    def __init__(self, schema: wire.Schema, masks: Sequence[Mask | None]) -> None:
        self.schema = schema
        self.masks = masks
        self.parts: dict[int, PartialSum] = {}

    def add(self, place: int, flat: wire.FlatValues, examples: int) -> None:
        """Add a client's values, under the mask of this number."""
        self.add_all(place, [(flat, examples)])

    def add_all(self, place: int, addends: Sequence[tuple[wire.FlatValues, int]]) -> PartialSum:
        """Add some clients' values and numbers of samples, and return their sum."""
        part = self._part(place, len(addends[0][0].values))
        part.total.add_all(
            [Addend(flat.values, examples, flat.largest) for flat, examples in addends]
        )
        part.examples += sum(examples for _, examples in addends)
        part.clients += len(addends)
        return part

    def merge(self, part: PartialSum) -> None:
        """Add a sum that was made elsewhere; it stays as it is."""
        whole = self.parts.get(part.place)
        if whole is None:
            own = PartialSum(part.place, part.total.copy(), part.examples, part.clients)
            self.parts[part.place] = own
            return
        whole.total.merge(part.total)
        whole.examples += part.examples
        whole.clients += part.clients

    def _part(self, place: int, size: int) -> PartialSum:
        if place not in self.parts:
            self.parts[place] = PartialSum(place, ExactSum(size))
        return self.parts[place]

    def mean(
        self, old: State, mask: Mask | None, held: Mapping[Mask | None, Mask] | None = None
    ) -> State:
        """Return the mean model; what `mask` prunes is zero.

        `held` says for some masks which entries of the whole model their clients really have:
        of what those send, outside of masks, the others do not count.
        """
        if [self.masks[place] for place in self.parts] == [mask]:
            (part,) = self.parts.values()
            flat = _mean(part.total, part.examples)
            return spread(split(flat, self.schema, mask), mask)
        return self._masked_mean(old, mask, held or {})

    def _masked_mean(
        self, old: State, mask: Mask | None, held: Mapping[Mask | None, Mask]
    ) -> State:
        entries = self.schema.entries
        total = ExactSum(entries + 1)  # the last one takes what does not count
        samples = np.zeros(entries + 1)
        for place, part in sorted(self.parts.items()):
            own = self.masks[place]
            positions = _positions(self.schema, own)
            if own in held:
                there = np.zeros(entries, np.bool_)
                there[_positions(self.schema, held[own])] = True
                positions = np.where(there[positions], positions, entries)
            total.merge(part.total.spread(positions, total.size))
            samples[positions] += part.examples
        known = samples[:-1] > 0
        mean = np.concatenate([old[name].reshape(-1) for name in self.schema.names])
        mean[known] = _mean(total, np.maximum(samples, 1.0))[:-1][known]
        state = split(mean, self.schema, None)
        if mask is not None:
            mask.apply_(state)
        return state


def add_reply(
    reader: Reader, tally: Tally, parts: dict[int, PartialSum], client: int, message: Message
) -> Reply:
    """Add a reply to a tally, or note in `parts` the sum that it is in, and return its rest.

    Raises what `Reader.open` does; the reply is then in no sum.
    """
    flat, told, extra = reader.open(client, message)
    place, arrays = reader.place(client), message.content[messages.ARRAYS]
    if flat is not None:
        tally.add(place, flat, told["examples"])
    elif isinstance(arrays, AddedUp):
        parts[id(arrays.part)] = arrays.part
    return Reply(client, told["examples"], {}, told["loss"], message, extra, reader.masks[place])


def _mean(total: ExactSum, samples: NDArray[np.float64] | int) -> NDArray[np.float32]:
    return (total.total() / samples).astype(np.float32)


def _positions(schema: wire.Schema, mask: Mask | None) -> NDArray[np.int64]:
    """Return where the values under a mask stand among all entries of the model."""
    kept = [
        np.ones(int(np.prod(shape)), np.bool_)
        if mask is None or name not in mask
        else mask[name].reshape(-1)
        for name, shape in schema.tensors
    ]
    return np.flatnonzero(np.concatenate(kept))


def weighted_mean(replies: Sequence[Reply]) -> State:
    """Return sum_k n_k theta_k / sum_k n_k of replies under one mask, zero where it prunes."""
    first = replies[0]
    names = {n: v.shape for n, v in first.kept.items()}
    if first.mask is not None:
        names |= first.mask.shapes
    return mean_of(replies, {n: np.zeros(s, np.float32) for n, s in names.items()}, first.mask)


def mean_of(
    replies: Sequence[Reply],
    old: State,
    mask: Mask | None,
    held: Mapping[Mask | None, Mask] | None = None,
) -> State:
    """Return the mean of replies under any masks; `old` is the model that they were sent.

    `held` is as in `Tally.mean`.
    """
    masks = list(dict.fromkeys(reply.mask for reply in replies))
    tally = Tally(wire.Schema.of(old), masks)
    for reply in replies:
        flat = wire.FlatValues(reply.flat, None)
        tally.add(masks.index(reply.mask), flat, reply.examples)
    return tally.mean(old, mask, held)


class Weighted(NamedTuple):
    """A model in a mean: the kept values, under which mask, and how much it counts."""

    kept: State
    mask: Mask | None
    weight: int


def own_mask_mean(models: Sequence[Weighted], old: State, *, absent_stay: bool = False) -> State:
    """Return the mean of models under masks of their own, `old` where none keeps a weight.

    What a model's mask covers and prunes is left out of the mean; with `absent_stay` it counts
    as `old`, which makes this old + sum_k p_k m_k (w_k - old). Tensors outside of masks are
    averaged over all. One sum stands for all models, so that memory does not grow with them.
    """
    schema = wire.Schema.of(old)
    total, weights = ExactSum(schema.entries), np.zeros(schema.entries)
    for model in models:
        state = spread(model.kept, model.mask)
        flat = np.concatenate([state[name].reshape(-1) for name in schema.names])
        total.add(flat, model.weight)
        if model.mask is None:
            weights += model.weight
        else:
            weights[_positions(schema, model.mask)] += model.weight
    before = np.concatenate([old[name].reshape(-1) for name in schema.names])
    mean = before.copy()
    known = weights > 0
    mean[known] = _mean(total, np.maximum(weights, 1.0))[known]
    if absent_stay and models:
        share = weights / sum(model.weight for model in models)
        mean = np.where(share < 1, share * mean + (1 - share) * before, mean).astype(np.float32)
    return split(mean, schema, None)
