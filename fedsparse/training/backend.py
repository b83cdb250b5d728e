"""What trains a client's model: torch, or the native kernels; chosen once for a run.

Both are used the same way: a `Backend` makes a `LocalModel` of a received state, which is
trained, tested, searched for gradients, and read out.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Protocol

import numpy as np
from torch import nn

from fedsparse import models
from fedsparse.config import ClientConfig, Config
from fedsparse.data import Dataset
from fedsparse.errors import ConfigError
from fedsparse.kernels import library
from fedsparse.kernels.graph import derive
from fedsparse.kernels.nodes import Graph, Uncovered
from fedsparse.kernels.rule import Rule, measured
from fedsparse.sparsity import Mask, State
from fedsparse.training import growth, local
from fedsparse.training.growth import Top
from fedsparse.training.local import Evaluated, Trained
from fedsparse.training.native import NativeModel
from fedsparse.training.precision import caveat


class LocalModel(Protocol):
    """A model of one client, from the message that brings it to the reply."""

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
        """Train in place; see `local.train`."""
        ...

    def evaluate(self, data: Dataset) -> Evaluated:
        """Test with running statistics."""
        ...

    def top_gradients(self, data: Dataset, counts: Mapping[str, int]) -> dict[str, Top]:
        """Return by layer the largest gradients of pruned weights on one batch."""
        ...

    def kept(self) -> State:
        """Return the state, of masked tensors the kept values alone, in order."""
        ...

    def whole(self) -> State:
        """Return the state as whole tensors, zero where pruned."""
        ...


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

    def kept(self) -> State:
        """Return the state, of masked tensors the kept values alone."""
        return self.whole() if self.mask is None else self.mask.take(self.whole())

    def whole(self) -> State:
        """Return the state as whole tensors."""
        return models.get_state(self.module)


@dataclass(frozen=True, eq=False)
class Backend:
    """What trains one model under one configuration; `module` is shared by torch's clients."""

    module: nn.Module
    input_shape: tuple[int, ...]
    settings: ClientConfig

    @cached_property
    def graph(self) -> Graph:
        """The module as the kernels read it; raises Uncovered."""
        return derive(self.module, self.input_shape)

    @cached_property
    def native(self) -> bool:
        """Whether the kernels train; raises ConfigError where they cannot and were asked for."""
        if self.settings.backend == "torch":
            return False
        reason = self.lack
        if reason and self.settings.backend == "native":
            raise ConfigError(
                f"client.backend = 'native': {reason}; set client.backend to 'auto' or 'torch'"
            )
        return not reason

    @cached_property
    def lack(self) -> str:
        """Why the kernels cannot train this model here; '' if they can."""
        if self.settings.precision != "f32":
            return f"client.precision = '{self.settings.precision}' is torch's alone"
        try:
            library.load()
            _ = self.graph
        except (library.Unavailable, Uncovered) as error:
            return str(error)
        return ""

    @cached_property
    def rule(self) -> Rule:
        """Below which densities layers are computed sparsely: as set, or this machine's."""
        linear, conv = self.settings.sparse_linear_below, self.settings.sparse_conv_below
        if linear is None or conv is None:
            found = measured()
            linear = found.linear_below if linear is None else linear
            conv = found.conv_below if conv is None else conv
        return Rule(linear, conv)

    def load(self, state: State, mask: Mask | None = None) -> LocalModel:
        """Return a client's model; one of torch lives until the next is loaded."""
        if self.native:
            return NativeModel(self.graph, self.rule, state, mask)
        return TorchModel(self.module, state, mask)


def resolve(
    config: Config, module: nn.Module, input_shape: tuple[int, ...], *, settle: bool = True
) -> tuple[Config, str]:
    """Return the configuration with its backend settled, and a line that says what trains.

    What is settled is written out, so that each worker, and a resumed run, trains the same
    way. Not to `settle` leaves `auto` to each client: real nodes differ. Raises ConfigError for
    native training that cannot be had.
    """
    asked = config.client.backend
    if config.engine.device != "cpu" and asked == "auto":
        return _settled(config, backend="torch"), f"torch on {config.engine.device}"
    backend = Backend(module, input_shape, config.client)
    if not backend.native:
        why = "" if asked == "torch" else backend.lack
        said = "; ".join(filter(None, (why, caveat(config.client.precision))))
        settled = _settled(config, backend="torch" if settle else asked)
        return settled, f"torch: {said}" if said else "torch"
    densities = {
        "sparse_linear_below": backend.rule.linear_below,
        "sparse_conv_below": backend.rule.conv_below,
    }
    settled = _settled(config, backend="native" if settle else asked, **densities)
    return settled, f"native kernels ({library.describe()['instruction_set']})"


def _settled(config: Config, **keys: object) -> Config:
    """Return the configuration with keys of `[client]` set."""
    return config.model_copy(update={"client": config.client.model_copy(update=keys)})
