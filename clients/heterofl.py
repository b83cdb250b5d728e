"""HeteroFL's masked cross-entropy: a client learns to tell its own labels apart, no others.

The outputs of labels that it has no sample of count for nothing, in training and in use. What
makes them is sent back as it came, with which labels the client has.
"""

import numpy as np
from numpy.typing import NDArray

from clients.program import Outcome, Personal, Program, Visit
from fedsparse import messages, models, wire
from fedsparse.sparsity import State

NEVER = np.float32(-1e4)
"""A bias so low that the label's chance, and so its gradient, is exactly zero in float32."""


class OwnLabels(Program):
    """Plain rounds over the outputs of the client's own labels."""

    def train(self, visit: Visit) -> Outcome:
        """Train, and send back the model with the client's labels."""
        received, mask = visit.received.state, visit.received.mask
        has = own_labels(visit)
        model, trained = visit.fit(silenced(visit, received, has), mask)
        state = model.whole()
        for name in models.part(visit.job.model, "head"):
            state[name][~has] = received[name][~has]
        records = {messages.LABELS: wire.pack(np.packbits(has).tobytes())}
        return Outcome(state if mask is None else mask.take(state), trained, mask, records)

    def personal(self, visit: Visit) -> Personal:
        """Return the client's slice, which never names a label that the client has not."""
        whole = visit.whole()
        return Personal(silenced(visit, whole, own_labels(visit)), visit.received.mask)


def own_labels(visit: Visit) -> NDArray[np.bool_]:
    """Return for each label whether the client trains on a sample of it."""
    train = visit.job.data.train
    return np.bincount(train.y, minlength=train.classes) > 0


def silenced(visit: Visit, state: State, has: NDArray[np.bool_]) -> State:
    """Return a model without the outputs of absent labels (HeteroFL, masked cross-entropy)."""
    _, bias = models.part(visit.job.model, "head")
    return {**state, bias: np.where(has, state[bias], NEVER)}
