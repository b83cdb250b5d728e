"""FedAvg with fine-tuning: the baseline that personal methods must beat (Cheng et al. 2021).

Rounds are FedAvg's. Whoever uses the model first trains it for some epochs on its own data; what
that gives is the client's, and goes nowhere.
"""

from dataclasses import replace

from pydantic import Field

from fedsparse.messages import Plan
from strategies.fedavg import FedAvg, FedAvgSettings


class FineTuneSettings(FedAvgSettings):
    """Keys of `[strategy]` for finetune."""

    finetune_epochs: int = Field(default=1, ge=0, description="of local training before use")


class FineTune(FedAvg):
    """Dense federated averaging, tested after local fine-tuning."""

    Settings = FineTuneSettings
    program = "finetune"
    clients_keep = False
    trains_plainly = True

    def plan(self, round_number: int) -> Plan:
        """Ask for FedAvg's training; fine-tuning is for tests."""
        return replace(super().plan(round_number), program="")
