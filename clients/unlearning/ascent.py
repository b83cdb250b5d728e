"""Gradient ascent at a client: steps that raise the loss on what is to be forgotten, up to a bound.

Steps are plain, without momentum, and are taken under BatchNorm's running statistics, which stay.
"""

import math
from collections.abc import Iterator

import numpy as np

from clients.program import Outcome, Program, Visit
from clients.unlearning.vector import Indices, Vector, trained
from fedsparse.training import local


class GradientAscent(Program):
    """Climb the loss of the data to be forgotten until it is as high as chance's."""

    def train(self, visit: Visit) -> Outcome:
        """theta <- theta + lr grad L(D_f), until a batch's loss is beyond the bound.

        The reply counts by the samples to be forgotten; without any it is the received model.
        """
        job, data = visit.job, visit.job.forgotten
        own = Vector(visit, data)
        lr, bound = float(visit.settings["ascent_lr"]), bound_of(visit)
        rng = visit.stream("forgotten batches")
        loss, correct, seen = 0.0, 0, 0
        epochs = int(visit.settings["ascent_epochs"])
        for chosen in batches(len(data), job.settings.batch_size, epochs, rng):
            found, right, gradient = own.gradient(chosen, still=True)
            loss, correct, seen = loss + found, correct + right, seen + len(chosen)
            if not found / len(chosen) <= bound:
                break
            own.move(gradient, -lr)
        done = trained(loss, correct, seen)
        return own.outcome(done, examples=len(data), lr_key="strategy.ascent_lr")


def batches(samples: int, size: int, epochs: int, rng: np.random.Generator) -> Iterator[Indices]:
    """Yield the batches of some passes; none without samples."""
    for _ in range(epochs if samples else 0):
        yield from local.batches(samples, size, rng)


def bound_of(visit: Visit) -> float:
    """Return the loss above which nothing is climbed: a multiple of chance's, log C."""
    return float(visit.settings["bound"]) * math.log(visit.job.data.train.classes)
