"""NegGrad+ at a client (Kurmanji et al. 2023): down on retained data and up on the rest at once."""

import numpy as np

from clients.program import Outcome, Program, Visit
from clients.unlearning import paired
from clients.unlearning.ascent import bound_of
from clients.unlearning.vector import Vector, joined
from fedsparse.training.gradients import Floats


class NegGrad(Program):
    """Train on retained data, less the gradients of the data to be forgotten."""

    def train(self, visit: Visit) -> Outcome:
        """Minimise alpha L(D_r) - (1 - alpha) L(D_f), the latter up to its bound."""
        kept, gone = visit.job.data.train, visit.job.forgotten
        own = Vector(visit, joined(kept, gone))
        up, bound = float(visit.settings["forget_weight"]), bound_of(visit)

        def combine(
            good: tuple[Floats, int] | None, bad: tuple[Floats, int, float] | None
        ) -> Floats:
            found = np.zeros_like(own.values)
            if good is not None:
                found += np.float32(1 - up) * good[0]
            if bad is not None and bad[2] <= bound:
                found -= np.float32(up) * bad[0]
            return found

        halves = paired.plain_halves(own, len(kept))
        return own.outcome(paired.train(own, len(kept), len(gone), combine, halves))
