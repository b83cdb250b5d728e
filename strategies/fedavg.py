"""FedAvg (McMahan et al. 2017), with FedProx's proximal term and server momentum.

The dense baseline: every weight is trained, sent and counted.
"""

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
from pydantic import Field

from fedsparse.config import Density, Finite, StrategySettings
from fedsparse.errors import ConfigError
from fedsparse.messages import Plan
from fedsparse.sparsity import State
from strategies.base import SparseStrategy
from strategies.replies import Reply
from strategies.sums import adds_up
from strategies.task import Task


class FedAvgSettings(StrategySettings):
    """Keys of `[strategy]` for fedavg."""

    density: Density = 1.0
    proximal_mu: Finite = Field(default=0.0, ge=0, description="FedProx's mu")
    server_momentum: Finite = Field(default=0.0, ge=0, lt=1, description="FedAvgM's beta")
    server_lr: Finite = Field(default=1.0, gt=0)
    pretrain_epochs: int = Field(default=0, ge=0, description="epochs on the server's own data")
    pretrain_lr: Finite = Field(default=0.05, gt=0)


class FedAvg(SparseStrategy):
    """Dense federated averaging."""

    Settings = FedAvgSettings
    private = True
    fits = frozenset({"batch", "density"})
    sparser = "--set strategy.name=static --set strategy.density={}"

    def __init__(self, task: Task) -> None:
        super().__init__(task)
        if self.settings.density != 1.0:
            raise ConfigError(
                f"strategy.density = {self.settings.density:g}: {self.settings.name} is dense; "
                "leave density out, or choose strategy.name = static"
            )
        if self.settings.pretrain_epochs:
            _ = task.public
        self.velocity: State = {}

    def prepare(self, grid: Any) -> None:
        """Start from the initialised, or pre-trained, dense model."""
        self.state = self.task.pretrain(self.settings.pretrain_epochs, self.settings.pretrain_lr)

    def plan(self, round_number: int) -> Plan:
        """Ask for plain training, with the proximal term if set."""
        return replace(self.own_plan(round_number), proximal_mu=self.settings.proximal_mu)

    @adds_up
    def aggregate(self, round_number: int, replies: Sequence[Reply]) -> None:
        """Take the weighted mean, through the server's momentum if set."""
        mean = self.mean(replies)
        if self.settings.server_momentum or self.settings.server_lr != 1.0:
            mean = self.server_step(mean)
        self.state = mean

    def server_step(self, mean: State) -> State:
        """v <- beta v + (w - mean); w <- w - lr v (FedAvgM, Hsu et al. 2019, section 4.3)."""
        stepped: State = {}
        for name, old in self.state.items():
            if name.endswith(("running_mean", "running_var")):
                stepped[name] = mean[name]
                continue
            velocity = np.float32(self.settings.server_momentum) * self.velocity.get(
                name, np.zeros_like(old)
            ) + (old - mean[name])
            self.velocity[name] = velocity
            step = np.float32(self.settings.server_lr) * velocity
            stepped[name] = np.asarray(old - step, np.float32)
        return stepped

    def state_dict(self) -> dict[str, Any]:
        """Add the server's momentum."""
        return {**super().state_dict(), "velocity": dict(self.velocity)}

    def load_state_dict(self, saved: dict[str, Any]) -> None:
        """Take the server's momentum, too."""
        super().load_state_dict(saved)
        self.velocity = saved["velocity"]
