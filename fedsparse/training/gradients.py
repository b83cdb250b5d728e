"""Loss and gradient of a batch under any values of a model's parameters, by torch or by kernels.

For methods that make the parameters anew for each batch, as gates do: parameters are one vector,
in the order of the module's own, and so is the gradient.
"""

from typing import Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from fedsparse import models
from fedsparse.data import Dataset
from fedsparse.errors import TrainingError
from fedsparse.kernels import library
from fedsparse.kernels.program import Values, program
from fedsparse.sparsity import Mask, State
from fedsparse.training import local
from fedsparse.training.backend import Backend
from fedsparse.training.flat_model import FlatModel
from fedsparse.training.native import NativeModel

Floats = NDArray[np.float32]


class Gradients(Protocol):
    """A model on a client's data."""

    def of(
        self,
        values: Floats,
        chosen: NDArray[np.int64],
        mask: Mask | None = None,
        *,
        still: bool = False,
    ) -> tuple[float, int, Floats]:
        """Return a batch's loss times its samples, its right answers, and the loss's gradient.

        Values that a mask prunes are zero, and their gradient is of no meaning. The gradient
        may be overwritten by the next call. BatchNorm normalises by the batch and moves its
        running statistics; where these are to stay `still` it normalises by them.
        """

    def buffers(self) -> State:
        """Return the running statistics as batches have moved them."""


def gradients(backend: Backend, state: State, data: Dataset) -> Gradients:
    """Return what takes gradients of a model, by the kernels where the backend does."""
    if backend.native and [*backend.graph.parameters] == [
        name for name, _ in backend.module.named_parameters()
    ]:
        return NativeGradients(backend, state, data)
    models.load_state(backend.module, state)
    return TorchGradients(backend.module, data, backend)


class TorchGradients:
    """By torch's automatic differentiation, on whole tensors."""

    def __init__(self, module: nn.Module, data: Dataset, backend: Backend) -> None:
        local.check_batches(module, backend.settings, data)
        self.flat = FlatModel(module)
        self.settings = backend.settings
        self.x, self.y = local.tensors(data)
        self.loss = local.loss_of(data.classes)
        module.train(len(data.y) > 1)

    def of(
        self,
        values: Floats,
        chosen: NDArray[np.int64],
        mask: Mask | None = None,
        *,
        still: bool = False,
    ) -> tuple[float, int, Floats]:
        """Return a batch's loss, right answers and gradient; a mask makes no difference."""
        training = not still and len(self.y) > 1
        if self.flat.model.training != training:
            self.flat.model.train(training)
        index, leaf = torch.from_numpy(chosen), torch.from_numpy(values).requires_grad_()
        with local.autocast(self.settings):
            output = self.flat.call(leaf, self.x[index])
        output, target = output.float(), self.y[index]
        loss = self.loss(output, target)
        loss.backward()  # type: ignore[no-untyped-call]
        assert leaf.grad is not None
        correct = int((output.detach().argmax(1) == target).sum())
        return float(loss.detach()) * len(chosen), correct, leaf.grad.numpy()

    def buffers(self) -> State:
        """Return the module's running statistics."""
        own = dict(self.flat.model.named_buffers())
        return {n: v for n, v in models.get_state(self.flat.model).items() if n in own}


class NativeGradients:
    """By the native kernels; under a mask they hold and compute the kept weights alone."""

    def __init__(self, backend: Backend, state: State, data: Dataset) -> None:
        self.backend = backend
        self.whole = NativeModel(backend.graph, backend.rule, state, None)
        self.x, self.y = self.whole.arrays(data)

    def of(
        self,
        values: Floats,
        chosen: NDArray[np.int64],
        mask: Mask | None = None,
        *,
        still: bool = False,
    ) -> tuple[float, int, Floats]:
        """Return loss, right answers and gradient of a batch."""
        made = program(self.backend.graph, mask, self.backend.rule)
        index = made.index
        running = self.whole.values.buffers
        own = Values(values if index is None else values[index], running)
        outcome, found = made.gradient(own, self.x, self.y, chosen, still=still)
        if outcome.status == library.ONE_VALUE:
            raise TrainingError(
                "BatchNorm needs batches of two; raise client.batch_size "
                f"(now {self.backend.settings.batch_size})"
            )
        if index is None:
            return outcome.loss, outcome.correct, found
        gradient = np.zeros(len(values), np.float32)
        gradient[index] = found
        return outcome.loss, outcome.correct, gradient

    def buffers(self) -> State:
        """Return the running statistics."""
        return self.whole.program.statistics(self.whole.values)
