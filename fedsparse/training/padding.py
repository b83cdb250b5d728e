"""Batches of many clients side by side: padded to the longest, padding weighted zero.

Clients stand in the order of their numbers of steps, the most first. So those that still
train at a step are always the first ones, and one that has ended costs nothing.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

Batches = list[NDArray[np.int64]]
"""One client's index batches, in the order of its steps."""


@dataclass(frozen=True)
class Schedule:
    """What each client reads at each step, as one table on the device.

    `index` (steps, clients, longest) counts samples through all clients' data in a row;
    `weight`, of the same shape, is 1 for a sample and 0 for padding, which repeats the
    batch's first sample. At a step the first `active` clients train, on `width` samples.
    """

    index: Tensor
    weight: Tensor
    active: tuple[int, ...]
    width: tuple[int, ...]

    @property
    def padded(self) -> float:
        """The fraction of what is computed that is padding."""
        computed = sum(k * w for k, w in zip(self.active, self.width, strict=True))
        return 1 - float(self.weight.sum()) / computed


def order(batches: Sequence[Batches], samples: Sequence[int]) -> list[int]:
    """Return clients in the order of steps, then of samples, the most first.

    Neighbours in it are alike, so that a cohort cut from it needs little padding.
    """
    return sorted(range(len(batches)), key=lambda i: (-len(batches[i]), -samples[i], i))


def schedule(batches: Sequence[Batches], samples: Sequence[int], device: torch.device) -> Schedule:
    """Return the table of clients that stand in the order of `order`."""
    steps = len(batches[0])
    longest = max(len(batch) for each in batches for batch in each)
    index = np.zeros((steps, len(batches), longest), np.int64)
    weight = np.zeros(index.shape, np.float32)
    starts = np.cumsum([0, *samples])
    for client, each in enumerate(batches):
        for step, batch in enumerate(each):
            index[step, client] = starts[client] + batch[0]
            index[step, client, : len(batch)] = starts[client] + batch
            weight[step, client, : len(batch)] = 1
    lengths = weight.sum(2).astype(np.int64)
    return Schedule(
        torch.from_numpy(index).to(device),
        torch.from_numpy(weight).to(device),
        tuple(int(n) for n in (lengths > 0).sum(1)),
        tuple(int(n) for n in lengths.max(1)),
    )
