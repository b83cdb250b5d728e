"""SGD and Adam of a client's training on torch, and their tensors by parameter name.

Torch's fused kernels are called without `torch.optim`, whose first optimizer imports the
whole of torch's compiler: seconds of a run's start. The arithmetic is that of
`torch.optim.SGD` and `torch.optim.Adam`.
"""

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn

from fedsparse.config import ClientConfig
from fedsparse.sparsity import Mask, State
from fedsparse.training.sparse_linear import SparseLinear

BETA1, BETA2, EPSILON = 0.9, 0.999, 1e-8
"""Adam's, as torch sets them (Kingma and Ba 2015, algorithm 1)."""

STEP = "step"
"""The slot of Adam's count of steps: a scalar a parameter."""


def slot_names(settings: ClientConfig) -> tuple[str, ...]:
    """Return the tensors, one a parameter and of its shape, that the optimizer keeps."""
    if settings.optimizer == "adam":
        return "exp_avg", "exp_avg_sq"
    return ("momentum_buffer",) if settings.momentum else ()


@dataclass(frozen=True)
class Trainable:
    """What is trained, by the model's own parameter names and in their order.

    Of the layers in `sparse`, by weight name, the parameter is the kept values alone.
    """

    named: Mapping[str, nn.Parameter]
    sparse: Mapping[str, SparseLinear]

    def masks(self, mask: Mask) -> list[tuple[nn.Parameter, Tensor]]:
        """Pair each masked parameter with its mask in the parameter's memory layout."""
        return [
            (self.named[name], self.load(name, bits))
            for name, bits in mask.items()
            if name not in self.sparse
        ]

    def load(self, name: str, value: np.ndarray) -> Tensor:
        """Return a value of a parameter's own shape as the parameter is stored."""
        given = torch.from_numpy(np.array(value, np.float32))
        if name in self.sparse:
            return self.sparse[name].pick(given)
        return torch.empty_like(self.named[name]).copy_(given).detach()

    def whole(self, name: str, value: Tensor) -> np.ndarray:
        """Return what `load` read."""
        given = value.detach()
        if name in self.sparse:
            given = self.sparse[name].spread(given)
        return np.array(given, np.float32, order="C")


class Optimizer:
    """One client's optimizer; `before` holds the tensors that outlived an earlier round."""

    def __init__(
        self,
        trainable: Trainable,
        settings: ClientConfig,
        lr: float,
        before: Mapping[str, State],
    ) -> None:
        self.trainable, self.settings, self.lr = trainable, settings, lr
        self.parameters = {n: p for n, p in trainable.named.items() if p.requires_grad}
        self._weights = {n: p.detach() for n, p in self.parameters.items()}
        self._slots = {
            slot: {
                name: trainable.load(name, before[slot][name])
                if name in before.get(slot, {})
                else torch.zeros_like(parameter, requires_grad=False)
                for name, parameter in self.parameters.items()
            }
            for slot in slot_names(settings)
        }
        counted = before.get(STEP, {})
        self._steps = {n: torch.tensor(float(counted.get(n, 0.0))) for n in self.parameters}

    def clear(self) -> None:
        """Forget the gradients."""
        for parameter in self.parameters.values():
            parameter.grad = None

    @torch.no_grad()
    def step(self) -> None:
        """Move every parameter that a gradient has reached."""
        found = {n: p.grad for n, p in self.parameters.items() if p.grad is not None}
        weights = [self._weights[n] for n in found]
        gradients = list(found.values())
        slots = [[kept[n] for n in found] for kept in self._slots.values()]
        if self.settings.optimizer == "adam":
            steps = [self._steps[n] for n in found]
            torch._foreach_add_(steps, 1)
            torch._fused_adam_(
                weights, gradients, slots[0], slots[1], [], steps, lr=self.lr,
                beta1=BETA1, beta2=BETA2, weight_decay=self.settings.weight_decay,
                eps=EPSILON, amsgrad=False, maximize=False,
            )  # fmt: skip
            return
        torch._fused_sgd_(
            weights, gradients, slots[0] if slots else [], lr=self.lr,
            momentum=self.settings.momentum, weight_decay=self.settings.weight_decay,
            dampening=0.0, nesterov=False, maximize=False, is_first_step=False,
        )  # fmt: skip

    def slots(self) -> dict[str, State]:
        """Return the tensors to outlive the round, of every parameter: zero where unused."""
        named = self.trainable.named
        found: dict[str, State] = {
            slot: {
                name: self.trainable.whole(name, kept[name])
                if name in kept
                else np.zeros(named[name].shape, np.float32)
                for name in named
            }
            for slot, kept in self._slots.items()
        }
        if self.settings.optimizer == "adam":
            nothing = torch.zeros(())
            found[STEP] = {n: np.array(self._steps.get(n, nothing), np.float32) for n in named}
        return found
