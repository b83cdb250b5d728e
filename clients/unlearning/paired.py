"""Steps that look at retained data and at data to be forgotten, as several methods take them.

An epoch goes once through both: batches of the one meet batches of the other. A client without
data to forget trains on what it retains.
"""

from collections.abc import Callable, Iterator
from itertools import zip_longest

import numpy as np

from clients.unlearning.vector import Indices, Vector, trained
from fedsparse.training import local
from fedsparse.training.gradients import Floats
from fedsparse.training.local import Trained

Half = Callable[[Indices], tuple[float, int, Floats]]
"""Takes positions in its own data set, and returns summed loss, right answers and mean gradient."""

Combine = Callable[[tuple[Floats, int] | None, tuple[Floats, int, float] | None], Floats]
"""Makes one gradient of those of two batches: of retained samples with their number, and of
forgotten ones with their number and mean loss; None for a batch that is empty."""


def pairs(
    size: int,
    retained: int,
    forgotten: int,
    rngs: tuple[np.random.Generator, np.random.Generator],
) -> Iterator[tuple[Indices, Indices]]:
    """Yield an epoch's pairs of batches, one of which is empty where there are fewer of its kind.

    The forgotten samples are spread evenly over the steps.
    """
    none = np.zeros(0, np.int64)
    own = list(local.batches(retained, size, rngs[0]))
    steps = max(len(own), -(-forgotten // size))
    parts = np.array_split(rngs[1].permutation(forgotten), steps) if forgotten else []
    yield from zip_longest(own, parts, fillvalue=none)


def train(
    own: Vector, retained: int, forgotten: int, combine: Combine, halves: tuple[Half, Half]
) -> Trained:
    """Take a step for each pair of batches, for the client's local epochs; return the figures.

    They are those of the retained data in the last epoch. Raises TrainingError for a loss that
    is not finite.
    """
    visit, (of_retained, of_forgotten) = own.visit, halves
    settings = visit.job.settings
    rngs = visit.stream("batches"), visit.stream("forgotten batches")
    loss, correct = 0.0, 0
    for epoch in range(settings.local_epochs):
        loss, correct = 0.0, 0
        for chosen, part in pairs(settings.batch_size, retained, forgotten, rngs):
            good, bad = None, None
            if len(chosen):
                found, right, gradient = of_retained(chosen)
                loss, correct = loss + found, correct + right
                good = gradient, len(chosen)
            if len(part):
                lost, _, pull = of_forgotten(part)
                bad = pull, len(part), lost / len(part)
            own.step(combine(good, bad))
        local.check_loss(loss, epoch + 1, "client.lr", visit.job.lr)
    return trained(loss, correct, retained)


def plain_halves(own: Vector, retained: int) -> tuple[Half, Half]:
    """Return gradients of the plain loss: of retained data, and of what follows it in the vector's.

    One retained sample alone is seen under running statistics, too.
    """

    def of_retained(chosen: Indices) -> tuple[float, int, Floats]:
        return own.gradient(chosen, still=retained < 2)

    def of_forgotten(part: Indices) -> tuple[float, int, Floats]:
        return own.gradient(retained + part, still=True)

    return of_retained, of_forgotten


def mean(like: Floats) -> Combine:
    """Return what makes the mean gradient over the samples of both batches."""

    def combine(good: tuple[Floats, int] | None, bad: tuple[Floats, int, float] | None) -> Floats:
        samples = (good[1] if good else 0) + (bad[1] if bad else 0)
        found = np.zeros_like(like)
        for half in (good, bad):
            if half is not None:
                found += half[0] * np.float32(half[1] / samples)
        return found

    return combine
