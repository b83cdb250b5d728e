"""Many clients trained at once on one device: each result as `local.train` gives it alone.

A small model leaves an accelerator idle; sixty-four of them do not. Clients take the same
batches in the same order as alone, so results are equal but for rounding: the order of
additions differs.
"""

from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from fedsparse.config import ClientConfig, EngineConfig
from fedsparse.data import Dataset
from fedsparse.errors import ConfigError, TrainingError
from fedsparse.sparsity import Mask, State
from fedsparse.training import local, padding, transfer
from fedsparse.training.local import Trained
from fedsparse.training.stacked import Stacked, Step
from fedsparse.training.stacked_optimizers import StackedOptimizer

LR_KEY = "client.lr"
CLIENTS = {"cpu": 8, "cuda": 64}
"""Clients at once unless `engine.cohort` says; halved while the device's memory is too small."""


@dataclass(frozen=True)
class Member:
    """One client of a cohort: what `local.train` takes, and the model's state."""

    state: State
    data: Dataset
    settings: ClientConfig
    rng: np.random.Generator
    lr: float
    mask: Mask | None = None
    proximal_mu: float = 0.0
    l1: float = 0.0
    optimizer_state: Mapping[str, State] = field(default_factory=dict)

    @property
    def alike(self) -> tuple[object, ...]:
        """What members that train together must have in common."""
        s = self.settings
        loss = self.proximal_mu, self.l1
        return s.optimizer, s.momentum, s.weight_decay, s.precision, self.lr, loss


@dataclass(frozen=True)
class Result:
    """A member's training and what its mask keeps of the state that it led to.

    The optimizer's tensors are there only where `client.keep_optimizer` asks for them.
    """

    trained: Trained
    kept: State
    mask: Mask | None = None

    @property
    def state(self) -> State:
        """The state as whole tensors, zero where pruned."""
        return self.kept if self.mask is None else self.mask.spread(self.kept)


def device_of(engine: EngineConfig) -> torch.device:
    """Return the device that clients train on; raises ConfigError where there is none."""
    if engine.device == "cuda" and not torch.cuda.is_available():
        raise ConfigError("engine.device = cuda: torch finds no such device; set it to cpu")
    return torch.device(engine.device)


def fits(member: Member) -> bool:
    """Tell whether a member can train with others.

    With a single sample it trains in torch's evaluation mode, with batches of one in that of
    no BatchNorm.
    """
    return len(member.data.y) > 1 and member.settings.batch_size > 1


def train(
    model: nn.Module,
    members: Sequence[Member],
    device: torch.device,
    *,
    clients: int | None = None,
) -> list[Result | TrainingError]:
    """Train every member from its own state; `model` is not touched.

    At most `clients` at once. A member whose loss or weights are not finite gets a
    TrainingError and reaches no other. Raises ModelError, or whatever torch raises, for a
    model that cannot be trained so; nothing of a member but its random stream is then used.
    """
    found: list[Result | TrainingError | None] = [None] * len(members)
    stacked = Stacked(model, members[0].data.classes, device)
    batches = [_batches(member) for member in members]
    places = padding.order(batches, [len(member.data.y) for member in members])
    size = clients or CLIENTS[device.type]
    groups: dict[tuple[object, ...], list[int]] = {}
    for place in places:
        groups.setdefault(members[place].alike, []).append(place)
    waiting = [g[i : i + size] for g in groups.values() for i in range(0, len(g), size)]
    while waiting:
        chosen = waiting.pop(0)
        try:
            together = [members[i] for i in chosen]
            results = _Cohort(stacked, together, [batches[i] for i in chosen], device).run()
        except torch.cuda.OutOfMemoryError:
            if len(chosen) == 1:
                raise
            half = len(chosen) // 2
            waiting[:0] = [chosen[:half], chosen[half:]]
            continue
        for place, result in zip(chosen, results, strict=True):
            found[place] = result
    return [result for result in found if result is not None]


def _batches(member: Member) -> padding.Batches:
    """Draw a member's batches of all epochs, as `local.train` draws them."""
    settings, samples = member.settings, len(member.data.y)
    return [
        batch
        for _ in range(settings.local_epochs)
        for batch in local.batches(samples, settings.batch_size, member.rng)
    ]


