"""FjORD (Horvath et al., NeurIPS 2021; arXiv 2102.13451): ordered dropout.

Each client holds the first channels of its own width, and trains at each local step the first
channels of a width drawn up to that one. So every width is a model of use within the largest;
the server averages each entry over the clients that hold it.
"""

from pydantic import Field

from fedsparse.config import Density, Finite
from fedsparse.errors import ConfigError
from strategies.task import Task
from strategies.width import WidthSettings, WidthStrategy


class FjordSettings(WidthSettings):
    """Keys of `[strategy]` for fjord."""

    widths: list[Density] = Field(
        default=[1.0, 0.8, 0.6, 0.4, 0.2],
        min_length=1,
        description="fractions of each hidden layer's channels, a client's own and those drawn",
    )
    weighted: bool = Field(default=True, description="clients count by their samples, not alike")
    distillation: Finite = Field(
        default=0.5,
        ge=0,
        le=1,
        description="share of a narrow step's loss from its full width, trained beside; 0 is off",
    )


class Fjord(WidthStrategy):
    """Averaging over prefixes that their clients trained by ordered dropout."""

    Settings = FjordSettings
    program = "fjord"
    clients_keep = False

    def __init__(self, task: Task) -> None:
        super().__init__(task)
        if self.settings.distillation and task.data.classes == 1:
            raise ConfigError(
                f"strategy.distillation = {self.settings.distillation:g} compares the chances of "
                "classes, which a regression has not; set it to 0"
            )

    @property
    def work(self) -> float:
        """At most: each step at the full width, and with a teacher twice."""
        return 2.0 if self.settings.distillation else 1.0

    def budget_of(self, client: int) -> float:
        """Return the client's width."""
        return self.width_of(client)
