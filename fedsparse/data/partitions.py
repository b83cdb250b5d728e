"""Partitions: which sample belongs to which client.

Each returns one array of positions a client; together they hold every position once.
"""

from collections.abc import Sequence
from heapq import heapify, heapreplace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fedsparse.errors import DataError

Indices = NDArray[np.int64]
REDRAWS = 20


def iid(samples: int, clients: int, rng: np.random.Generator) -> list[Indices]:
    """Equal random parts."""
    return _sorted(np.array_split(rng.permutation(samples), clients))


def dirichlet(
    labels: NDArray[Any], clients: int, alpha: float, least: int, rng: np.random.Generator
) -> list[Indices]:
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
    return _sorted(_levelled(np.split(grouped, np.cumsum(sizes)[:-1]), least, rng))


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


def shards(
    labels: NDArray[Any], clients: int, each: int, rng: np.random.Generator
) -> list[Indices]:
    """Sort by label, cut into clients * each shards, deal `each` to a client (McMahan 2017)."""
    if clients * each > len(labels):
        raise DataError(
            f"data.shards_per_client = {each}: {clients} clients need {clients * each} shards, "
            f"there are {len(labels)} samples; lower it or fleet.clients"
        )
    order = np.lexsort((rng.random(len(labels)), labels))
    pieces = np.array_split(order, clients * each)
    dealt = rng.permutation(clients * each).reshape(clients, each)
    return _sorted([np.concatenate([pieces[i] for i in row]) for row in dealt])


def quantity(
    samples: int, clients: int, alpha: float, least: int, rng: np.random.Generator
) -> list[Indices]:
    """IID in classes, unlike in size: sizes are Dirichlet(alpha), each at least `least`."""
    cuts = _cuts(samples, clients, alpha, rng)
    return _sorted(_levelled(np.split(rng.permutation(samples), cuts), least, rng))


def natural(column: NDArray[Any] | None, clients: int) -> list[Indices]:
    """One client a value of the column, such as a writer or a site."""
    if column is None:
        raise DataError(
            "data.partition = 'natural' needs a column; set data.column to one of the dataset's"
        )
    values, owner = np.unique(column, return_inverse=True)
    if len(values) != clients:
        raise DataError(
            f"the column has {len(values)} values, fleet.clients = {clients}; "
            f"set fleet.clients = {len(values)}"
        )
    return [np.flatnonzero(owner == i) for i in range(clients)]


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


def _sorted(parts: Sequence[Indices]) -> list[Indices]:
    return [np.sort(np.asarray(part, np.int64)) for part in parts]
