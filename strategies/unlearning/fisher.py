"""Fisher forgetting (Golatkar et al., CVPR 2020, "Eternal Sunshine"): noise where nothing is lost.

Round 1 measures the diagonal of the empirical Fisher matrix F on the retained data. Every weight
then gets Gaussian noise of variance alpha / F, clipped: much where the retained data does not
care. Of a class, the last layer's row is drawn anew around zero, as in the authors' code.
"""

from collections.abc import Sequence
from dataclasses import replace
from typing import ClassVar

import numpy as np
from numpy.typing import NDArray
from pydantic import Field

from fedsparse.config import Finite
from fedsparse.messages import Plan
from fedsparse.sparsity import State
from strategies.replies import Reply
from strategies.sums import adds_up
from strategies.task import masked
from strategies.unlearning.base import Unlearning, UnlearningSettings

SMALL = 1e-8
"""Added to F, of which some entries are zero."""

MOST, MOST_OF_LAST = 1e3, 1e2
"""Largest 1 / F: of a weight, and of the last layer's."""

WIDER = 10.0
"""Factor on the variance of the last layer's weights, and of vectors such as BatchNorm's."""

CLASS_VARIANCE = 1e-4
"""Of a forgotten class's row in the last layer, around zero."""


class FisherSettings(UnlearningSettings):
    """Keys of `[strategy]` for fisher."""

    alpha: Finite = Field(default=1e-6, ge=0, le=1, description="noise: its variance times F")
    fisher_samples: int = Field(
        default=0, ge=0, description="of a client's samples, those that F is measured on; 0: all"
    )


class Fisher(Unlearning):
    """Add noise to each weight by how little the retained data depends on it."""

    Settings = FisherSettings
    program = "fisher"
    knob: ClassVar[str] = "alpha"
    grid: ClassVar[tuple[float, ...]] = (1e-7, 1e-6, 1e-5, 1e-4)
    rounds: ClassVar[int] = 2

    def works(self, round_number: int) -> bool:
        """Measure in round 1."""
        return round_number == 1

    def plan(self, round_number: int) -> Plan:
        """Ask for the diagonal of the Fisher matrix, then for plain training."""
        if not self.works(round_number):
            return super().plan(round_number)
        return replace(self.exactly(round_number), samples=self.settings.fisher_samples)

    @adds_up
    def aggregate(self, round_number: int, replies: Sequence[Reply]) -> None:
        """Add noise by the mean of the clients' diagonals; later take the mean of models."""
        mean = self.mean(replies)
        if self.works(round_number):
            mean = self.noisy(mean)
        self.state = mean

    def noisy(self, fisher: State) -> State:
        """theta <- mu + sqrt(v) n with v = alpha min(1 / F, most), of the kept weights."""
        noisy = masked(self.state, self.mask)
        rng = self.task.rng(1, "fisher noise")
        for name, _ in self.task.model.named_parameters():
            normal = rng.standard_normal(noisy[name].shape)
            mean, variance = self.moments(name, fisher[name])
            noisy[name] = np.asarray(mean + np.sqrt(variance) * normal, np.float32)
        return masked(noisy, self.mask)

    def moments(
        self, name: str, fisher: NDArray[np.float32]
    ) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        """Return mean and variance of a tensor's new values."""
        mean = self.state[name].astype(np.float64)
        scale = np.minimum(1 / (fisher.astype(np.float64) + SMALL), MOST)
        last = name in self.last_layer
        if last:
            scale = np.minimum(scale, MOST_OF_LAST)
        variance = float(self.settings.alpha) * scale
        if last or mean.ndim == 1:
            variance *= WIDER
        if last:
            for label in sorted(self.task.config.forget.class_set):
                mean[label], variance[label] = 0.0, CLASS_VARIANCE
        return mean, variance

    @property
    def last_layer(self) -> tuple[str, str]:
        """The names of the weight and the bias that make the outputs, one row a class."""
        weight = self.task.prunable[-1]
        return weight, weight.removesuffix("weight") + "bias"
