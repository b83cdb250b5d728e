"""Samples in memory with their labels."""

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
