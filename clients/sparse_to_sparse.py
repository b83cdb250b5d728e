"""Sparse training under a mask that moves: what clients of FedSpa and DisPFL do.

A client trains what its mask keeps. In rounds that ask for it, it then drops the smallest
kept weights of each layer and grows as many pruned ones of largest gradient. The new mask
holds from the next round on: what is sent are the weights that were trained.
"""

from collections.abc import Mapping

import numpy as np

from clients.program import Outcome, Program, Visit
from fedsparse import messages, wire
from fedsparse.sparsity import Mask, State
from fedsparse.sparsity.adjust import prune_and_grow
from fedsparse.training import price
from fedsparse.training.results import Top


class SparseToSparse(Program):
    """Train under the mask; move it as the plan says; send what was trained, and the moves."""

    def train(self, visit: Visit) -> Outcome:
        """Train the received model under its mask, and choose the next mask."""
        job, mask = visit.job, visit.received.mask
        assert mask is not None
        model, trained = visit.fit(visit.received.state, mask)
        if not job.plan.grow:
            return Outcome(model.kept(), trained, mask)
        samples = price.growth_samples(job.settings, job.plan, len(job.data.train.y))
        gradients = model.top_gradients(job.draw(samples, "growth"), job.plan.grow)
        moved = moved_mask(model.whole(), mask, gradients, job.plan.grow)
        moves = wire.pack(wire.encode_mask(mask ^ moved))
        return Outcome(model.kept(), trained, mask, {messages.GROWTH: moves}, held=moved)


def moved_mask(
    state: State, mask: Mask, gradients: Mapping[str, Top], counts: Mapping[str, int]
) -> Mask:
    """Drop each layer's `counts` smallest |w|, and grow as many of largest |gradient|.

    What is dropped cannot grow again at once, so gradients of pruned weights suffice.
    """
    bits = {name: np.array(part) for name, part in mask.items()}
    for name, count in counts.items():
        positions, values = gradients[name]
        whole = np.zeros(mask.shapes[name], np.float32)
        whole.reshape(-1)[positions] = values
        bits[name] = prune_and_grow(state[name], bits[name], whole, count)
    return Mask.from_arrays(bits)
