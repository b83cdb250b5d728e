"""Partitions: which sample belongs to which client.

Each but `Sampled` deals every position to one client. They are held as one flat array,
cut by client, or drawn when asked for: a million clients are no million arrays.
"""

from collections.abc import Sequence
from heapq import heapify, heapreplace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fedsparse import seeds
from fedsparse.data.dataset import Indices, Partition
from fedsparse.errors import DataError

REDRAWS = 20


class Dealt(Partition):
    """Each position at one client: positions by client in one array, rising in each part."""

    def __init__(self, owners: Indices, clients: int) -> None:
        """`owners[i]` is the client that position i falls to."""
        self._positions = np.argsort(owners, kind="stable").astype(np.int64, copy=False)
        self._positions.flags.writeable = False
        self.sizes = np.bincount(owners, minlength=clients).astype(np.int64, copy=False)
        self._ends = np.cumsum(self.sizes)

    def part(self, client: int) -> Indices:
        """Return the positions of a client, a view that cannot be written."""
        end = int(self._ends[client])
        return self._positions[end - int(self.sizes[client]) : end]


class Sampled(Partition):
    """Each client draws `each` samples of its own from all there are, when it is asked for.

    Class proportions are Dirichlet(alpha) (Hsu et al. 2019), uniform for regression. No
    sample comes twice to a client unless it wants more than there are. What a client draws
    depends on seed and client alone, not on how many clients are registered.
    """

    def __init__(self, labels: NDArray[Any], clients: int, each: int, alpha: float, seed: int):
        self.each, self.alpha, self.seed = each, alpha, seed
        self.sizes = np.broadcast_to(np.int64(each), clients)
        if labels.dtype.kind == "f":
            labels = np.zeros(len(labels), np.int64)
        self._by_class = np.argsort(labels, kind="stable").astype(np.int64, copy=False)
        self._pool = np.unique(labels, return_counts=True)[1]

    def part(self, client: int) -> Indices:
        """Draw the positions of a client, rising."""
        rng = seeds.stream(self.seed, 0, client, "samples of its own")
        whole, rest = divmod(self.each, len(self._by_class))
        drawn = [np.arange(len(self._by_class))] * whole
        first = 0
        for size, count in zip(self._pool, self._counts(rest, rng), strict=True):
            if count:
                chosen = rng.choice(int(size), int(count), replace=False)
                drawn.append(self._by_class[first + chosen])
            first += size
        return np.sort(np.concatenate(drawn))

    def _counts(self, samples: int, rng: np.random.Generator) -> Indices:
        """Return how many samples of each class: what one lacks is drawn from the others."""
        share = rng.dirichlet(np.full(len(self._pool), self.alpha))
        if not np.isfinite(share).all():  # alpha so small that all shares came out as zero
            share = np.eye(len(self._pool))[rng.integers(len(self._pool))]
        counts = np.zeros(len(self._pool), np.int64)
        while lacking := samples - int(counts.sum()):
            room = self._pool - counts
            weight = share * (room > 0)
            if not weight.sum():
                weight = room.astype(np.float64)
            counts += np.minimum(rng.multinomial(lacking, weight / weight.sum()), room)
        return counts


def iid(samples: int, clients: int, rng: np.random.Generator) -> Partition:
    """Equal random parts."""
    small, over = divmod(samples, clients)
    sizes = np.full(clients, small)
    sizes[:over] += 1
    return _in_turn(rng.permutation(samples), sizes)


def dirichlet(
    labels: NDArray[Any], clients: int, alpha: float, least: int, rng: np.random.Generator
) -> Partition:
    """Share each class out by Dirichlet(alpha) proportions (Hsu et al. 2019).

    Drawn anew up to 20 times until every client has `least` samples; then clients that
    lack some take random ones from the largest.
    """
    for _ in range(REDRAWS):
        positions, owners = _drawn(labels, clients, alpha, rng)
        sizes = np.bincount(owners, minlength=clients)
        if sizes.min() >= least:
            break
    grouped = positions[np.argsort(owners, kind="stable")]
    return _at_least(grouped, sizes, least, rng)


