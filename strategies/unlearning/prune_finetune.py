"""Prune first, then unlearn (Jia et al., NeurIPS 2023): forgetting is easier for a sparse model.

The parent's model is pruned in one shot, by magnitude or by SynFlow, and fine-tuned on the
retained data under the fixed mask. A sparse parent is pruned within its own mask.
"""

from typing import ClassVar, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from pydantic import Field

from fedsparse import models
from fedsparse.config import Density
from fedsparse.errors import ConfigError
from fedsparse.sparsity import Mask, allocation, mask_from_scores, top_mask
from fedsparse.sparsity.compose import GLOBAL, SYNFLOW_STEPS
from fedsparse.sparsity.criteria import scores
from strategies.addressing import MeteredGrid
from strategies.seats import Demands, erk_counts
from strategies.task import Task, masked
from strategies.unlearning.base import Unlearning, UnlearningSettings


class PruneFinetuneSettings(UnlearningSettings):
    """Keys of `[strategy]` for prune-finetune."""

    density: Density = Field(default=0.1, description="kept fraction of the prunable weights")
    criterion: Literal["magnitude", "synflow"] = Field(
        default="magnitude", description="what is kept: the highest of it"
    )
    allocation: Literal["uniform", "er", "erk", "global"] = Field(
        default="erk", description="how the density is shared out; global: all layers ranked"
    )


class PruneFinetune(Unlearning):
    """Prune the model in one shot, then fine-tune what is kept on the retained data."""

    Settings = PruneFinetuneSettings
    fits = frozenset({"batch", "density"})
    knob: ClassVar[str] = "density"
    grid: ClassVar[tuple[float, ...]] = (0.5, 0.2, 0.1, 0.05)
    rounds: ClassVar[int] = 8
    prunes: ClassVar[bool] = True
    sparser = "--set strategy.density={}"

    def __init__(self, task: Task) -> None:
        super().__init__(task)
        before = 1.0 if self.parent.mask is None else self.parent.mask.density
        if self.settings.density >= before:
            raise ConfigError(
                f"strategy.density = {self.settings.density:g}: the parent keeps {before:.4g} of "
                "its weights; set it lower, or choose fine-tuning"
            )

    @classmethod
    def strengths(cls, density: float) -> tuple[float, ...]:
        """Return the densities to try: those of the grid, of what the parent keeps."""
        return tuple(round(density * part, 6) for part in cls.grid)

    def alter(self, grid: MeteredGrid) -> None:
        """Score the parent's weights and keep the best of those that it keeps."""
        models.load_state(self.task.model, self.state)
        self.mask = self.pruned(self.parent.mask)
        self.state = masked(self.state, self.mask)

    def pruned(self, mask: Mask | None) -> Mask:
        """Return the mask of the highest scores: at once, or by SynFlow's steps to d^(k/100)."""
        steps = SYNFLOW_STEPS if self.settings.criterion == "synflow" else 1
        before = 1.0 if mask is None else mask.density
        for step in range(1, steps + 1):
            density = before * (self.settings.density / before) ** (step / steps)
            found = scores(
                self.settings.criterion,
                self.task.model,
                self.task.prunable,
                [(torch.zeros(1, *self.task.data.input_shape), torch.zeros(1))],
                rng=self.task.rng(0, "mask"),
                mask=mask,
            )
            mask = within(found, mask, density, self.settings.allocation)
        assert mask is not None
        return mask

    def demands(self, density: float) -> Demands:
        """Return plain training of what is kept."""
        return [(self.own_plan(1), erk_counts(self.task, density, self.settings.allocation))]


def within(
    scored: dict[str, NDArray[np.float32]], mask: Mask | None, density: float, rule: str
) -> Mask:
    """Return the mask of the highest scores at a density, of weights that another mask keeps.

    A layer of which that keeps fewer than its share keeps all of those.
    """
    if mask is None:
        return mask_from_scores(scored, density, rule)
    inside = {name: np.where(mask[name], score, -1.0) for name, score in scored.items()}
    if rule == GLOBAL:
        return mask_from_scores(inside, density, rule)
    shapes = {name: score.shape for name, score in scored.items()}
    counts = allocation.layer_counts(shapes, allocation.ALLOCATIONS[rule](shapes, density))
    kept = mask.layer_kept()
    return top_mask(inside, {name: min(count, kept[name]) for name, count in counts.items()})
