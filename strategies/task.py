"""The server's side of a run: its model, its own data, and what they are made of.

One `Task` is built from the configuration and shared by the strategy and the round
loop; clients build the same model from the same configuration.
"""

from collections.abc import Callable, Sequence
from copy import deepcopy
from dataclasses import dataclass, field
from functools import cached_property

import numpy as np
import torch
from torch import nn

from fedsparse import data, description, models, seeds, wire
from fedsparse.config import Config
from fedsparse.data import Dataset, FederatedData, nodes
from fedsparse.errors import ConfigError, ModelError
from fedsparse.sparsity import Mask, ModelCost, State
from fedsparse.training import backend
from fedsparse.training.backend import Backend
from fedsparse.training.local import Evaluated


@dataclass(frozen=True)
class Task:
    """A configuration with the data and the model that it names."""

    config: Config
    data: FederatedData
    model: nn.Module
    trains: str = "torch"
    """What trains, in words; the configuration's `[client]` says it in its keys."""
    left_out: set[int] = field(default_factory=set, compare=False)
    """Clients whose nodes have data that do not fit."""

    @classmethod
    def of(cls, config: Config, *, settle: bool = True) -> "Task":
        """Load the data and build the freshly initialised model, by the run's seed.

        What the configuration leaves to be chosen of training is chosen here, for all clients,
        unless it is not to `settle` for nodes that may differ.
        """
        torch.set_num_threads(1)
        federated = data.of(config)
        model = models.build_seeded(
            config.model.name,
            input_shape=federated.input_shape,
            classes=federated.classes,
            width=config.model.width,
            seed=config.run.seed,
        )
        _check_samples(config.model.name, model, federated.train)
        if len(federated.input_shape) == 3:
            model = model.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        config, trains = backend.resolve(config, model, federated.input_shape, settle=settle)
        return cls(config, federated, model, trains)

    @cached_property
    def backend(self) -> Backend:
        """What trains and tests models here, as it does at clients."""
        return Backend(self.model, self.data.input_shape, self.config.client)

    @cached_property
    def prunable(self) -> list[str]:
        """Names of the weights that masks cover, in state-dict order."""
        return models.prunable(self.model)

    @cached_property
    def shapes(self) -> dict[str, tuple[int, ...]]:
        """Shapes of the prunable weights by name."""
        return models.shapes(self.model, self.prunable)

    @cached_property
    def schema(self) -> wire.Schema:
        """Names and shapes of everything that travels."""
        return wire.Schema.of(models.get_state(self.model))

    def part(self, rule: str) -> wire.Schema:
        """Return names and shapes of a part of what travels; raises ConfigError for no part."""
        if not rule:
            return self.schema
        return wire.Schema(tuple(models.part_shapes(self.model, rule).items()))

    @cached_property
    def cost(self) -> ModelCost:
        """Arithmetic and memory of the model, layer by layer."""
        return ModelCost.of(self.model, self.data.input_shape)

    @cached_property
    def described(self) -> bytes | None:
        """What nodes need to train by the kernels without torch; None where torch is to train."""
        client = self.config.client
        if client.backend == "torch" or client.precision != "f32":
            return None
        return description.described(self.model, self.data.input_shape)

    @property
    def absent(self) -> frozenset[int]:
        """Clients that are never asked: forgotten, without training samples, or with unfit ones."""
        return self.data.absent | self.left_out

    @cached_property
    def present(self) -> Sequence[int]:
        """The clients that take part in training, ascending."""
        every = range(self.config.fleet.training_clients)
        absent = self.absent
        return [client for client in every if client not in absent] if absent else every

    @property
    def public(self) -> Dataset:
        """The server's one-shot data; raises ConfigError when the run has none."""
        if not len(self.data.public.y):
            if self.config.data.name == nodes.NAME:
                raise ConfigError(
                    f"strategy '{self.config.strategy['name']}' needs the server's own data with "
                    "these settings; set data.path to a file at the server, and "
                    "data.public_samples to how many of its samples are for this"
                )
            raise ConfigError(
                f"strategy '{self.config.strategy['name']}' needs the server's own data with these "
                "settings; set data.public_samples, for example --set data.public_samples=200"
            )
        return self.data.public

    def rng(self, round_number: int, purpose: str) -> np.random.Generator:
        """Return the server's random stream for one purpose in one round."""
        return seeds.stream(self.config.run.seed, round_number, seeds.SERVER, purpose)

    def pretrain(self, epochs: int, lr: float) -> State:
        """Train the dense model on the server's data and return its state.

        FedTiny, "setting": the server trains on its one-shot data before pruning.
        """
        if epochs:
            model = self.backend.load(models.get_state(self.model))
            model.train(
                self.public,
                self.config.client,
                rng=self.rng(0, "pretraining"),
                lr=lr,
                epochs=epochs,
                lr_key="strategy.pretrain_lr",
            )
            models.load_state(self.model, model.whole())
        return models.get_state(self.model)

    @cached_property
    def tester(self) -> Backend | None:
        """What tests models while others train: with a module of its own; None without a copy."""
        if self.backend.native:
            return self.backend
        try:
            return Backend(deepcopy(self.model), self.data.input_shape, self.config.client)
        except Exception:  # some layers, such as hooked ones, refuse to be copied
            return None

    def test_of(self, state: State, mask: Mask | None = None) -> Callable[[], Evaluated]:
        """Return a test of a state, zero where the mask prunes, on the held-out test set.

        The state may change afterwards. One test at a time, in any thread.
        """
        model = (self.tester or self.backend).load(state, mask)
        if self.tester is None:
            found = model.evaluate(self.data.test)
            return lambda: found
        return lambda: model.evaluate(self.data.test)

    def evaluate(self, state: State, mask: Mask | None = None) -> Evaluated:
        """Test a state now, as `test_of` does."""
        return self.test_of(state, mask)()


def _check_samples(name: str, model: nn.Module, train: Dataset) -> None:
    """Raise ModelError where tokens meet a model of numbers, or numbers one of tokens."""
    tokens = np.issubdtype(train.x.dtype, np.integer)
    if tokens == any(isinstance(module, nn.Embedding) for module in model.modules()):
        return
    if tokens:
        raise ModelError(
            f"model '{name}' takes numbers, and the samples are integers, which stand for tokens; "
            "save them as floats, such as x.astype('float32') / 255, or choose a model of tokens"
        )
    raise ModelError(f"model '{name}' takes tokens, and the samples are numbers; choose another")


def masked(state: State, mask: Mask | None) -> State:
    """Return a copy of a state with its pruned weights at zero."""
    copy = {name: value.copy() for name, value in state.items()}
    if mask is not None:
        mask.apply_(copy)
    return copy
