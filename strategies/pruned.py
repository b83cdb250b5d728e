"""What a strategy prunes: the pattern, and the layers that it is of; the others stay dense.

Masks cover all prunable weights, so that a run's density keeps its meaning; of layers that are not
pruned they keep everything.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Literal, Self

import numpy as np
from numpy.typing import NDArray
from pydantic import Field, field_validator

from fedsparse import models
from fedsparse.config import StrategySettings
from fedsparse.errors import ConfigError, FedSparseError
from fedsparse.sparsity import UNSTRUCTURED, Mask, Pattern, mask_from_scores, patterns, top_mask
from fedsparse.sparsity.allocation import ALLOCATIONS, erk, layer_counts
from fedsparse.sparsity.compose import GLOBAL
from strategies.seats import Kept
from strategies.task import Task


class PrunedSettings(StrategySettings):
    """Keys of `[strategy]` that say what is pruned, and how."""

    pattern: str = Field(
        default="unstructured",
        min_length=1,
        max_length=40,
        description=f"{', '.join(patterns.EXAMPLES)}, with other numbers",
    )
    layers: Literal["all", "pointwise"] = Field(
        default="all", description="what density is of; pointwise: 1x1 convolutions, others dense"
    )

    @field_validator("pattern")
    @classmethod
    def _is_named(cls, text: str) -> str:
        try:
            patterns.named(text)
        except FedSparseError as error:
            raise ValueError(str(error)) from None
        return text


@dataclass(frozen=True)
class Pruned:
    """The layers that are pruned, with the shapes of all prunable weights around them."""

    pattern: Pattern
    names: tuple[str, ...]
    every: Mapping[str, tuple[int, ...]]

    @classmethod
    def of(cls, task: Task, settings: PrunedSettings, allocation: str) -> Self:
        """Return what settings say of a task's model.

        Raises ConfigError where it has no such layers, and for a pattern that does not go with
        the allocation.
        """
        pattern = patterns.named(settings.pattern)
        if allocation == GLOBAL and pattern != UNSTRUCTURED:
            raise ConfigError(
                f"strategy.pattern = '{settings.pattern}': a global ranking is of single weights; "
                "set strategy.allocation to uniform, er or erk"
            )
        names = task.prunable
        if settings.layers == "pointwise":
            names = models.pointwise(task.model)
            if not names:
                raise ConfigError(
                    f"strategy.layers = 'pointwise': model '{task.config.model.name}' has no 1x1 "
                    "convolution; leave it out, or choose mobilenet-v1"
                )
        elif pattern.spares_outputs:
            names = names[:-1]  # the last layer's outputs are the classes
            if not names:
                raise ConfigError(
                    f"strategy.pattern = '{settings.pattern}': the model's only layer gives its "
                    "outputs, which all stay; choose another pattern or a deeper model"
                )
        return cls(pattern, tuple(names), task.shapes)

    @cached_property
    def shapes(self) -> dict[str, tuple[int, ...]]:
        """Shapes of the layers that are pruned."""
        return {name: self.every[name] for name in self.names}

    def counts(self, density: float, rule: str = "erk") -> Kept:
        """Return how many weights of each layer are kept at most at a density of those pruned.

        For a ranking of all layers together, which is not known beforehand, ERK stands.
        """
        shares = ALLOCATIONS.get(rule, erk)(self.shapes, density)
        kept = {name: math.prod(shape) for name, shape in self.every.items()}
        for name, count in layer_counts(self.shapes, shares).items():
            kept[name] = self.pattern.most(self.every[name], count)
        return kept

    def from_scores(self, scored: Mapping[str, NDArray[Any]], density: float, rule: str) -> Mask:
        """Return the mask of the highest scores at a density; other layers' are ignored."""
        own = {name: scored[name] for name in self.names}
        return self.whole(mask_from_scores(own, density, rule, self.pattern))

    def top(self, scored: Mapping[str, NDArray[Any]], counts: Kept) -> Mask:
        """Return the mask of the `counts[layer]` highest scores of each layer that is pruned."""
        return self.whole(top_mask({n: scored[n] for n in self.names}, counts, self.pattern))

    def whole(self, mask: Mask) -> Mask:
        """Return a mask of the layers that are pruned with the others, of which all is kept."""
        return Mask.from_arrays(
            {n: mask[n] if n in mask else np.ones(shape, bool) for n, shape in self.every.items()}
        )
