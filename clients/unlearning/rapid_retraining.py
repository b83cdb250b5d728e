"""Rapid retraining at a client (Liu et al., INFOCOM 2022): steps scaled by the diagonal Fisher.

The empirical Fisher's diagonal stands for the Hessian; it is estimated by squared gradients of
batches, with momentum over the steps of a visit.
"""

import numpy as np

from clients.program import Outcome, Program, Visit
from clients.unlearning.vector import Vector, trained
from fedsparse.training import local


class RapidRetraining(Program):
    """Quasi-Newton steps on the retained data."""

    def train(self, visit: Visit) -> Outcome:
        """F <- beta F + (1 - beta) g^2; theta <- theta - lr g / (F + lambda), F unbiased."""
        job, data = visit.job, visit.job.data.train
        own = Vector(visit, data)
        damping = np.float32(visit.settings["damping"])
        beta = float(visit.settings["fisher_momentum"])
        rng, fisher, steps = visit.stream("batches"), np.zeros_like(own.values), 0
        loss, correct = 0.0, 0
        for epoch in range(job.settings.local_epochs):
            loss, correct = 0.0, 0
            for chosen in local.batches(len(data), job.settings.batch_size, rng):
                found, right, gradient = own.gradient(chosen, still=len(data) < 2)
                loss, correct, steps = loss + found, correct + right, steps + 1
                fisher += np.float32(1 - beta) * (gradient * gradient - fisher)
                unbiased = fisher / np.float32(1 - beta**steps)
                own.move(gradient / (unbiased + damping), job.lr)
            local.check_loss(loss, epoch + 1, "client.lr", job.lr)
        return own.outcome(trained(loss, correct, len(data), data))
