"""FedEraser at a client (Liu et al. 2021): the direction of an update, and how long updates were.

A run that keeps norms is told by each client how far every tensor moved. When it forgets, clients
train for fewer epochs, only for the direction, and the kept norm says how far to go.
"""

import numpy as np

from clients.job import Received
from clients.program import Outcome, Program, Visit
from fedsparse import messages
from fedsparse.sparsity import Mask, State


class FedEraser(Program):
    """Train for a part of the local epochs: the server wants the update's direction alone."""

    def train(self, visit: Visit) -> Outcome:
        """Train for `ratio` of the local epochs, one at least."""
        local = visit.job.settings.local_epochs
        epochs = max(1, round(float(visit.settings["ratio"]) * local))
        model, trained = visit.fit(visit.received.state, visit.received.mask, epochs=epochs)
        return Outcome(model.kept(), trained, visit.received.mask)


def norms(kept: State, mask: Mask | None, received: Received) -> dict[str, list[float]]:
    """Return ||w - w_0|| of every tensor that travels, in their order, as a reply's figures.

    `kept` holds, of tensors that the mask covers, the kept values alone.
    """
    before = received.state if mask is None else mask.take(received.state)
    moved = (value.reshape(-1) - before[name].reshape(-1) for name, value in kept.items())
    return {messages.NORMS_KEY: [float(np.linalg.norm(each)) for each in moved]}
