"""What LotteryFL and Sub-FedAvg share at the server: clients prune a dense model, each its own way.

Every client starts with the whole model. Its mask shrinks when its program says so, down to
the density that was asked for, and never grows again.
"""

from dataclasses import replace
from typing import Literal

from pydantic import Field

from fedsparse.config import StrategySettings
from fedsparse.messages import Plan
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

    @property
    def held_entries(self) -> int:
        """Numbers that a client holds beside what training the model takes."""
        return 0

    def first_mask(self, client: int) -> Mask:
        """Return the mask that keeps everything."""
        return Mask.full(self.task.shapes)

    def own_plan(self, round_number: int) -> Plan:
        """Return a plan that counts one test of the client's training samples with the training.

        A test is a forward pass; training is three.
        """
        work = 1 + 1 / (3 * self.task.config.client.local_epochs)
        return replace(super().own_plan(round_number), held=self.held_entries, work=work)

    def demands(self, density: float) -> Demands:
        """Return dense training: a client is asked for it until it prunes."""
        return [(self.own_plan(1), None)]
