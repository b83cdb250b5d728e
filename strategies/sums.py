"""The exact mean of a round's models, whoever added them up, and under unlike masks.

w_j = sum_k n_k m_kj w_kj / sum_k n_k m_kj, the old w_j where no client keeps j: FedAvg
(eq. 1 and Algorithm 1) where all masks are one, else FedDST (Bibikar et al. 2022, masked
averaging). Sums are exact, so their bits depend on the replies alone, not on their order.
"""

from collections.abc import Callable, Sequence
from typing import TypeVar

import numpy as np
from numpy.typing import NDArray

from fedsparse import wire
from fedsparse.sparsity import Mask, State
from fedsparse.sparsity.exact_sum import Addend, ExactSum
from strategies.added import PartialSum
from strategies.replies import Reply, split, spread

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

    def mean(self, old: State, mask: Mask | None) -> State:
        """Return the mean model; what `mask` prunes is zero."""
        if [self.masks[place] for place in self.parts] == [mask]:
            (part,) = self.parts.values()
            flat = _mean(part.total, part.examples)
            return spread(split(flat, self.schema, mask), mask)
        return self._masked_mean(old, mask)

    def _masked_mean(self, old: State, mask: Mask | None) -> State:
        total = ExactSum(self.schema.entries)
        samples = np.zeros(self.schema.entries)
        for place, part in sorted(self.parts.items()):
            positions = _positions(self.schema, self.masks[place])
            total.merge(part.total.spread(positions, total.size))
            samples[positions] += part.examples
        known = samples > 0
        mean = np.concatenate([old[name].reshape(-1) for name in self.schema.names])
        mean[known] = _mean(total, np.maximum(samples, 1.0))[known]
        state = split(mean, self.schema, None)
        if mask is not None:
            mask.apply_(state)
        return state


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


def mean_of(replies: Sequence[Reply], old: State, mask: Mask | None) -> State:
    """Return the mean of replies under any masks; `old` is the model that they were sent."""
    masks = list(dict.fromkeys(reply.mask for reply in replies))
    tally = Tally(wire.Schema.of(old), masks)
    for reply in replies:
        flat = wire.FlatValues(reply.flat, None)
        tally.add(masks.index(reply.mask), flat, reply.examples)
    return tally.mean(old, mask)


def own_mask_mean(replies: Sequence[Reply], old: State) -> State:
    """Return the mean of replies that each came under a mask of its own, `old` where none keeps.

    What a client's mask covers and prunes is left out; tensors outside of masks are averaged
    over all. One sum stands for all replies, so that memory does not grow with them.
    """
    schema = wire.Schema.of(old)
    total, samples = ExactSum(schema.entries), np.zeros(schema.entries)
    for reply in replies:
        state = reply.state
        flat = np.concatenate([state[name].reshape(-1) for name in schema.names])
        total.add(flat, reply.examples)
        if reply.mask is None:
            samples += reply.examples
        else:
            samples[_positions(schema, reply.mask)] += reply.examples
    mean = np.concatenate([old[name].reshape(-1) for name in schema.names])
    known = samples > 0
    mean[known] = _mean(total, np.maximum(samples, 1.0))[known]
    return split(mean, schema, None)
