"""pFedMe (Dinh et al., NeurIPS 2020; arXiv 2006.08848): personal models by Moreau envelopes.

A client's personal model theta minimises its loss near the shared model w; w is stepped to theta
batch by batch, and the server mixes the mean of the clients' w with its own. Clients weigh in
by their samples, as in FedAvg.
"""

from collections.abc import Sequence

import numpy as np
from pydantic import Field

from fedsparse.config import Finite
from fedsparse.errors import ConfigError
from fedsparse.sparsity import State
from strategies.ditto import check_pull
from strategies.personal import DenseSettings, PersonalStrategy
from strategies.replies import Reply
from strategies.sums import adds_up
from strategies.task import Task


class PFedMeSettings(DenseSettings):
    """Keys of `[strategy]` for pfedme."""

    personal_lambda: Finite = Field(
        default=15.0, gt=0, description="pull of the personal model to the shared one"
    )
    inner_steps: int = Field(default=5, ge=1, description="K, of the personal model on each batch")
    outer_lr: Finite = Field(
        default=0.05, gt=0, description="eta; times lambda, the way that w goes to theta"
    )
    beta: Finite = Field(default=1.0, gt=0, le=4, description="of the mean in the server's mixture")


class PFedMe(PersonalStrategy):
    """A shared model that follows the clients' personal ones."""

    Settings = PFedMeSettings
    program = "pfedme"

    def __init__(self, task: Task) -> None:
        super().__init__(task)
        pull, rate = self.settings.personal_lambda, self.settings.outer_lr
        plain = task.config.client.model_copy(update={"optimizer": "sgd", "momentum": 0.0})
        check_pull("personal_lambda", pull, plain)
        if rate * pull > 1:
            raise ConfigError(
                f"strategy.outer_lr = {rate:g}: with personal_lambda = {pull:g} the shared model "
                f"steps past the personal one; lower outer_lr to {1 / pull:.3g} or less"
            )

    @property
    def held_entries(self) -> int:
        """The shared model w, beside theta, which trains.

        Where the run's optimizer has momentum, w takes the place of that, which is priced
        already: the inner steps have none.
        """
        client = self.task.config.client
        return 0 if client.momentum or client.optimizer == "adam" else self.task.schema.entries

    @property
    def work(self) -> float:
        """K steps on each batch."""
        return float(self.settings.inner_steps)

    @adds_up
    def aggregate(self, round_number: int, replies: Sequence[Reply]) -> None:
        """Mix the clients' mean into the shared model."""
        self.state = mixture(self.state, self.mean(replies), self.settings.beta)


def mixture(old: State, mean: State, beta: float) -> State:
    """Return (1 - beta) w + beta mean; of BatchNorm's statistics the mean.

    With beta beyond 1 a variance could fall below zero.
    """
    if beta == 1:
        return mean
    statistics = ("running_mean", "running_var")
    share = np.float32(beta)
    return {
        name: new if name.endswith(statistics) else (1 - share) * old[name] + share * new
        for name, new in mean.items()
    }
