"""Ditto (Li et al., ICML 2021; arXiv 2012.04221): a personal model beside the global one.

The global model is FedAvg's, to the bit. Each client keeps a model of its own, which a proximal
term pulls to the global model that it is sent; only what FedAvg sends travels.
"""

from pydantic import Field

from fedsparse.config import ClientConfig, Finite
from fedsparse.errors import ConfigError
from strategies.personal import DenseSettings, PersonalStrategy
from strategies.task import Task


class DittoSettings(DenseSettings):
    """Keys of `[strategy]` for ditto."""

    personal_lambda: Finite = Field(
        default=0.1, ge=0, description="pull of the personal model to the global one"
    )
    personal_epochs: int = Field(default=1, ge=1, description="of the personal model, a round")


class Ditto(PersonalStrategy):
    """FedAvg, and on each client a personal model near the global one."""

    Settings = DittoSettings
    program = "ditto"

    def __init__(self, task: Task) -> None:
        super().__init__(task)
        check_pull("personal_lambda", self.settings.personal_lambda, task.config.client)

    @property
    def held_entries(self) -> int:
        """The other model: the received one while the personal one trains, and then that."""
        return self.task.schema.entries

    @property
    def work(self) -> float:
        """The global model's epochs, and the personal model's."""
        return float(1 + self.settings.personal_epochs / self.task.config.client.local_epochs)


def check_pull(key: str, pull: float, client: ClientConfig) -> None:
    """Raise ConfigError for a proximal term that gradient steps overshoot ever further.

    Steps of SGD with momentum beta on lambda/2 ||v - w||^2 diverge from lr lambda = 2 (1 + beta).
    """
    most = 2 * (1 + client.momentum)
    if client.optimizer == "sgd" and client.lr * pull >= most:
        raise ConfigError(
            f"strategy.{key} = {pull:g}: with client.lr = {client.lr:g} the pull overshoots; "
            f"lower it below {most / client.lr:g}, or lower client.lr"
        )
