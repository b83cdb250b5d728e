"""What a model says of samples, and the plain measures of unlearning that follow from it.

Unlearning, remaining and test accuracy are those of "Model Sparsity Can Simplify Machine
Unlearning" (Jia et al. 2023, section 3). Models speak in log-probabilities, so that nothing is
lost where a model is nearly certain.
"""

from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from fedsparse.data import Dataset
from fedsparse.training.local import EVALUATION_BATCH, tensors

Array = NDArray[np.float64]


@dataclass(frozen=True)
class Answers:
    """A model's log-probabilities (samples, classes) on a set, and the true labels (samples,)."""

    log_p: Array
    y: NDArray[np.int64]

    def __len__(self) -> int:
        return len(self.y)

    def take(self, index: NDArray[np.int64]) -> "Answers":
        """Return the answers on some of the samples."""
        return Answers(self.log_p[index], self.y[index])


@dataclass(frozen=True)
class Confidence:
    """The probability that a model gives the true label: mean, median and outer tenths."""

    mean: float
    median: float
    low: float
    high: float


@torch.no_grad()
def outputs(module: nn.Module, data: Dataset) -> Answers:
    """Return what a model in evaluation mode says of a set, computed in parts."""
    x, _ = tensors(data)
    training = module.training
    module.eval()
    found = [np.empty((0, data.classes))]
    for part in x.split(EVALUATION_BATCH) if len(data) else ():  # type: ignore[no-untyped-call]
        found.append(torch.log_softmax(module(part).double(), 1).numpy())
    module.train(training)
    return Answers(np.concatenate(found), np.asarray(data.y, np.int64))


def accuracy(answers: Answers) -> float | None:
    """Return the share of samples whose likeliest class is the true one; None of no samples."""
    if not len(answers):
        return None
    return float(np.mean(answers.log_p.argmax(1) == answers.y))


def unlearning_accuracy(answers: Answers) -> float | None:
    """Return UA = 1 - accuracy on what was to be forgotten (Jia et al., section 3)."""
    right = accuracy(answers)
    return None if right is None else 1.0 - right


def true_confidence(answers: Answers) -> Array:
    """Return the probability of each sample's true label."""
    found: Array = np.exp(answers.log_p[np.arange(len(answers)), answers.y])
    return found


def confidence(answers: Answers) -> Confidence | None:
    """Return how the probability of the true label is spread; None of no samples."""
    if not len(answers):
        return None
    found = true_confidence(answers)
    low, median, high = np.quantile(found, (0.1, 0.5, 0.9))
    return Confidence(float(found.mean()), float(median), float(low), float(high))
