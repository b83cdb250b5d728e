"""L1-sparse unlearning (Jia et al., NeurIPS 2023: sparsity can simplify machine unlearning).

Rounds on the retained data alone whose loss has gamma_t ||theta||_1 beside it, over
all parameters. Weights that the retained data does not hold up shrink, and what was learnt of the
forgotten data with them. gamma_t falls from gamma to nothing, as their schedule that works best.
"""

from dataclasses import replace
from typing import ClassVar

from pydantic import Field

from fedsparse.config import Config, Finite
from fedsparse.errors import ConfigError
from fedsparse.messages import Plan
from strategies.unlearning.base import Unlearning, UnlearningSettings


class L1SparseSettings(UnlearningSettings):
    """Keys of `[strategy]` for l1-sparse."""

    gamma: Finite = Field(default=3e-3, ge=0, le=10, description="weight of the L1 norm at first")
    plain_rounds: int = Field(default=0, ge=0, description="of the last rounds, those without it")


class L1Sparse(Unlearning):
    """Fine-tuning with a falling L1 penalty, which shrinks what retained data does not need."""

    Settings = L1SparseSettings
    fits = frozenset({"batch", "density"})
    knob: ClassVar[str] = "gamma"
    grid: ClassVar[tuple[float, ...]] = (1e-3, 3e-3, 1e-2, 3e-2)
    rounds: ClassVar[int] = 8

    def check(self, config: Config) -> None:
        """Refuse a schedule that leaves no round with the penalty."""
        super().check(config)
        if self.settings.plain_rounds >= config.run.rounds:
            raise ConfigError(
                f"strategy.plain_rounds = {self.settings.plain_rounds} of run.rounds = "
                f"{config.run.rounds} leaves no round with the penalty; lower it"
            )

    def plan(self, round_number: int) -> Plan:
        """Ask for plain training with this round's penalty."""
        return replace(super().plan(round_number), l1=self.weight(round_number))

    def weight(self, round_number: int) -> float:
        """gamma_t = gamma (1 - (t - 1) / T) in round t of the T that have it, then 0."""
        rounds = self.task.config.run.rounds - self.settings.plain_rounds
        return float(self.settings.gamma * max(0.0, 1 - (round_number - 1) / rounds))
