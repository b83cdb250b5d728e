"""Datasets in memory: samples, labels, and how they are dealt to clients."""

from abc import abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, overload

import numpy as np
from numpy.typing import NDArray

from fedsparse import seeds
from fedsparse.errors import DataError

Indices = NDArray[np.int64]


@dataclass(frozen=True)
class Dataset:
    """Samples and labels; `classes` is 1 for regression.

    x: float32 (n, channels, height, width) or (n, features), or int64 tokens (n, length);
    y: int64 (n,), or float32 for regression.
    """

    x: NDArray[Any]
    y: NDArray[Any]
    classes: int

    def __len__(self) -> int:
        return len(self.y)

    def take(self, index: Indices) -> "Dataset":
        """Return the samples at some positions."""
        return Dataset(self.x[index], self.y[index], self.classes)


@dataclass(frozen=True)
class Source:
    """What a dataset function returns: training and test sets, and a column if it has one."""

    train: Dataset
    test: Dataset
    column: NDArray[Any] | None = None


@dataclass(frozen=True)
class ClientData:
    """One client's own samples: those it trains on and those it tests on."""

    train: Dataset
    test: Dataset


class Partition(Sequence[Indices]):
    """The positions of each client's samples, as a sequence that need not hold them all."""

    sizes: NDArray[np.int64]
    """How many samples each client has."""

    @abstractmethod
    def part(self, client: int) -> Indices:
        """Return the positions of a client from 0 to the number of clients less 1."""

    def __len__(self) -> int:
        return len(self.sizes)

    @overload
    def __getitem__(self, index: int) -> Indices: ...
    @overload
    def __getitem__(self, index: slice) -> list[Indices]: ...
    def __getitem__(self, index: int | slice) -> Indices | list[Indices]:
        if isinstance(index, slice):
            return [self.part(client) for client in range(len(self))[index]]
        return self.part(range(len(self))[index])


class Placed(Partition):
    """A partition of chosen samples as positions in the whole set, which need not be copied."""

    def __init__(self, chosen: Partition, places: Indices) -> None:
        self.chosen = chosen
        self.places = places
        self.sizes = chosen.sizes

    def part(self, client: int) -> Indices:
        """Return the positions of a client's samples in the whole set."""
        own: Indices = self.places[self.chosen.part(client)]
        return own


@dataclass(frozen=True)
class FederatedData:
    """A dataset dealt to clients; `partition[k]` are positions in `train`.

    A mapped `train` is the whole set; else it holds the clients' samples alone.
    """

    train: Dataset
    test: Dataset
    public: Dataset
    partition: Sequence[Indices]
    client_test_fraction: float
    seed: int

    @property
    def input_shape(self) -> tuple[int, ...]:
        """Shape of one sample."""
        return tuple(self.train.x.shape[1:])

    @property
    def classes(self) -> int:
        """Number of classes; 1 for regression."""
        return self.train.classes

    @property
    def clients(self) -> int:
        """Number of clients."""
        return len(self.partition)

    @cached_property
    def sizes(self) -> NDArray[np.int64]:
        """How many samples each client has, for training and for testing together."""
        if isinstance(self.partition, Partition):
            return self.partition.sizes
        return np.array([len(own) for own in self.partition], np.int64)

    @cached_property
    def train_sizes(self) -> NDArray[np.int64]:
        """How many samples each client trains on."""
        held = np.rint(self.client_test_fraction * self.sizes).astype(np.int64)
        left: NDArray[np.int64] = self.sizes - np.minimum(held, self.sizes - 1)
        return left

    def train_samples(self, client: int) -> int:
        """Return how many samples a client trains on, without looking them up."""
        size = int(self.sizes[client])
        return size - self._held_out(size)

    def _held_out(self, samples: int) -> int:
        """Return how many of a client's samples it tests on: one is left to train on."""
        return min(round(self.client_test_fraction * samples), samples - 1)

    def client(self, client: int) -> ClientData:
        """Return one client's samples, split into training and test by the run's seed.

        At least one is left to train on. They are copied out at each call, and not kept: a
        worker that serves all clients would end with the data set twice.
        """
        if not 0 <= client < self.clients:
            raise DataError(f"there is no client {client}; the run has {self.clients}")
        own = self.partition[client]
        rng = seeds.stream(self.seed, 0, client, "split")
        held = self._held_out(len(own))
        order = rng.permutation(len(own))
        return ClientData(
            self.train.take(np.sort(own[order[held:]])), self.train.take(np.sort(own[order[:held]]))
        )
