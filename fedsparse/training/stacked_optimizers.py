"""SGD and Adam over weights with a leading dimension of clients, as torch computes them.

Every tensor holds all clients of a cohort; a step moves the first `active` of them and
leaves the rest as they ended.
"""

from collections.abc import Mapping, Sequence

import numpy as np
import torch
from torch import Tensor

from fedsparse.config import ClientConfig
from fedsparse.sparsity import State
from fedsparse.training.optimizers import BETA1, BETA2, EPSILON, STEP, slot_names

Slots = Mapping[str, State]


class StackedOptimizer:
    """The optimizers of a cohort, one of each client, over `weights` by name.

    `before` holds, by client, the tensors that outlived an earlier round.
    """

    def __init__(
        self,
        weights: Mapping[str, Tensor],
        settings: ClientConfig,
        lr: float,
        before: Sequence[Slots],
    ) -> None:
        self.weights, self.settings, self.lr = weights, settings, lr
        self.slots = {
            slot: {n: _stack(w, [b.get(slot, {}) for b in before], n) for n, w in weights.items()}
            for slot in slot_names(settings)
        }
        self.steps = [
            {n: int(b.get(STEP, {}).get(n, 0)) for n in weights} for b in before
        ]  # Adam's, by client and name

    @torch.no_grad()
    def step(self, gradients: Mapping[str, Tensor], active: int) -> None:
        """Move the first `active` clients by their gradients."""
        names = list(gradients)
        weights = [self.weights[n][:active] for n in names]
        given = [gradients[n] for n in names]
        if self.settings.weight_decay:
            given = list(torch._foreach_add(given, weights, alpha=self.settings.weight_decay))
        slots = {slot: [s[n][:active] for n in names] for slot, s in self.slots.items()}
        if self.settings.optimizer == "adam":
            self._adam(names, weights, given, slots["exp_avg"], slots["exp_avg_sq"])
            return
        if self.settings.momentum:
            moments = slots["momentum_buffer"]
            torch._foreach_mul_(moments, self.settings.momentum)
            torch._foreach_add_(moments, given)
            given = moments
        torch._foreach_add_(weights, given, alpha=-self.lr)

    def _adam(
        self,
        names: list[str],
        weights: list[Tensor],
        gradients: list[Tensor],
        first: list[Tensor],
        second: list[Tensor],
    ) -> None:
        """Kingma and Ba 2015, algorithm 1, in the order of torch's arithmetic."""
        torch._foreach_lerp_(first, gradients, 1 - BETA1)
        torch._foreach_mul_(second, BETA2)
        torch._foreach_addcmul_(second, gradients, gradients, 1 - BETA2)
        for name, weight, mean, square in zip(names, weights, first, second, strict=True):
            steps = np.array([own[name] + 1 for own in self.steps[: len(weight)]], np.float64)
            for own in self.steps[: len(weight)]:
                own[name] += 1
            size = _along(self.lr / (1 - BETA1**steps), weight)
            root = _along(np.sqrt(1 - BETA2**steps), weight)
            weight.sub_(size * mean / (square.sqrt() / root + EPSILON))

    def of(self, client: int) -> dict[str, State]:
        """Return a client's tensors by slot and parameter name, as torch would keep them."""
        found: dict[str, State] = {
            slot: {n: np.array(s[client].cpu().numpy(), order="C") for n, s in tensors.items()}
            for slot, tensors in self.slots.items()
        }
        if self.settings.optimizer == "adam":
            steps = self.steps[client]
            found[STEP] = {n: np.array(steps[n], np.float32) for n in self.weights}
        return found


def _stack(weight: Tensor, before: Sequence[State], name: str) -> Tensor:
    """Return the clients' earlier tensors of one parameter, zero for who has none."""
    stacked = torch.zeros_like(weight)
    for client, tensors in enumerate(before):
        if name in tensors:
            stacked[client] = torch.from_numpy(np.array(tensors[name]))
    return stacked


def _along(values: np.ndarray, weight: Tensor) -> Tensor:
    """Return one figure a client in the shape that multiplies `weight`."""
    found = torch.from_numpy(values.astype(np.float32)).to(weight.device, non_blocking=True)
    return found.reshape(-1, *(1 for _ in weight.shape[1:]))
