"""LDP-IHT: iterative hard thresholding, each step on the noisy gradients of another group.

theta <- Project(HardThreshold_k(theta - eta g)), g the mean of clipped gradients that devices made
noisy, k a fraction `density` of the coefficients. After Zhu, Ding, Aggarwal, Xu and Wang, ICLR
2024, as are the groups; how gradients are bounded and made noisy is ours.
"""

from collections.abc import Sequence

import numpy as np
from pydantic import Field

from fedsparse.config import Finite
from fedsparse.privacy import regression
from fedsparse.privacy.gaussian import Floats
from strategies.ldp import LdpSettings, LocallyPrivate
from strategies.replies import Reply
from strategies.task import Task


class LdpIhtSettings(LdpSettings):
    """Keys of `[strategy]` for ldp-iht."""

    clip: Finite = Field(
        default=20.0, gt=0, le=1e6, description="longest gradient of a sample in round 1, in L2"
    )
    clip_decay: Finite = Field(default=0.8, gt=0, le=1, description="factor on clip by round")
    step: Finite = Field(default=1.0, gt=0, le=1e3, description="eta: length of a step")
    radius: Finite = Field(
        default=10.0, gt=0, le=1e6, description="length of the coefficients at most"
    )


class LdpIht(LocallyPrivate):
    """Interactive in sequence: a client answers the step of its group, and no other."""

    Settings = LdpIhtSettings
    program = "ldp-iht"
    sensitivity = regression.GRADIENT_SENSITIVITY

    def __init__(self, task: Task) -> None:
        super().__init__(task)
        self.kept_entries = max(1, round(self.settings.density * self.features))

    def aggregate(self, round_number: int, replies: Sequence[Reply]) -> None:
        """Take one step along the mean of the group's noisy gradients."""
        total, samples = np.zeros(self.features), 0
        for reply in sorted(replies, key=lambda reply: reply.client):
            total += reply.examples * self.told(reply)
            samples += reply.examples
        self.take(self.stepped(total / max(1, samples), round_number))

    def stepped(self, mean: Floats, round_number: int) -> Floats:
        """Return the coefficients after a step; `mean` is in units of the round's clip."""
        s, theta = self.settings, self.state[self.weight].reshape(-1).astype(np.float64)
        gradient = mean * regression.clip_of(s.clip, s.clip_decay, round_number)
        found = regression.hard_threshold(theta - s.step * gradient, self.kept_entries)
        return regression.project(found, s.radius)
