"""FedEM (Marfoq et al., NeurIPS 2021; arXiv 2108.10252): each client a mixture of a few models.

All clients share M component models, which begin unlike each other and all travel every round.
A client weighs them by EM on its own data and uses the mixture of what they say.
"""

from pydantic import Field

from fedsparse import models
from fedsparse.parts import COPIES, copied
from fedsparse.sparsity import State
from strategies.addressing import MeteredGrid
from strategies.personal import DenseSettings, PersonalStrategy
from strategies.task import Task


class FedEMSettings(DenseSettings):
    """Keys of `[strategy]` for fedem."""

    components: int = Field(default=3, ge=1, le=16, description="M, models that clients mix")


class FedEM(PersonalStrategy):
    """FedAvg over the components of a mixture; its weights stay with each client."""

    Settings = FedEMSettings
    program = "fedem"
    global_model = False

    def __init__(self, task: Task) -> None:
        self.part = f"{COPIES}{task.config.strategy['components']}"
        super().__init__(task)

    @property
    def held_entries(self) -> int:
        """The components beside the one that trains; responsibilities, M a sample, are left out."""
        return int(self.settings.components - 1) * self.task.schema.entries

    @property
    def work(self) -> float:
        """Each component's training, and a forward pass before it for the responsibilities."""
        epochs = self.task.config.client.local_epochs
        return float(self.settings.components * (1 + 1 / (3 * epochs)))

    def prepare(self, grid: MeteredGrid) -> None:
        """Draw the components' initial weights; the first has those of other strategies."""
        self.state = {
            copied(number, name): value
            for number in range(self.settings.components)
            for name, value in first_weights(self.task, number).items()
        }


def first_weights(task: Task, number: int) -> State:
    """Return a component's initial state: components that begin alike would stay alike."""
    if number == 0:
        return models.get_state(task.model)
    model = models.build_seeded(
        task.config.model.name,
        input_shape=task.data.input_shape,
        classes=task.data.classes,
        width=task.config.model.width,
        seed=int(task.rng(0, f"component {number}").integers(2**31)),
    )
    return models.get_state(model)
