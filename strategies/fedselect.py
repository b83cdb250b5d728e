"""FedSelect (Tamirisa et al., CVPR 2024; arXiv 2404.02478): weights that move most turn personal.

Clients begin with all weights shared. Each round a client keeps some more of them, those that its
training has changed most; a shared weight is the mean over the clients that still share it.
Biases and normalisation stay shared.
"""

import math
from functools import cached_property

from pydantic import Field

from fedsparse.config import Finite
from fedsparse.sparsity import Mask
from strategies.own_masks import OwnMasks
from strategies.personal import DenseSettings, PersonalStrategy

WORD_BITS = 32
"""Bits of a mask that take the memory of one number."""


class FedSelectSettings(DenseSettings):
    """Keys of `[strategy]` for fedselect."""

    personal_rate: Finite = Field(
        default=0.05, ge=0, le=1, description="of a layer's weights that turn personal each round"
    )
    personal_limit: Finite = Field(
        default=0.5, ge=0, le=1, description="of a layer's weights that may be personal"
    )
    personal_epochs: int = Field(
        default=1, ge=1, description="of the personal weights, before those of the shared"
    )


class FedSelect(OwnMasks, PersonalStrategy):
    """Dense models of which each client shares ever less."""

    Settings = FedSelectSettings
    program = "fedselect"
    global_model = False

    @cached_property
    def _all(self) -> Mask:
        return Mask.full(self.task.shapes)

    def first_mask(self, client: int) -> Mask:
        """Return the mask that shares all weights."""
        return self._all

    def kept(self) -> None:
        """Say that a client trains the dense model: masks tell what travels."""
        return

    @property
    def density(self) -> float:
        """1: weights that are not shared are their client's own, not pruned."""
        return 1.0

    @property
    def layer_density(self) -> dict[str, float]:
        """1 in each layer."""
        return dict.fromkeys(self.task.prunable, 1.0)

    @property
    def held_entries(self) -> int:
        """The weights before the round, to tell what changed, and a bit for each."""
        weights = self._all.size
        return weights + math.ceil(weights / WORD_BITS)

    @property
    def work(self) -> float:
        """The epochs of the personal weights, and of the shared ones."""
        return float(1 + self.settings.personal_epochs / self.task.config.client.local_epochs)
