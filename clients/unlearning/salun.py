"""SalUn at a client (Fan et al., ICLR 2024): which weights matter to what is to be forgotten.

First the gradient of the forgotten data's loss is measured; then the weights that the server found
salient learn random labels for that data, and the true ones for the rest.
"""

import numpy as np

from clients.program import Outcome, Program, Visit
from clients.unlearning import paired
from clients.unlearning.measure import mean_gradient
from clients.unlearning.vector import Vector, joined
from fedsparse import messages, wire
from fedsparse.data import Dataset
from fedsparse.sparsity import Mask


class SalUn(Program):
    """Measure the forgotten data's gradient, then relabel that data and train salient weights."""

    def train(self, visit: Visit) -> Outcome:
        """Measure where the message names no salient weights, train where it does."""
        salient = visit.sent.get(messages.MOVABLE)
        if salient is None:
            return measure(visit)
        shapes = {name: tuple(p.shape) for name, p in visit.job.model.named_parameters()}
        return relabel(visit, wire.decode_mask(wire.unpack(salient), shapes))


def measure(visit: Visit) -> Outcome:
    """Return the gradient of L(D_f), by samples of D_f."""
    own = Vector(visit, visit.job.forgotten)
    gradient, figures = mean_gradient(own, len(own.data))
    return own.sent(own.state(gradient), figures, examples=len(own.data))


def relabel(visit: Visit, salient: Mask) -> Outcome:
    """Train the salient weights on random labels of D_f and true ones of D_r."""
    kept, gone = visit.job.data.train, visit.job.forgotten
    own = Vector(visit, joined(kept, randomly_labelled(gone, visit.stream("labels"))), salient)
    halves = paired.plain_halves(own, len(kept))
    return own.outcome(paired.train(own, len(kept), len(gone), paired.mean(own.values), halves))


def randomly_labelled(data: Dataset, rng: np.random.Generator) -> Dataset:
    """Return samples with labels drawn evenly from all but their own."""
    moved = rng.integers(1, data.classes, size=len(data)) if len(data) else data.y
    return Dataset(data.x, (data.y + moved) % data.classes, data.classes)
