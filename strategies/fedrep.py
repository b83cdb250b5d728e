"""FedRep (Collins et al., ICML 2021; arXiv 2102.07078): a shared representation, personal heads.

In each round a client first trains its head, the last layer, on the body that it was sent, then
the body under that head. The body is averaged, the head stays. FedPer trains both together.
"""

from pydantic import Field

from strategies.personal import DenseSettings, PersonalStrategy


class FedRepSettings(DenseSettings):
    """Keys of `[strategy]` for fedrep."""

    head_epochs: int = Field(default=5, ge=1, description="of the head, before those of the body")


class FedRep(PersonalStrategy):
    """FedAvg over the body; each client trains a head for it and keeps that."""

    Settings = FedRepSettings
    program = "fedrep"
    part = "body"
    global_model = False

    @property
    def work(self) -> float:
        """What both phases compute: gradients of frozen weights are left out.

        A head's epoch takes a forward pass and the head's own gradient, a body's epoch all but
        that. The frozen part holds no gradients either, which the memory figure does not credit.
        """
        cost, epochs = self.task.cost, self.task.config.client.local_epochs
        forward, head = cost.forward_flops(), cost.layers[-1].forward_flops
        flops = epochs * (3 * forward - head) + self.settings.head_epochs * (forward + head)
        return float(flops / (3 * forward * epochs))