class _Cohort:
    """Members on the device, in the order of `padding.order`, with like settings."""

    def __init__(
        self,
        stacked: Stacked,
        members: Sequence[Member],
        batches: Sequence[padding.Batches],
        device: torch.device,
    ) -> None:
        self.stacked, self.members, self.batches = stacked, members, batches
        samples = [len(member.data.y) for member in members]
        self.schedule = padding.schedule(batches, samples, device)
        self.x = transfer.joined([member.data.x for member in members], device)
        self.y = transfer.joined([member.data.y for member in members], device)
        states = [member.state for member in members]
        self.tensors = {name: transfer.stacked(states, name, device) for name in stacked.entries}
        self.masks = transfer.masks_by_name([member.mask for member in members], device)
        self.weights = {name: self.tensors[name] for name in stacked.parameters}
        first = members[0]
        self.settings, self.mu, self.l1 = first.settings, first.proximal_mu, first.l1
        self.optimizer = StackedOptimizer(
            self.weights, first.settings, first.lr, [m.optimizer_state for m in members]
        )
        self.start = {n: w.clone() for n, w in self.weights.items()} if self.mu else {}
        steps = len(self.schedule.active)
        self.losses = torch.zeros(steps, len(members), device=device)
        self.right = torch.zeros(steps, len(members), device=device)

    def run(self) -> list[Result | TrainingError]:
        """Train, and return the members' results in order."""
        step = self.stacked.step(self.settings)
        with exact():
            for number in range(len(self.schedule.active)):
                self._step(step, number)
        own = [member.mask for member in self.members]
        states = transfer.fetched(self.tensors, self.masks, own)
        losses, right = self.losses.cpu().numpy(), self.right.cpu().numpy()
        return [self._result(i, state, losses[:, i], right[:, i]) for i, state in enumerate(states)]

    def _step(self, step: Step, number: int) -> None:
        """Take one step with every member that still has a batch."""
        active, width = self.schedule.active[number], self.schedule.width[number]
        index = self.schedule.index[number, :active, :width]
        weight = self.schedule.weight[number, :active, :width]
        tensors = {name: tensor[:active] for name, tensor in self.tensors.items()}
        leaves = {name: tensors[name].detach().requires_grad_() for name in self.weights}
        loss, right, statistics = step({**tensors, **leaves}, self.x[index], self.y[index], weight)
        found = torch.autograd.grad(loss.sum(), list(leaves.values()), allow_unused=True)
        reached = {n: g for n, g in zip(leaves, found, strict=True) if g is not None}
        with torch.no_grad():
            if self.mu:
                moved = {n: tensors[n] - self.start[n][:active] for n in reached}
                reached = {n: g + self.mu * moved[n] for n, g in reached.items()}
            if self.l1:
                reached = {n: g + self.l1 * tensors[n].sign() for n, g in reached.items()}
            for name in self.masks.keys() & reached.keys():
                reached[name] = reached[name] * self.masks[name][:active]
            self.optimizer.step(reached, active)
            for name, value in statistics.items():
                tensors[name].copy_(value)
            self.losses[number, :active] = loss.detach() * weight.sum(1)
            self.right[number, :active] = right

    def _result(
        self,
        place: int,
        tensors: State,
        losses: NDArray[np.float32],
        right: NDArray[np.float32],
    ) -> Result | TrainingError:
        """Return what became of one member, given its summed loss and right answers by step."""
        member, steps = self.members[place], len(self.batches[place])
        samples, epochs = len(member.data.y), member.settings.local_epochs
        kept = self._kept(tensors, member.mask)
        totals = losses[:steps].reshape(epochs, -1).sum(1)
        try:
            for epoch, total in enumerate(totals, 1):
                local.check_loss(float(total), epoch, LR_KEY, member.lr)
            local.check_finite(map(torch.from_numpy, kept.values()), LR_KEY, member.lr)
        except TrainingError as error:
            return error
        mean = float(totals[-1]) / samples
        if member.data.classes == 1:
            accuracy = local.r_squared(mean, torch.from_numpy(np.asarray(member.data.y)))
        else:
            accuracy = float(right[:steps].reshape(epochs, -1)[-1].sum()) / samples
        slots = self.optimizer.of(place) if member.settings.keep_optimizer else {}
        return Result(Trained(mean, accuracy, samples * epochs, lambda: slots), kept, member.mask)

    def _kept(self, tensors: State, mask: Mask | None) -> State:
        """Return what a mask keeps of a state's entries; of a tensor with two names, by each."""
        names = self.stacked.state_names
        kept = {entry: tensors[name] for entry, name in names.items()}
        again = [entry for entry, name in names.items() if entry != name]
        if mask is not None and again:
            whole = mask.spread(tensors)
            kept |= mask.take({entry: whole[names[entry]] for entry in again})
        return kept


def exact() -> AbstractContextManager[object]:
    """Return a context in which an accelerator multiplies in float32, not in TF32."""
    found: AbstractContextManager[object] = torch.backends.cudnn.flags(
        enabled=True, benchmark=False, deterministic=True, allow_tf32=False
    )
    return found
