"""Sub-FedAvg (Vahidian et al. 2021): personal subnetworks found by iterative pruning.

After its local epochs a client drops the smallest weights of each layer, if the masks that this
gives after the first and the last epoch differ enough, and the pruned model is accurate enough.
The server averages each weight over the clients that keep it. Here by samples; the accuracy is
that on the client's training samples, where the authors' code looks at its test. The hybrid
variant, which also prunes channels, is left out.
"""

from pydantic import Field

from strategies.tickets import Tickets, TicketSettings


class SubFedAvgSettings(TicketSettings):
    """Keys of `[strategy]` for sub-fedavg."""

    distance_threshold: float = Field(
        default=1e-4,
        ge=0,
        lt=1,
        description="mean fraction of a layer's mask that must move between first and last epoch",
    )


class SubFedAvg(Tickets):
    """Masked averaging of subnetworks that clients prune after training."""

    Settings = SubFedAvgSettings
    program = "sub-fedavg"
