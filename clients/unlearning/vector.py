"""A received model as one vector that a method moves by gradients of its own making.

Gradients come from the run's backend, kernels or torch. Those of data to be forgotten are taken
under the running statistics of BatchNorm, which only retained data moves: it is the model in use
that is to forget, and batches of one class or one sample have no statistics.
"""

from dataclasses import replace
from functools import cached_property

import numpy as np
import torch
from numpy.typing import NDArray

from clients.program import Outcome, Visit
from fedsparse import messages
from fedsparse.data import Dataset
from fedsparse.sparsity import Mask, State
from fedsparse.training import local
from fedsparse.training.gradients import Floats, Gradients, gradients
from fedsparse.training.local import Trained
from fedsparse.training.optimizers import BETA1, BETA2, EPSILON
from fedsparse.training.price import Price, price

Indices = NDArray[np.int64]


class Vector:
    """The parameters of a client's model as one vector, and some data to take gradients on.

    Nothing that the model's mask prunes, or that `movable` leaves out, ever moves.
    """

    def __init__(
        self,
        visit: Visit,
        data: Dataset,
        movable: Mask | None = None,
        work: Gradients | None = None,
    ) -> None:
        """Gradients are of the plain loss unless `work` takes others."""
        self.visit, self.data, self._work = visit, data, work
        self.received, self.mask = visit.received.state, visit.received.mask
        self.names = [name for name, _ in visit.job.model.named_parameters()]
        self.values = self.flat(self.received)
        self.free = self._bits(self.mask) & self._bits(movable)
        self.samples = 0
        """Samples that gradients were taken of, each time."""
        self.largest = 1
        """Samples of the largest batch."""
        self.beside = 0.0
        """FLOPs of other things than gradients."""
        self._slots = [np.zeros_like(self.values) for _ in range(2)]
        self._steps = 0

    @cached_property
    def work(self) -> Gradients:
        """What takes gradients; made when one is first wanted."""
        return self._work or gradients(self.visit.job.backend, self.received, self.data)

    # -- between vectors and states ---------------------------------------------------

    def flat(self, state: State) -> Floats:
        """Return a state's parameters as one vector of its own."""
        return np.concatenate([state[name].reshape(-1) for name in self.names])

    def state(self, values: Floats) -> State:
        """Return the received state with other values for its parameters."""
        found, begin = dict(self.received), 0
        for name in self.names:
            size, shape = self.received[name].size, self.received[name].shape
            found[name] = np.array(values[begin : begin + size], np.float32).reshape(shape)
            begin += size
        return found

    def _bits(self, mask: Mask | None) -> NDArray[np.bool_]:
        if mask is None:
            return np.ones(len(self.values), np.bool_)
        every = (
            mask[name].reshape(-1) if name in mask else np.ones(self.received[name].size, np.bool_)
            for name in self.names
        )
        return np.concatenate(list(every))

    # -- gradients and steps ----------------------------------------------------------

    def gradient(self, chosen: Indices, *, still: bool = False) -> tuple[float, int, Floats]:
        """Return a batch's summed loss, right answers and mean gradient, 0 where nothing may move.

        `still`: under BatchNorm's running statistics, which stay.
        """
        loss, correct, found = self.work.of(self.values, chosen, self.mask, still=still)
        self.count(len(chosen))
        return loss, correct, np.where(self.free, found, np.float32(0))

    def count(self, samples: int) -> None:
        """Note a batch of which a gradient was taken."""
        self.samples += samples
        self.largest = max(self.largest, samples)

    def step(self, gradient: Floats) -> None:
        """Take one step of the client's optimizer, SGD or Adam, by a gradient."""
        settings, (first, second) = self.visit.job.settings, self._slots
        if settings.weight_decay:
            gradient = gradient + np.float32(settings.weight_decay) * self.values * self.free
        self._steps += 1
        if settings.optimizer == "adam":
            first += np.float32(1 - BETA1) * (gradient - first)
            second += np.float32(1 - BETA2) * (gradient * gradient - second)
            unbiased = np.sqrt(second / np.float32(1 - BETA2**self._steps))
            move = first / np.float32(1 - BETA1**self._steps) / (unbiased + np.float32(EPSILON))
        else:
            first *= np.float32(settings.momentum)
            first += gradient
            move = first
        self.move(move, self.visit.job.lr)

    def move(self, direction: Floats, lr: float) -> None:
        """theta <- theta - lr * direction, where theta may move."""
        self.values -= np.where(self.free, np.float32(lr) * direction, np.float32(0))

    # -- what is sent -----------------------------------------------------------------

    def outcome(self, trained: Trained, *, examples: int = 0, lr_key: str = "client.lr") -> Outcome:
        """Return the reply with the moved model, and the statistics that batches have moved.

        `examples`, where it is not 0, is how much it counts in the mean. Raises TrainingError
        for weights that are not finite.
        """
        state = self.state(self.values)
        if self.samples:
            state.update(self.work.buffers())
        local.check_finite(map(torch.from_numpy, state.values()), lr_key, self.visit.job.lr)
        return self.sent(state, trained, examples)

    def sent(self, state: State, trained: Trained, examples: int = 0) -> Outcome:
        """Return the reply with a state, such as a measured one, under the model's mask."""
        kept = state if self.mask is None else self.mask.take(state)
        counted = {messages.EXAMPLES_KEY: examples} if examples else {}
        return Outcome(kept, trained, self.mask, price=self.price(), figures=counted)

    def price(self) -> Price:
        """Return what was computed, by the samples that gradients were taken of, and held."""
        job = self.visit.job
        kept = None if self.mask is None else self.mask.layer_kept()
        settings = job.settings.model_copy(update={"batch_size": self.largest, "local_epochs": 1})
        plan = replace(job.plan, work=1.0, batch_size=0)
        found = price(job.cost, settings, plan, self.samples, kept)
        return replace(found, flops=found.flops + self.beside)


def trained(loss: float, correct: int, samples: int, targets: Dataset | None = None) -> Trained:
    """Return figures of training: of a summed loss and right answers, the means.

    Where the targets are numbers, R^2 takes the place of the right answers.
    """
    if not samples:
        return Trained(0.0, 0.0, 0, dict)
    accuracy = correct / samples
    if targets is not None and targets.classes == 1:
        accuracy = local.r_squared(loss / samples, torch.from_numpy(targets.y))
    return Trained(loss / samples, accuracy, samples, dict)


def joined(first: Dataset, second: Dataset) -> Dataset:
    """Return two data sets as one, the first one's samples first."""
    return Dataset(
        np.concatenate([first.x, second.x]), np.concatenate([first.y, second.y]), first.classes
    )
