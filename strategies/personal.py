"""What methods share that leave each client with a model of its own.

The server's side of most is FedAvg over what travels: the client's program does the rest. Such
a method says which program that is, which part of the model travels, and what it costs a client
beyond plain training.
"""

from fedsparse.config import Density, StrategySettings
from fedsparse.errors import ConfigError
from strategies.base import SparseStrategy
from strategies.seats import Demands
from strategies.task import Task


class DenseSettings(StrategySettings):
    """Keys of `[strategy]` for a method whose models are dense."""

    density: Density = 1.0


class PersonalStrategy(SparseStrategy):
    """FedAvg over the part of a dense model that travels."""

    Settings = DenseSettings
    sparser = "--set strategy.name=static --set strategy.density={}"

    def __init__(self, task: Task) -> None:
        super().__init__(task)
        if self.settings.density != 1.0:
            name = self.settings.name
            raise ConfigError(
                f"strategy.density = {self.settings.density:g}: {name} is dense; leave density "
                "out, or choose a sparse strategy, such as pfedgate"
            )

    def demands(self, density: float) -> Demands:
        """Return dense training with all that a client holds."""
        return [(self.own_plan(1), None)]
