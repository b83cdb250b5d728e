"""What LotteryFL and Sub-FedAvg share at the server: clients prune a dense model, each its own way.

Every client starts with the whole model. Its mask shrinks when its program says so, down to
the density that was asked for, and never grows again.
"""

from typing import Literal

from pydantic import Field

from fedsparse.config import StrategySettings
from fedsparse.sparsity import Mask
from strategies.own_masks import OwnMasks
from strategies.seats import Demands


class TicketSettings(StrategySettings):
    """Keys of `[strategy]` that LotteryFL and Sub-FedAvg share."""

    prune_rate: float = Field(
        default=0.1, gt=0, lt=1, description="of each layer's kept weights, pruned in one step"
    )
    accuracy_threshold: float = Field(
        default=0.5,
        ge=0,
        le=1,
        description="on its own training samples, from which a client prunes",
    )
    allocation: Literal["uniform", "er", "erk"] = Field(
        default="uniform", description="how the final density is shared out over layers"
    )


class Tickets(OwnMasks):
    """Masked averaging over clients that prune the whole model, step by step."""

    Settings: type[StrategySettings] = TicketSettings
    sparser = "--set strategy.name=static --set strategy.density={}"

    def first_mask(self, client: int) -> Mask:
        """Return the mask that keeps everything."""
        return Mask.full(self.task.shapes)

    @property
    def work(self) -> float:
        """The training, three passes, and one test of the client's training samples."""
        return 1 + 1 / (3 * self.task.config.client.local_epochs)

    def demands(self, density: float) -> Demands:
        """Return dense training: a client is asked for it until it prunes."""
        return [(self.own_plan(1), None)]
