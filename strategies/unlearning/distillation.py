"""Forgetting by distillation: Bad-T (Chundawat et al., AAAI 2023) and SCRUB (Kurmanji et al. 2023).

The student begins as the parent. With Bad-T it follows the parent, the competent teacher, on the
retained data, and the initial model, which knows nothing, on the data to be forgotten. With SCRUB
it moves away from the parent on that data in the first rounds, and follows it on the rest in all.
"""

from typing import ClassVar, Literal

from flwr.app import ArrayRecord
from pydantic import Field

from fedsparse import wire
from fedsparse.config import Finite
from fedsparse.messages import TEACHER
from strategies.unlearning.base import Unlearning, UnlearningSettings


class DistillationSettings(UnlearningSettings):
    """Keys of `[strategy]` for distillation."""

    teacher: Literal["bad", "scrub"] = Field(
        default="bad", description="on forgotten data: a bad one, or away from the good (scrub)"
    )
    hard_weight: Finite = Field(
        default=1.0, ge=0, le=100, description="scrub: of true labels beside the teacher's"
    )
    max_rounds: int = Field(default=4, ge=0, description="scrub: of the first, those with steps up")
    bound: Finite = Field(
        default=1.0, gt=0, le=100, description="scrub: divergence at which those end, in log C"
    )


class Distillation(Unlearning):
    """Learn from the old model on retained data, and from a bad one on what is to be forgotten."""

    Settings = DistillationSettings
    program = "distillation"
    targets: ClassVar[frozenset[str]] = frozenset({"class", "samples"})
    needs_forgotten: ClassVar[bool] = True
    needs_classes: ClassVar[bool] = True
    rounds: ClassVar[int] = 5

    def beside(self, round_number: int) -> dict[str, ArrayRecord]:
        """Send the competent teacher: clients keep nothing between rounds."""
        parent, values = self.parent, self.settings.values
        return {TEACHER: wire.pack(wire.encode(parent.state, mask=parent.mask, values=values))}

    @property
    def held_entries(self) -> int:
        """The teacher, and what it answers."""
        return self.task.schema.entries

    @property
    def work(self) -> float:
        """The teacher's answers, once, beside the training."""
        return 1 + 1 / (3 * self.task.config.client.local_epochs)
