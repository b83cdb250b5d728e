"""Samples in memory with their labels, and a fair part of them."""

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

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


def spread(labels: NDArray[Any], count: int, rng: np.random.Generator) -> Indices:
    """Return `count` positions, each class in proportion as nearly as whole numbers allow."""
    if count >= len(labels):
        return np.arange(len(labels))
    order = rng.permutation(len(labels))
    if labels.dtype.kind == "f":
        return np.sort(order[:count])
    place = np.empty(len(labels))
    for label in np.unique(labels):
        own = order[labels[order] == label]
        place[own] = (np.arange(len(own)) + rng.random()) / len(own)
    return np.sort(np.argsort(place, kind="stable")[:count])
