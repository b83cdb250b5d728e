"""What training and tests return and check, whoever trains: torch or the native kernels.

Nothing here needs torch, so that a node which trains by the kernels works without it.
"""

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
from numpy.typing import NDArray

from fedsparse.errors import TrainingError
from fedsparse.sparsity.mask import State

Top = tuple[NDArray[np.int64], NDArray[np.float32]]
"""The largest gradients of a layer: flat positions, ascending, and the gradients there."""


@dataclass(frozen=True)
class Trained:
    """What local training did: mean loss over the last epoch, samples seen.

    `slots` makes the optimizer's tensors, by slot and parameter name, to outlive a round.
    """

    loss: float
    accuracy: float
    samples: int
    slots: Callable[[], dict[str, State]]


@dataclass(frozen=True)
class Evaluated:
    """A test: mean loss, accuracy (R^2 for regression), number of samples."""

    loss: float
    accuracy: float
    samples: int


def batches(samples: int, size: int, rng: np.random.Generator) -> Iterator[NDArray[np.int64]]:
    """Yield shuffled index batches; a last batch of one joins the batch before it.

    BatchNorm cannot normalise a single sample.
    """
    order = rng.permutation(samples)
    edges = [*range(0, samples, size), samples]
    if len(edges) > 2 and edges[-1] - edges[-2] == 1:
        del edges[-2]
    for start, stop in pairwise(edges):
        yield order[start:stop]


def largest_batch(samples: int, size: int) -> int:
    """Return the samples of the largest batch that `batches` yields."""
    return size + 1 if samples > size and (samples - 1) % size == 0 else min(samples, size)


def check_loss(total: float, epoch: int, lr_key: str, lr: float) -> None:
    """Raise TrainingError unless an epoch's loss is a finite number."""
    if not math.isfinite(total):
        raise TrainingError(f"the loss is {total} after epoch {epoch}; lower {lr_key} (now {lr:g})")


def check_weights(finite: bool, lr_key: str, lr: float) -> None:
    """Raise TrainingError unless every trained weight is a finite number, as `finite` says."""
    if not finite:
        raise TrainingError(
            f"the weights are not finite after training; lower {lr_key} (now {lr:g})"
        )


def spread_explained(loss: float, variance: float) -> float:
    """Return 1 - squared error / variance; where targets are all alike, 1 if met and else 0."""
    return 1.0 - loss / variance if variance > 0 else float(loss == 0)
