"""Datasets in memory: samples, labels, and how they are dealt to clients."""

from abc import abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, overload

import numpy as np
from numpy.typing import NDArray

from fedsparse import seeds
from fedsparse.config import AttackConfig, ForgetConfig
from fedsparse.data import backdoor
from fedsparse.data.samples import Dataset, Indices
from fedsparse.errors import DataError

NOTHING, NOBODY = ForgetConfig(), AttackConfig()

__all__ = ["ClientData", "Dataset", "FederatedData", "Indices", "Partition", "Placed", "Source"]


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

    A mapped `train` is the whole set; else it holds the clients' samples alone. Row i of `train` is
    row `rows[i]` of the source's training set, or row i where that is None: a sample's id. What
    `forget` names is left out of all that clients and tests are given; `attack` names clients
    whose samples carry a trigger.
    """

    train: Dataset
    test: Dataset
    public: Dataset
    partition: Sequence[Indices]
    client_test_fraction: float
    seed: int
    rows: Indices | None = None
    forget: ForgetConfig = NOTHING
    attack: AttackConfig = NOBODY
    test_forgotten: Dataset | None = None
    """Test samples of the forgotten classes, which `test` lacks; None where there are none."""

    @property
    def input_shape(self) -> tuple[int, ...]:
        """Shape of one sample."""
        return tuple(self.train.x.shape[1:])

    @property
    def classes(self) -> int:
        """Number of classes, of those forgotten too; 1 for regression."""
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
        """How many samples each client trains on; none of a forgotten client's."""
        held = np.rint(self.client_test_fraction * self.sizes).astype(np.int64)
        left: NDArray[np.int64] = self.sizes - np.minimum(held, self.sizes - 1)
        if self._parts_forgotten:
            every = range(self.clients)
            left = np.array([np.count_nonzero(~self.gone(k)) for k in every], np.int64)
        if self.forget.clients:
            left = left.copy()
            left[sorted(self.forget.client_set)] = 0
        return left

    @cached_property
    def absent(self) -> frozenset[int]:
        """Clients that are never asked: forgotten ones, and those left without training samples."""
        if not self._parts_forgotten:
            return self.forget.client_set
        return frozenset(np.flatnonzero(self.train_sizes == 0).tolist())

    def train_samples(self, client: int) -> int:
        """Return how many samples a client trains on, without looking them up."""
        if self.forget.kind:
            return int(self.train_sizes[client])
        size = int(self.sizes[client])
        return size - self._held_out(size)

    def client(self, client: int) -> ClientData:
        """Return one client's samples, split into training and test by the data's seed.

        At least one is left to train on, unless it is forgotten. They are copied out at each call,
        and not kept: a worker that serves all clients would end with the data set twice.
        """
        train, test = self._split(client)
        if client in self.forget.client_set:
            return ClientData(self.train.take(train[:0]), self.train.take(test[:0]))
        if not self._parts_forgotten:
            return ClientData(self._training(client, train), self.train.take(test))
        return ClientData(
            self._training(client, train).take(np.flatnonzero(~self.gone(client))),
            self.train.take(test[~self.is_forgotten(test)]),
        )

    def forgotten(self, client: int) -> Dataset:
        """Return those of a client's training samples that are forgotten: all of such a client."""
        train, _ = self._split(client)
        return self._training(client, train).take(np.flatnonzero(self.gone(client)))

    def ids(self, client: int) -> Indices:
        """Return the ids of the samples that a client trains on if nothing is forgotten, rising."""
        return self._ids(self._split(client)[0])

    def test_ids(self, client: int) -> Indices:
        """Return the ids of the samples that a client tests on if nothing is forgotten, rising."""
        return self._ids(self._split(client)[1])

    def is_forgotten(self, positions: Indices) -> NDArray[np.bool_]:
        """Tell of samples at some positions which are of a forgotten class or forgotten alone."""
        found: NDArray[np.bool_] = self._marked[positions]
        return found

    def gone(self, client: int) -> NDArray[np.bool_]:
        """Tell which of a client's training samples, as `ids` has them, are forgotten.

        All of a forgotten client; the label that a trigger gives counts as the true one does.
        """
        train, _ = self._split(client)
        gone: NDArray[np.bool_] = self.is_forgotten(train) | (client in self.forget.client_set)
        if self.forget.classes and client in self.attack.planters:
            labels = self._training(client, train).y
            gone |= np.isin(labels, sorted(self.forget.class_set))
        return gone

    @cached_property
    def _marked(self) -> NDArray[np.bool_]:
        """Of all samples, whether they are of a forgotten class or forgotten alone."""
        gone = np.zeros(len(self.train), bool)
        if self.forget.classes:
            gone |= np.isin(self.train.y, sorted(self.forget.class_set))
        if self.forget.samples:
            gone |= np.isin(self._ids(np.arange(len(self.train))), self._sample_ids)
        return gone

    @property
    def _parts_forgotten(self) -> bool:
        return bool(self.forget.classes or self.forget.samples)

    @cached_property
    def _sample_ids(self) -> Indices:
        return np.array(sorted(self.forget.sample_set), np.int64)

    def _ids(self, positions: Indices) -> Indices:
        return positions if self.rows is None else self.rows[positions]

    def _held_out(self, samples: int) -> int:
        """Return how many of a client's samples it tests on: one is left to train on."""
        return min(round(self.client_test_fraction * samples), samples - 1)

    def _split(self, client: int) -> tuple[Indices, Indices]:
        """Return the positions that a client trains on and tests on, whatever is forgotten."""
        if not 0 <= client < self.clients:
            raise DataError(f"there is no client {client}; the run has {self.clients}")
        own = self.partition[client]
        rng = seeds.stream(self.seed, 0, client, "split")
        held = self._held_out(len(own))
        order = rng.permutation(len(own))
        return np.sort(own[order[held:]]), np.sort(own[order[:held]])

    def _training(self, client: int, positions: Indices) -> Dataset:
        """Return the samples that a client trains on, with a trigger where it plants one."""
        data = self.train.take(positions)
        if client not in self.attack.planters:
            return data
        rng = seeds.stream(self.seed, 0, client, "backdoor")
        return backdoor.poisoned(data, self.attack, self.patch, rng)

    @property
    def triggered(self) -> Dataset | None:
        """Test samples of other classes with the attack's trigger and its label; None without."""
        if not self.attack.planters:
            return None
        return backdoor.triggered(self.test, self.attack, self.patch)

    @cached_property
    def patch(self) -> float:
        """The value of the trigger's pixels."""
        return backdoor.brightest(self.train)
