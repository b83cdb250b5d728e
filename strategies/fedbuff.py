"""FedBuff (Nguyen et al., AISTATS 2022; arXiv 2106.06639): a buffer of asynchronous updates.

w <- w + eta_g / K sum_k s(tau_k) Delta_k once K updates are in the buffer (Algorithm 1),
Delta_k being the client's model less the one it started with, and s(tau) = 1 / sqrt(1 + tau)
(section 5).
"""

from typing import Any, Literal

import numpy as np
from pydantic import Field

from fedsparse.config import Finite
from fedsparse.messages import Plan
from fedsparse.sparsity import State
from strategies.asynchronous import AsyncSettings, AsyncStrategy, Flight, mapped
from strategies.replies import Reply
from strategies.task import Task, masked

STATISTICS = ("running_mean", "running_var")


class FedBuffSettings(AsyncSettings):
    """Keys of `[strategy]` for fedbuff."""

    buffer_size: int = Field(default=10, ge=1, description="K: updates that make a round")
    server_lr: Finite = Field(default=1.0, gt=0, description="eta_g")
    staleness: Literal["sqrt", "constant"] = "sqrt"
    weights: Literal["uniform", "samples"] = "uniform"
    proximal_mu: Finite = Field(default=0.0, ge=0)


class FedBuff(AsyncStrategy):
    """Buffered asynchronous averaging: a step whenever the buffer is full."""

    Settings = FedBuffSettings

    def __init__(self, task: Task) -> None:
        super().__init__(task)
        self.sums: dict[str, np.ndarray] = {}
        self.total = 0.0
        self.filled = 0

    @property
    def updates_per_round(self) -> int:
        """Return the size of the buffer."""
        return int(self.settings.buffer_size)

    def plan(self, round_number: int) -> Plan:
        """Ask for training, with a proximal term if set."""
        return Plan(round_number, self.settings.values, self.settings.proximal_mu)

    def weight(self, staleness: int) -> float:
        """s(tau) = 1 / sqrt(1 + tau), or 1 (section 5)."""
        return 1.0 if self.settings.staleness == "constant" else float((1 + staleness) ** -0.5)

    def absorb(self, update: Reply, flight: Flight, staleness: int) -> None:
        """Add s(tau) Delta to the buffer; take the server's step when it is full.

        BatchNorm's statistics move towards the client's from where they are now: their sum
        of differences from older ones could turn a variance negative.
        """
        share = float(update.examples) if self.settings.weights == "samples" else 1.0
        theirs, where = mapped(update, self.state, self.mask)
        start = self.states[flight.version]
        for name, value in theirs.items():
            base = self.state[name] if name.endswith(STATISTICS) else start[name]
            delta = np.where(where[name], value.astype(np.float64) - base, 0.0)
            held = self.sums.setdefault(name, np.zeros(value.shape))
            held += share * self.weight(staleness) * delta
        self.total += share
        self.filled += 1
        if self.filled >= self.updates_per_round:
            self.step()

    def step(self) -> None:
        """w <- w + eta_g / K sum_k s(tau_k) Delta_k (Algorithm 1, line 11)."""
        rate = self.settings.server_lr
        stepped: State = {}
        for name, old in self.state.items():
            factor = 1.0 if name.endswith(STATISTICS) else rate
            stepped[name] = np.asarray(old + factor * self.sums[name] / self.total, np.float32)
        self.state = masked(stepped, self.mask)
        self.sums, self.total, self.filled = {}, 0.0, 0
        self.version += 1

    def state_dict(self) -> dict[str, Any]:
        """Add the buffer."""
        buffer = {"sums": dict(self.sums), "total": self.total, "filled": self.filled}
        return {**super().state_dict(), "buffer": buffer}

    def load_state_dict(self, saved: dict[str, Any]) -> None:
        """Take the buffer, too."""
        super().load_state_dict(saved)
        buffer = saved["buffer"]
        self.sums, self.total, self.filled = buffer["sums"], buffer["total"], buffer["filled"]
