"""What trains a client's model: torch, or the native kernels; chosen once for a run.

Both are used the same way: a `Backend` makes a `LocalModel` of a received state, which is
trained, tested, searched for gradients, and read out.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Protocol

import numpy as np

from fedsparse.config import ClientConfig, Config
from fedsparse.data import Dataset
from fedsparse.errors import ConfigError
from fedsparse.kernels import library
from fedsparse.kernels.nodes import Graph, Uncovered
from fedsparse.kernels.rule import Rule, measured
from fedsparse.sparsity import Mask, State
from fedsparse.training.native import NativeModel
from fedsparse.training.precision import caveat
from fedsparse.training.results import Evaluated, Top, Trained

if TYPE_CHECKING:
    from torch import nn


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

    def measure(self, data: Dataset) -> State:
        """Set BatchNorm's running statistics to those of one batch, and return them."""
        ...

    def statistics(self) -> State:
        """Return BatchNorm's running statistics by name."""
        ...

    def kept(self) -> State:
        """Return the state, of masked tensors the kept values alone, in order."""
        ...

    def whole(self) -> State:
        """Return the state as whole tensors, zero where pruned."""
        ...


@dataclass(frozen=True)
class Unbuilt:
    """A model that is known without its module, which is made where torch is to train."""

    graph: Graph
    make: "Callable[[], nn.Module]"


class Backend:
    """What trains one model under one configuration; `module` is shared by torch's clients."""

    def __init__(
        self,
        module: "nn.Module | Unbuilt",
        input_shape: tuple[int, ...],
        settings: ClientConfig,
    ) -> None:
        self._given = module
        self.input_shape = input_shape
        self.settings = settings

    @cached_property
    def module(self) -> "nn.Module":
        """The torch module."""
        return self._given.make() if isinstance(self._given, Unbuilt) else self._given

    @cached_property
    def graph(self) -> Graph:
        """The module as the kernels read it; raises Uncovered."""
        if isinstance(self._given, Unbuilt):
            return self._given.graph
        from fedsparse.kernels.graph import derive

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
        module = self.module
        from fedsparse.training.torch_model import TorchModel

        return TorchModel(module, state, mask)


def resolve(
    config: Config, module: "nn.Module", input_shape: tuple[int, ...], *, settle: bool = True
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
