"""A client's model as a torch module: the reference, and what trains where the kernels don't."""

from collections.abc import Mapping

import numpy as np
from torch import nn

from fedsparse import models
from fedsparse.config import ClientConfig
from fedsparse.data import Dataset
from fedsparse.sparsity import Mask, State
from fedsparse.training import batchnorm, growth, local
from fedsparse.training.results import Evaluated, Top, Trained


class TorchModel:
    """A torch module that holds one client's state: the reference."""

    def __init__(self, module: nn.Module, state: State, mask: Mask | None) -> None:
        models.load_state(module, state)
        self.module = module
        self.mask = mask

    def train(
        self,
        data: Dataset,
        settings: ClientConfig,
        *,
        rng: np.random.Generator,
        lr: float | None = None,
        epochs: int | None = None,
        proximal_mu: float = 0.0,
        l1: float = 0.0,
        optimizer_state: Mapping[str, State] | None = None,
        lr_key: str = "client.lr",
    ) -> Trained:
        """Train in place with masked gradients."""
        return local.train(
            self.module,
            data,
            settings,
            rng=rng,
            mask=self.mask,
            lr=lr,
            epochs=epochs,
            proximal_mu=proximal_mu,
            l1=l1,
            optimizer_state=optimizer_state,
            lr_key=lr_key,
        )

    def evaluate(self, data: Dataset) -> Evaluated:
        """Test in evaluation mode."""
        return local.evaluate(self.module, data)

    def top_gradients(self, data: Dataset, counts: Mapping[str, int]) -> dict[str, Top]:
        """Return by layer the largest gradients of pruned weights on one batch."""
        assert self.mask is not None
        return growth.top_gradients(self.module, self.mask, data, counts)

    def measure(self, data: Dataset) -> State:
        """Set BatchNorm's running statistics to those of one batch, and return them."""
        return batchnorm.measure(self.module, local.tensors(data)[0])

    def statistics(self) -> State:
        """Return BatchNorm's running statistics by name."""
        return batchnorm.statistics(self.module)

    def kept(self) -> State:
        """Return the state, of masked tensors the kept values alone."""
        return self.whole() if self.mask is None else self.mask.take(self.whole())

    def whole(self) -> State:
        """Return the state as whole tensors."""
        return models.get_state(self.module)
