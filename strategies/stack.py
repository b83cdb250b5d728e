"""A round's models as rows of one matrix, over those entries that any of them keeps.

Rules that look at each model (medians, distances, lengths) work on it. Clients may have trained
under unlike masks: `has` says whose entries are whose. Rows stand in the order of clients, so that
what is computed does not depend on the order in which replies came.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from fedsparse import wire
from fedsparse.sparsity import Mask, State
from strategies.replies import Before, Reply, split

STATISTICS = ("running_mean", "running_var")
"""Ends of names of what is measured and not trained: BatchNorm's statistics."""

COLUMNS = 2**22
"""Entries of the matrix that are worked on at once, in float64."""

Floats = NDArray[np.float64]
Flags = NDArray[np.bool_]


@dataclass(frozen=True)
class Stack:
    """Models by client, and the model that they were trained from.

    `values` is (clients, entries) float32, zero where `has` is false; `has` is None where all
    clients have all entries. `old` and `trained` are by entry, `positions` say where each stands
    in the whole model of `schema`.
    """

    clients: tuple[int, ...]
    examples: NDArray[np.int64]
    values: NDArray[np.float32]
    has: Flags | None
    old: NDArray[np.float32]
    trained: Flags
    positions: NDArray[np.int64]
    schema: wire.Schema

    @classmethod
    def of(cls, replies: Sequence[Reply], before: Before) -> "Stack":
        """Return the models of some replies, one at least, over what their masks keep."""
        ordered = sorted(replies, key=lambda reply: reply.client)
        schema = wire.Schema.of(before.shared)
        kept = {mask: kept_entries(schema, mask) for mask in {r.mask for r in ordered}}
        union = np.logical_or.reduce(list(kept.values()))
        positions = np.flatnonzero(union)
        alike = len(kept) == 1
        values = np.zeros((len(ordered), len(positions)), np.float32)
        has = None if alike else np.zeros(values.shape, np.bool_)
        for row, reply in enumerate(ordered):
            if has is None:
                values[row] = reply.flat
            else:
                has[row] = kept[reply.mask][positions]
                values[row, has[row]] = reply.flat
        old = flattened(before.shared, schema)
        statistics = [
            np.full(int(np.prod(shape)), name.endswith(STATISTICS))
            for name, shape in schema.tensors
        ]
        return cls(
            tuple(reply.client for reply in ordered),
            np.array([reply.examples for reply in ordered], np.int64),
            values,
            has,
            old[positions],
            ~np.concatenate(statistics)[positions],
            positions,
            schema,
        )

    def columns(self) -> Iterator[slice]:
        """Yield the entries in pieces that fit a cache or, in float64, at least the memory."""
        step = max(1, COLUMNS // len(self.clients))
        for begin in range(0, self.values.shape[1], step):
            yield slice(begin, begin + step)

    def shares(self, columns: slice) -> Flags:
        """Return which clients have which of some entries."""
        if self.has is None:
            return np.ones(self.values[:, columns].shape, np.bool_)
        return self.has[:, columns]

    def rows(self, chosen: NDArray[np.int64]) -> "Stack":
        """Return the models of some rows alone."""
        return replace(
            self,
            clients=tuple(self.clients[row] for row in chosen),
            examples=self.examples[chosen],
            values=self.values[chosen],
            has=None if self.has is None else self.has[chosen],
        )

    def update(self, row: int) -> Floats:
        """Return u_k = w_k - w by entry, zero where the client does not have it."""
        moved = self.values[row].astype(np.float64) - self.old
        return moved if self.has is None else np.where(self.has[row], moved, 0.0)

    def norms(self, where: Flags) -> Floats:
        """Return the length of each client's update over some of the entries."""
        rows = range(len(self.clients))
        return np.array([np.sqrt(np.sum(np.square(self.update(k)[where]))) for k in rows])

    def model(self, entries: NDArray[np.floating], before: Before) -> State:
        """Return the whole model of `entries`; elsewhere the old one, and zero where pruned."""
        flat = flattened(before.shared, self.schema)
        flat[self.positions] = entries.astype(np.float32)
        state = split(flat, self.schema, None)
        if before.mask is not None:
            before.mask.apply_(state)
        return state


def flattened(state: State, schema: wire.Schema) -> NDArray[np.float32]:
    """Return a whole model's tensors as one vector of its own, in the schema's order."""
    return np.concatenate([state[name].reshape(-1) for name in schema.names])


def kept_entries(schema: wire.Schema, mask: Mask | None) -> Flags:
    """Return which of a model's entries a mask keeps, in the schema's order."""
    return np.concatenate(
        [
            np.ones(int(np.prod(shape)), np.bool_)
            if mask is None or name not in mask
            else mask[name].reshape(-1)
            for name, shape in schema.tensors
        ]
    )
