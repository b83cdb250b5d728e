"""NLDP: sparse linear regression in one exchange, from moments that devices make noisy.

Each client sends x x' and x y of its samples under noise; the server inverts the noisy mean of the
first and thresholds: SoftThreshold(S^-1 b). After Zhu, Ding, Aggarwal, Xu and Wang (ICLR 2024).
"""

from collections.abc import Sequence
from typing import Any

import numpy as np
from pydantic import Field

from fedsparse import messages, wire
from fedsparse.config import Density, Finite
from fedsparse.errors import ConfigError
from fedsparse.privacy import regression
from fedsparse.privacy.gaussian import Floats
from strategies.ldp import LdpSettings, LocallyPrivate, MomentsReader
from strategies.replies import Reply
from strategies.task import Task


class NldpSettings(LdpSettings):
    """Keys of `[strategy]` for nldp."""

    density: Density = 1.0
    longest: Finite = Field(
        default=8.0, gt=0, le=1e6, description="length to which a sample is cut, with its target"
    )
    largest: Finite = Field(default=10.0, gt=0, le=1e6, description="bound on targets")
    threshold: Finite = Field(
        default=1.0, ge=0, le=1e3, description="coefficients below are zero; in deviations of noise"
    )


class Nldp(LocallyPrivate):
    """Non-interactive: what clients send depends on nothing that the server says."""

    Settings = NldpSettings
    program = "nldp"
    sensitivity = regression.MOMENTS_SENSITIVITY

    def __init__(self, task: Task) -> None:
        super().__init__(task)
        if self.settings.density != 1.0:
            raise ConfigError(
                f"strategy.density = {self.settings.density:g}: how many coefficients nldp keeps "
                "follows from strategy.threshold; leave density out, or choose ldp-iht"
            )
        self.square = np.zeros(self.held_entries)
        self.cross = np.zeros(self.features)
        self.samples = 0

    @property
    def held_entries(self) -> int:
        """The entries of x x' that a client holds."""
        (shape,) = self.task.shapes.values()
        d = int(np.prod(shape))
        return d * (d + 1) // 2

    def reader(self) -> MomentsReader:
        """Return a reader of replies with moments."""
        schema = wire.Schema(((messages.MOMENTS, (self.held_entries,)),))
        return MomentsReader(self.schema, deviation=self.deviation, moments=schema)

    def aggregate(self, round_number: int, replies: Sequence[Reply]) -> None:
        """Add what this round's clients told to that of rounds before, and solve."""
        for reply in sorted(replies, key=lambda reply: reply.client):
            self.square += reply.examples * reply.extra[messages.MOMENTS].astype(np.float64)
            self.cross += reply.examples * self.told(reply)
            self.samples += reply.examples
        self.take(self.solved())

    def solved(self) -> Floats:
        """Return the coefficients that all replies so far make."""
        s, n = self.settings, max(1, self.samples)
        scale = np.array([s.longest**2, s.longest * s.largest])
        return regression.least_squares(
            scale[0] * regression.unpacked(self.square / n, self.features),
            scale[1] * self.cross / n,
            scale * self.deviation / n**0.5,
            s.threshold,
        )

    def state_dict(self) -> dict[str, Any]:
        """Add the sums of what was told."""
        sums = {"square": self.square, "cross": self.cross, "samples": self.samples}
        return {**super().state_dict(), **sums}

    def load_state_dict(self, saved: dict[str, Any]) -> None:
        """Take the sums, too."""
        super().load_state_dict(saved)
        self.square, self.cross = np.array(saved["square"]), np.array(saved["cross"])
        self.samples = saved["samples"]
