"""A client's gate beside the model that it works on, and how the two learn together.

Chen et al., ICML 2023: theta_k = theta (x) expand(gate mask), the mask by a knapsack over the
gate's importance of each block (`fedsparse/sparsity/knapsack.py`).
"""

import math
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from clients.gate_layer import Gate
from clients.program import Visit
from fedsparse import models
from fedsparse.data import Dataset
from fedsparse.sparsity import Mask, State
from fedsparse.sparsity.blocks import Blocks, Counts
from fedsparse.sparsity.knapsack import choose, least_gate
from fedsparse.training import local
from fedsparse.training.gradients import Floats, gradients
from fedsparse.training.local import Trained
from fedsparse.training.optimizers import Optimizer, Trainable

GATE = "gate"
CLIP = 10.0
"""Largest norm of the gradients of gate and model, each."""


@dataclass
class Gated:
    """A client's gate beside the model that it works on."""

    visit: Visit
    blocks: Blocks
    available: Counts
    """Entries of each block that the received model holds."""
    state: State
    """The received model."""
    gate: Gate
    fresh: bool
    """Whether the client has no gate of an earlier round."""
    options: Any

    @property
    def budget(self) -> float:
        """The fraction of the model that may be used at once."""
        return self.visit.job.plan.budget

    def choose(self, importance: Tensor, budget: float, available: Counts | None) -> Counts:
        """Return the entries of each block to use by their importance."""
        return choose(
            importance.detach().numpy().astype(np.float64),
            self.blocks,
            budget,
            solver=self.options["solver"],
            capacity=self.options["capacity"],
            available=available,
            sized=self.options["sized_values"],
        )

    def gates(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Return importance and weight of each block for a batch, clipped to s_min from below."""
        importance, weight = self.gate(x)
        least = least_gate(self.blocks, self.budget)
        return importance.clamp(min=least), weight.clamp(min=least)

    @torch.no_grad()
    def over_all(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Return importance and weight over all of the client's data: its client-level gate.

        The mean of batches' gates, each by its own statistics as in training: running ones lag
        behind where a client has seen few batches.
        """
        before = {name: value.clone() for name, value in self.gate.named_buffers()}
        self.gate.train()
        parts = x.split(local.EVALUATION_BATCH)  # type: ignore[no-untyped-call]
        found = [(len(part) / len(x), *self.gates(part)) for part in parts]
        for name, value in self.gate.named_buffers():
            value.copy_(before[name])
        importance = torch.stack([share * gate for share, gate, _ in found]).sum(0)
        weight = torch.stack([share * gate for share, _, gate in found]).sum(0)
        return importance, weight

    def factor(self, importance: Tensor, weight: Tensor, used: Counts) -> Tensor:
        """Return what each block is multiplied by: its weight, 0 where dropped.

        With two heads the importance has the value 1 and its own gradient (straight-through).
        """
        if self.options["heads"] == 2:
            weight = weight * (1 - importance.detach() + importance)
        return weight * torch.from_numpy(used > 0)

    def spread(self, factor: Tensor, used: Counts) -> Floats:
        """Return expand(gate mask): what each parameter is multiplied by, as one vector."""
        found = np.repeat(factor.detach().numpy(), self.blocks.sizes)
        if self.options["solver"] == "fractional":
            kept = [self.blocks.kept_of(name, used) for name in self.blocks.shapes]
            found *= np.concatenate(kept)
        return found

    def by_block(self, values: Floats) -> Tensor:
        """Return the sums of a vector like the parameters over each block."""
        starts = np.cumsum(self.blocks.sizes) - self.blocks.sizes
        return torch.from_numpy(np.add.reduceat(values, starts, dtype=np.float32))

    def step_gate(self, factor: Tensor, gradient: Tensor, lr: float) -> None:
        """Take a step of plain gradient descent on the gate, by the gradient of the factors."""
        parameters = list(self.gate.parameters())
        for parameter in parameters:
            parameter.grad = None
        factor.backward(gradient)  # type: ignore[no-untyped-call]
        nn.utils.clip_grad_norm_(parameters, CLIP)
        with torch.no_grad():
            for parameter in parameters:
                if parameter.grad is not None:
                    parameter.sub_(parameter.grad, alpha=lr)

    @cached_property
    def flat(self) -> Floats:
        """The model's parameters as one vector, which training changes in place."""
        return np.concatenate([self.state[name].reshape(-1) for name in self.blocks.shapes])

    def store(self, flat: Floats, buffers: State | None = None) -> None:
        """Put parameters, and running statistics if given, into the client's module."""
        state, start = {**self.state, **(buffers or {})}, 0
        for name, shape in self.blocks.shapes.items():
            end = start + math.prod(shape)
            state[name] = flat[start:end].reshape(shape)
            start = end
        models.load_state(self.visit.job.model, state)

    def weights_mask(self, used: Counts) -> Mask:
        """Return the mask of the prunable weights."""
        mask = self.blocks.mask(used)
        return Mask.from_arrays({name: mask[name] for name in self.visit.job.shapes})

    def keep(self) -> None:
        """Keep the gate until the next message."""
        self.visit.keep(GATE, models.get_state(self.gate))


def train(
    own: Gated, data: Dataset, *, model_lr: float, epochs: int
) -> tuple[Trained, Counts, NDArray[np.float64]]:
    """Train gate and model in place; a `model_lr` of 0 leaves the model as it is.

    Returns what training did, the most entries of each block that a batch used, and the mean.
    Torch's own draws, such as dropout's, come from a child of the batches' stream.
    """
    with torch.random.fork_rng(devices=[]):
        return _train(own, data, model_lr, epochs)


def _train(
    own: Gated, data: Dataset, model_lr: float, epochs: int
) -> tuple[Trained, Counts, NDArray[np.float64]]:
    job, options, size = own.visit.job, own.options, own.visit.job.settings.batch_size
    x, _ = local.tensors(data)
    work = gradients(job.backend, own.state, data)
    theta = nn.Parameter(torch.from_numpy(own.flat))
    optimizer = Optimizer(Trainable({"all": theta}, {}), job.settings, model_lr, {})
    gate_lr = float(options["gate_lr"]) * job.lr / job.config.client.lr
    rng = own.visit.stream("batches")
    torch.manual_seed(int(rng.spawn(1)[0].integers(2**63 - 1)))
    turns = ("gate", "model") if options["optimise"] == "alternating" else ("both",)
    own.gate.train()
    use, fixed, mask, loss, correct = Use(len(own.blocks)), None, None, 0.0, 0
    for epoch in range(epochs):
        if options["gates"] == "client":
            fixed = own.choose(own.over_all(x)[0], own.budget, own.available)
            mask = own.weights_mask(fixed)
        loss, correct = 0.0, 0
        for chosen in local.batches(len(x), size, rng):
            for turn in turns:
                importance, weight = own.gates(x[torch.from_numpy(chosen)])
                used = fixed
                if used is None:
                    used = own.choose(importance, own.budget, own.available)
                factor = own.factor(importance, weight, used)
                spread = own.spread(factor, used)
                found, right, gradient = work.of(own.flat * spread, chosen, mask)
                if turn != "model":
                    reached = np.where(spread != 0, gradient * own.flat, np.float32(0))
                    own.step_gate(factor, own.by_block(reached), gate_lr)
                if turn != "gate" and model_lr:
                    theta.grad = clipped(torch.from_numpy(gradient * spread))
                    optimizer.step()
                use.add(used)
            loss, correct = loss + found, correct + right
        local.check_loss(loss, epoch + 1, "client.lr or strategy.gate_lr", job.lr)
    if epochs:
        own.store(own.flat, work.buffers())
    local.check_finite(job.model.state_dict().values(), "client.lr", job.lr)
    local.check_finite(own.gate.state_dict().values(), "strategy.gate_lr", gate_lr)
    mean = loss / len(x)
    accuracy = local.r_squared(mean, torch.from_numpy(data.y)) if data.classes == 1 else None
    return (
        Trained(mean, correct / len(x) if accuracy is None else accuracy, len(x), dict),
        use.most,
        use.mean,
    )


def clipped(gradient: Tensor) -> Tensor:
    """Return a gradient, scaled to the largest norm that is allowed if it is longer."""
    norm = float(gradient.norm())
    return gradient * (CLIP / norm) if norm > CLIP else gradient


class Use:
    """What batches used of each block."""

    def __init__(self, blocks: int) -> None:
        self.most = np.zeros(blocks, np.int64)
        self.total, self.steps = np.zeros(blocks, np.int64), 0

    def add(self, used: Counts) -> None:
        """Note what a batch used."""
        self.most = np.maximum(self.most, used)
        self.total, self.steps = self.total + used, self.steps + 1

    @property
    def mean(self) -> NDArray[np.float64]:
        """Entries of each block, averaged over batches."""
        return self.total / max(1, self.steps)