def _drawn(
    labels: NDArray[Any], clients: int, alpha: float, rng: np.random.Generator
) -> tuple[Indices, Indices]:
    """Return all positions, class by class, and the client that each one falls to."""
    positions, owners = [], []
    for label in np.unique(labels):
        own = rng.permutation(np.flatnonzero(labels == label))
        cuts = _cuts(len(own), clients, alpha, rng)
        positions.append(own)
        owners.append(np.searchsorted(cuts, np.arange(len(own)), side="right"))
    return np.concatenate(positions), np.concatenate(owners)


def _cuts(samples: int, clients: int, alpha: float, rng: np.random.Generator) -> Indices:
    """Return where one client's share ends and the next begins, by Dirichlet(alpha)."""
    share = np.nan_to_num(rng.dirichlet(np.full(clients, alpha)), nan=1.0 / clients)
    return np.rint(np.cumsum(share)[:-1] * samples).astype(np.int64)


def shards(labels: NDArray[Any], clients: int, each: int, rng: np.random.Generator) -> Partition:
    """Sort by label, cut into clients * each shards, deal `each` to a client (McMahan 2017)."""
    if clients * each > len(labels):
        raise DataError(
            f"data.shards_per_client = {each}: {clients} clients need {clients * each} shards, "
            f"there are {len(labels)} samples; lower it or fleet.clients"
        )
    order = np.lexsort((rng.random(len(labels)), labels))
    small, over = divmod(len(labels), clients * each)
    sizes = np.full(clients * each, small)
    sizes[:over] += 1
    client_of = np.empty(clients * each, np.int64)
    client_of[rng.permutation(clients * each)] = np.repeat(np.arange(clients), each)
    owners = np.empty(len(labels), np.int64)
    owners[order] = np.repeat(client_of, sizes)
    return Dealt(owners, clients)


def quantity(
    samples: int, clients: int, alpha: float, least: int, rng: np.random.Generator
) -> Partition:
    """IID in classes, unlike in size: sizes are Dirichlet(alpha), each at least `least`."""
    cuts = _cuts(samples, clients, alpha, rng)
    sizes = np.diff(cuts, prepend=0, append=samples)
    return _at_least(rng.permutation(samples), sizes, least, rng)


def natural(column: NDArray[Any] | None, clients: int) -> Partition:
    """One client a value of the column, such as a writer or a site."""
    if column is None:
        raise DataError(
            "data.partition = 'natural' needs a column; set data.column to one of the dataset's"
        )
    values, owners = np.unique(column, return_inverse=True)
    if len(values) != clients:
        raise DataError(
            f"the column has {len(values)} values, fleet.clients = {clients}; "
            f"set fleet.clients = {len(values)}"
        )
    return Dealt(owners, clients)


def _in_turn(positions: Indices, sizes: NDArray[np.integer[Any]]) -> Partition:
    """Give the first positions to client 0, the next ones to client 1, and so on."""
    owners = np.empty(len(positions), np.int64)
    owners[positions] = np.repeat(np.arange(len(sizes)), sizes)
    return Dealt(owners, len(sizes))


def _at_least(
    positions: Indices, sizes: NDArray[np.integer[Any]], least: int, rng: np.random.Generator
) -> Partition:
    """Deal positions out in turn, then level the parts that are too small."""
    if sizes.min() >= least:
        return _in_turn(positions, sizes)
    parts = _levelled(np.split(positions, np.cumsum(sizes)[:-1]), least, rng)
    return _in_turn(np.concatenate(parts), np.array([len(part) for part in parts]))


def _levelled(parts: Sequence[Indices], least: int, rng: np.random.Generator) -> list[Indices]:
    """Move random samples from the largest clients to those below the minimum.

    Whoever has more than the minimum is in a heap by size, the first of equals on top.
    """
    dealt = list(parts)
    samples = sum(map(len, dealt))
    if samples < least * len(dealt):
        raise DataError(
            f"{samples} samples do not give {len(dealt)} clients {least} each; lower fleet.clients "
            "or data.min_per_client"
        )
    largest = [(-len(part), client) for client, part in enumerate(dealt) if len(part) > least]
    heapify(largest)
    for poor in range(len(dealt)):
        while (lacking := least - len(dealt[poor])) > 0:
            rich = largest[0][1]
            take = min(lacking, len(dealt[rich]) - least)
            mixed = rng.permutation(dealt[rich])
            dealt[poor] = np.concatenate([dealt[poor], mixed[:take]])
            dealt[rich] = mixed[take:]
            heapreplace(largest, (-len(dealt[rich]), rich))
    return dealt
