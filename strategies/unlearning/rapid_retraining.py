"""Rapid retraining (Liu et al., INFOCOM 2022): from the initial model, in fewer and bigger steps.

It is retraining, on the retained data alone, with quasi-Newton steps by the diagonal of the
empirical Fisher matrix in the place of plain ones. A sparse parent's mask is kept, which the
forgotten data had a part in: so this is approximate, whatever the weights are.
"""

from typing import ClassVar

from pydantic import Field

from fedsparse.config import Finite
from strategies.addressing import MeteredGrid
from strategies.task import masked
from strategies.unlearning.base import Unlearning, UnlearningSettings


class RapidRetrainingSettings(UnlearningSettings):
    """Keys of `[strategy]` for rapid-retraining."""

    damping: Finite = Field(default=0.3, gt=0, le=1e3, description="added to F's diagonal")
    fisher_momentum: Finite = Field(
        default=0.9, ge=0, lt=1, description="of squared gradients over steps"
    )


class RapidRetraining(Unlearning):
    """Retrain from the initial model with quasi-Newton steps, in fewer rounds."""

    Settings = RapidRetrainingSettings
    program = "rapid-retraining"
    knob: ClassVar[str] = "damping"
    grid: ClassVar[tuple[float, ...]] = (3.0, 1.0, 0.3, 0.1)

    @classmethod
    def usual_rounds(cls, parent_rounds: int, strength: float | None = None) -> int:
        """Return half the parent's rounds."""
        return max(1, -(-parent_rounds // 2))

    def alter(self, grid: MeteredGrid) -> None:
        """Begin with the initial model."""
        self.state = masked(self.task.pretrain(0, 0.0), self.mask)
