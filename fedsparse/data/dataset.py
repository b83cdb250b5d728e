"""Datasets in memory: samples, labels, and how they are dealt to clients."""

from dataclasses import dataclass
from typing import Any

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


@dataclass(frozen=True)
class FederatedData:
    """A dataset dealt to clients; `partition[k]` are positions in `train`."""

    train: Dataset
    test: Dataset
    public: Dataset
    partition: list[Indices]
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

    def client(self, client: int) -> ClientData:
        """Return one client's samples, split into training and test by the run's seed.

        At least one is left to train on. They are copied out at each call, and not kept: a
        worker that serves all clients would end with the data set twice.
        """
        if not 0 <= client < self.clients:
            raise DataError(f"there is no client {client}; the run has {self.clients}")
        own = self.partition[client]
        rng = seeds.stream(self.seed, 0, client, "split")
        held = min(round(self.client_test_fraction * len(own)), len(own) - 1)
        order = rng.permutation(len(own))
        return ClientData(
            self.train.take(np.sort(own[order[held:]])), self.train.take(np.sort(own[order[:held]]))
        )
