"""What a client measures of a model that it leaves as it is: gradients, and their squares.

All are taken under BatchNorm's running statistics. What is sent has the model's shape and its mask,
so that the server adds it up as it adds models up.
"""

from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from clients.program import Outcome, Program, Visit
from clients.unlearning.vector import Indices, Vector, trained
from fedsparse import messages, wire
from fedsparse.sparsity import State
from fedsparse.training.gradients import Floats
from fedsparse.training.local import Trained


class Fisher(Program):
    """Measure the diagonal of the empirical Fisher matrix on the retained data."""

    def train(self, visit: Visit) -> Outcome:
        """Return the mean over samples of the squared gradient of each one's loss."""
        own = Vector(visit, visit.job.draw(visit.job.plan.samples, "fisher"))
        squares = np.zeros(len(own.values))
        loss, correct = 0.0, 0
        for place in range(len(own.data)):
            found, right, gradient = own.gradient(np.array([place]), still=True)
            squares += np.square(gradient, dtype=np.float64)
            loss, correct = loss + found, correct + right
        mean = (squares / len(own.data)).astype(np.float32)
        return own.sent(own.state(mean), trained(loss, correct, len(own.data), own.data))


class Influence(Program):
    """Measure the gradients of retained data, in some parts, and of the data to be forgotten."""

    def train(self, visit: Visit) -> Outcome:
        """Return the mean gradient on retained data; of its parts and of D_f in records."""
        own = Vector(visit, visit.job.data.train)
        rng = visit.stream("parts")
        order = rng.permutation(len(own.data))
        parts = np.array_split(order, min(int(visit.settings["parts"]), len(order)))
        found = [mean_gradient(own, part) for part in parts]
        shares = [len(part) / len(order) for part in parts]
        whole = sum(s * g.astype(np.float64) for s, (g, _) in zip(shares, found, strict=True))
        records = {str(i): encoded(own, g) for i, (g, _) in enumerate(found)}
        gone = Vector(visit, visit.job.forgotten)
        if len(gone.data):
            records[messages.FORGOTTEN] = encoded(gone, mean_gradient(gone, len(gone.data))[0])
        own.samples += gone.samples
        own.largest = max(own.largest, gone.largest)
        loss = sum(s * told.loss for s, (_, told) in zip(shares, found, strict=True))
        fit = sum(s * told.accuracy for s, (_, told) in zip(shares, found, strict=True))
        figures = Trained(loss, fit, own.samples, dict)
        outcome = own.sent(own.state(np.asarray(whole, np.float32)), figures)
        counted = {**outcome.figures, messages.FORGOTTEN_KEY: len(gone.data)}
        sent = {messages.GRADIENTS: wire.pack_many(records)}
        return replace(outcome, records=sent, figures=counted)


def mean_gradient(own: Vector, chosen: Indices | int) -> tuple[Floats, Trained]:
    """Return the mean gradient over some samples, or the first so many; 0 for none."""
    every = np.arange(chosen) if isinstance(chosen, int) else chosen
    total: NDArray[np.float64] = np.zeros(len(own.values))
    loss, correct, size = 0.0, 0, own.visit.job.settings.batch_size
    for begin in range(0, len(every), size):
        batch = every[begin : begin + size]
        found, right, gradient = own.gradient(batch, still=True)
        total += gradient.astype(np.float64) * len(batch)
        loss, correct = loss + found, correct + right
    mean = (total / max(1, len(every))).astype(np.float32)
    return mean, trained(loss, correct, len(every), own.data.take(every))


def parameters(own: Vector, values: Floats) -> State:
    """Return a vector like the parameters as named tensors."""
    state = own.state(values)
    return {name: state[name] for name in own.names}


def encoded(own: Vector, values: Floats) -> bytes:
    """Return the payload of a vector like the parameters, of kept weights alone."""
    state = parameters(own, values)
    if own.mask is None:
        return wire.encode(state)
    return wire.encode(state, mask=own.mask, mode="shared")
