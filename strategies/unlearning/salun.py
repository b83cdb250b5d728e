"""SalUn (Fan et al., ICLR 2024): only the weights that matter to the forgotten data are changed.

Round 1 asks the clients that hold data to be forgotten for the gradient of its loss; the weights
of largest |gradient| are salient (their threshold is a rank here). Then these alone are trained,
on random labels of the forgotten data and on the retained data.
"""

from collections.abc import Sequence
from typing import Any, ClassVar

import numpy as np
from flwr.app import ArrayRecord
from pydantic import Field

from fedsparse import wire
from fedsparse.config import Finite
from fedsparse.messages import MOVABLE, Plan
from fedsparse.sparsity import Mask, State, top
from strategies.held import encoded
from strategies.replies import Reply
from strategies.sums import adds_up
from strategies.task import Task
from strategies.unlearning.base import Unlearning, UnlearningSettings


class SalUnSettings(UnlearningSettings):
    """Keys of `[strategy]` for salun."""

    saliency: Finite = Field(
        default=0.5, gt=0, le=1, description="fraction of the kept weights that are trained"
    )


class SalUn(Unlearning):
    """Train the salient weights alone, on random labels of what is to be forgotten."""

    Settings = SalUnSettings
    program = "salun"
    targets: ClassVar[frozenset[str]] = frozenset({"class", "samples"})
    needs_forgotten: ClassVar[bool] = True
    needs_classes: ClassVar[bool] = True
    knob: ClassVar[str] = "saliency"
    grid: ClassVar[tuple[float, ...]] = (0.1, 0.3, 0.5, 0.9)
    rounds: ClassVar[int] = 5
    least_rounds: ClassVar[int] = 2

    def __init__(self, task: Task) -> None:
        super().__init__(task)
        self.salient: Mask | None = None
        """Covers all parameters."""

    def asks_holders(self, round_number: int) -> bool:
        """Only who holds data to be forgotten knows its gradient."""
        return round_number == 1

    def plan(self, round_number: int) -> Plan:
        """Ask for the gradient, then for training."""
        plan = super().plan(round_number)
        return self.exactly(round_number) if round_number == 1 else plan

    def beside(self, round_number: int) -> dict[str, ArrayRecord]:
        """Send which weights are salient, once that is known."""
        if round_number == 1:
            return {}
        assert self.salient is not None
        return {MOVABLE: wire.pack(wire.encode_mask(self.salient))}

    @adds_up
    def aggregate(self, round_number: int, replies: Sequence[Reply]) -> None:
        """Find the salient weights by the mean gradient; later take the mean of models."""
        mean = self.mean(replies)
        if round_number == 1:
            self.salient = self.most_salient(mean)
        else:
            self.state = mean

    def most_salient(self, gradient: State) -> Mask:
        """Return the mask of the kept parameters with the largest |gradient|."""
        shapes = {name: tuple(p.shape) for name, p in self.task.model.named_parameters()}
        sizes = {name: np.abs(gradient[name]) for name in shapes}
        for name, bits in () if self.mask is None else self.mask.items():
            sizes[name] = np.where(bits, sizes[name], np.float32(-1))
        flat = np.concatenate([size.reshape(-1) for size in sizes.values()])
        kept = int(np.count_nonzero(flat >= 0))
        chosen = top(flat, max(1, round(float(self.settings.saliency) * kept)))
        parts = np.split(chosen, np.cumsum([size.size for size in sizes.values()])[:-1])
        found = zip(shapes.items(), parts, strict=True)
        return Mask.from_arrays({name: part.reshape(shape) for (name, shape), part in found})

    def state_dict(self) -> dict[str, Any]:
        """Add which weights are salient."""
        salient = None if self.salient is None else encoded(self.salient)
        return {**super().state_dict(), "salient": salient}

    def load_state_dict(self, saved: dict[str, Any]) -> None:
        """Take which weights are salient, too."""
        super().load_state_dict(saved)
        shapes = {name: tuple(p.shape) for name, p in self.task.model.named_parameters()}
        content = saved["salient"]
        self.salient = None if content is None else wire.decode_mask(content, shapes)
