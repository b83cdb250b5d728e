"""Local training and evaluation by the native kernels: what is pruned is neither held nor computed.

A local round is one native call. Samples come in the order in which the torch backend takes
them, so both reach the same model within rounding.
"""

import math
from collections.abc import Mapping
from dataclasses import replace
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

from fedsparse.config import ClientConfig
from fedsparse.data import Dataset
from fedsparse.errors import DataError, TrainingError
from fedsparse.kernels import library
from fedsparse.kernels.nodes import Graph, Norm
from fedsparse.kernels.program import Optimizer, Slots, Values, program
from fedsparse.kernels.rule import Rule
from fedsparse.sparsity import Mask, State
from fedsparse.training.results import (
    Evaluated,
    Top,
    Trained,
    batches,
    check_loss,
    check_weights,
    spread_explained,
)


class NativeModel:
    """One client's model in the form of the kernels: kept weights and running statistics."""

    def __init__(self, graph: Graph, rule: Rule, state: State, mask: Mask | None) -> None:
        self.names = tuple(state)
        self.graph, self.rule, self.mask = graph, rule, mask
        self.program = program(graph, mask, rule)
        self.values: Values = self.program.pack(state)

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
        """Train in place; arguments and errors are those of `local.train`."""
        x, y = self.arrays(data)
        epochs = settings.local_epochs if epochs is None else epochs
        lr = settings.lr if lr is None else lr
        optimizer = _optimizer(settings, lr, proximal_mu, l1)
        slots = self.program.slots(optimizer, optimizer_state)
        if not epochs or not len(y):
            return self._trained(0.0, 0.0, 0, optimizer, slots)
        drawn = [list(batches(len(y), settings.batch_size, rng)) for _ in range(epochs)]
        order = np.stack([np.concatenate(each) for each in drawn])
        edges = np.cumsum([0, *map(len, drawn[0])], dtype=np.int64)
        outcome = self.program.train(self.values, x, y, order, edges, optimizer, slots)
        if outcome.status == library.ONE_VALUE:
            raise TrainingError(
                "BatchNorm needs batches of two; raise client.batch_size "
                f"(now {settings.batch_size})"
            )
        check_loss(outcome.loss, outcome.epochs, lr_key, lr)
        trained = (self.values.parameters, self.values.buffers)
        check_weights(all(np.isfinite(each).all() for each in trained), lr_key, lr)
        mean = outcome.loss / len(y)
        accuracy = _accuracy(mean, outcome.correct, y, data.classes)
        return self._trained(mean, accuracy, len(y) * epochs, optimizer, slots)

    def _trained(
        self, loss: float, accuracy: float, samples: int, optimizer: Optimizer, slots: Slots
    ) -> Trained:
        return Trained(loss, accuracy, samples, lambda: self.program.named_slots(optimizer, slots))

    def evaluate(self, data: Dataset) -> Evaluated:
        """Test with running statistics."""
        if not len(data.y):
            return Evaluated(math.nan, math.nan, 0)
        x, y = self.arrays(data)
        outcome, _ = self.program.evaluate(self.values, x, y)
        mean = outcome.loss / len(y)
        accuracy = _accuracy(mean, outcome.correct, y, data.classes)
        return Evaluated(mean, accuracy, len(y))

    def top_gradients(self, data: Dataset, counts: Mapping[str, int]) -> dict[str, Top]:
        """Return by layer the largest gradients of pruned weights, as `growth.top_gradients`."""
        x, y = self.arrays(data)
        return dict(self.program.grow(self.values, x, y, counts))

    def measure(self, data: Dataset) -> State:
        """Set the running statistics to those of one batch, and return them."""
        x, _ = self.arrays(data)
        measuring = program(_overwriting(self.graph), self.mask, self.rule)
        self.values.buffers[:] = 0.0
        measuring.measure(self.values, x)
        return self.statistics()

    def kept(self) -> State:
        """Return parameters and statistics in state-dict order; of masked ones what is kept."""
        found = {**self.program.kept(self.values.parameters), **self.statistics()}
        return {name: found[name] for name in self.names}

    def whole(self) -> State:
        """Return parameters and statistics as whole tensors, in state-dict order."""
        found = {**self.program.whole(self.values.parameters), **self.statistics()}
        return {name: found[name] for name in self.names}

    def statistics(self) -> State:
        """Return the running statistics by name."""
        return self.program.statistics(self.values)

    def arrays(self, data: Dataset) -> tuple[NDArray[np.float32], NDArray[np.generic]]:
        """Return samples and targets as the kernels read them, which check nothing.

        Raises DataError for labels or samples that do not fit the model.
        """
        first, outputs = self.program.plan.tensors[0], self.program.classes
        shape = tuple(int(first[name]) for name in ("channels", "height", "width"))
        x = np.ascontiguousarray(data.x, np.float32)
        if math.prod(x.shape[1:]) != math.prod(shape) or (data.classes == 1) != (outputs == 1):
            raise DataError(
                f"samples of shape {x.shape[1:]} with {data.classes} classes do not fit a model "
                f"of shape {shape} with {outputs} outputs"
            )
        if data.classes == 1:
            return x, np.ascontiguousarray(data.y, np.float32)
        y = np.ascontiguousarray(data.y, np.int64)
        if len(y) and (y.min() < 0 or y.max() >= self.program.classes):
            wrong = y[(y < 0) | (y >= self.program.classes)][0]
            raise DataError(f"label {wrong} is not one of 0 to {self.program.classes - 1}")
        return x, y


@lru_cache(maxsize=4)
def _overwriting(graph: Graph) -> Graph:
    """Return a model whose BatchNorm takes a batch's statistics for its running ones."""
    nodes = (replace(n, momentum=1.0) if isinstance(n, Norm) else n for n in graph.nodes)
    return replace(graph, nodes=tuple(nodes))


def _accuracy(loss: float, correct: int, y: NDArray[np.generic], classes: int) -> float:
    """Return the fraction of right answers, or R^2 for regression."""
    if classes == 1:
        return spread_explained(loss, float(np.asarray(y, np.float64).var()))
    return correct / len(y)


def _optimizer(settings: ClientConfig, lr: float, proximal_mu: float, l1: float) -> Optimizer:
    if settings.optimizer == "adam":
        return Optimizer("adam", lr, 0.0, settings.weight_decay, proximal_mu, l1)
    name = "momentum" if settings.momentum else "sgd"
    return Optimizer(name, lr, settings.momentum, settings.weight_decay, proximal_mu, l1)
