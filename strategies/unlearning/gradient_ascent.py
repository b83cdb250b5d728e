"""Gradient ascent with a bound (Thudi et al. 2022; Jia et al. 2023, "GA"): unlearn by climbing.

In the first rounds the clients that hold data to be forgotten climb its loss, until a batch's is
beyond the bound, by default chance's; without a bound the model is soon of no use at all. The
server takes the mean of what they come to. The other rounds recover on the retained data.
"""

from typing import ClassVar

from pydantic import Field

from fedsparse.config import Finite
from strategies.unlearning.base import Unlearning, UnlearningSettings


class GradientAscentSettings(UnlearningSettings):
    """Keys of `[strategy]` for gradient-ascent."""

    ascent_lr: Finite = Field(
        default=1e-3, gt=0, le=10, description="of steps up, without momentum"
    )
    bound: Finite = Field(
        default=1.0, gt=0, le=100, description="loss at which they end, as a multiple of log C"
    )
    ascent_epochs: int = Field(
        default=5, ge=1, le=1000, description="most passes over the forgotten data in such a round"
    )
    ascent_rounds: int = Field(default=1, ge=1, description="of the first rounds, those that climb")


class GradientAscent(Unlearning):
    """Climb the loss of the data to be forgotten up to a bound, then recover on the rest."""

    Settings = GradientAscentSettings
    program = "gradient-ascent"
    targets: ClassVar[frozenset[str]] = frozenset({"class", "samples"})
    needs_forgotten: ClassVar[bool] = True
    needs_classes: ClassVar[bool] = True
    knob: ClassVar[str] = "ascent_lr"
    grid: ClassVar[tuple[float, ...]] = (1e-3, 3e-3, 1e-2, 3e-2)
    rounds: ClassVar[int] = 3

    def works(self, round_number: int) -> bool:
        """Climb in the first rounds."""
        return round_number <= int(self.settings.ascent_rounds)

    def asks_holders(self, round_number: int) -> bool:
        """Only who holds data to be forgotten climbs."""
        return self.works(round_number)
