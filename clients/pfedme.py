"""pFedMe's client: a personal model near the shared one, and steps of the shared one to it."""

import numpy as np

from clients.program import Outcome, Personal, Program, Visit
from fedsparse import models
from fedsparse.data import Dataset
from fedsparse.sparsity import State
from fedsparse.training import local
from fedsparse.training.local import Problem, Trained
from fedsparse.training.price import price

OWN = "own"


class PFedMe(Program):
    """Solve the inner problem batch by batch; keep theta, send w."""

    def train(self, visit: Visit) -> Outcome:
        """Send w after the local rounds; keep the last theta."""
        shared, theta, trained = local_rounds(visit)
        visit.keep(OWN, theta)
        return Outcome(shared, trained)

    def personal(self, visit: Visit) -> Personal:
        """Return the kept theta; a client that has none yet finds one for this."""
        kept = visit.recall(OWN)
        if kept is not None:
            return Personal(kept)
        _, theta, _ = local_rounds(visit)
        job = visit.job
        cost = price(job.cost, job.settings, job.plan, len(job.data.train.y))
        return Personal(theta, None, cost.flops)


def local_rounds(visit: Visit) -> tuple[State, State, Trained]:
    """Return w, theta and figures after a local round on each batch.

    theta starts at the received model. BatchNorm's statistics, which no gradient moves, are
    those of theta in both models. Raises as `local.train` does.
    """
    job, data = visit.job, visit.job.data.train
    rng = visit.stream("batches")
    models.load_state(job.model, visit.received.state)
    theta = models.get_state(job.model)
    shared = {name: theta[name] for name, _ in job.model.named_parameters()}
    loss = accuracy = 0.0
    for _ in range(job.settings.local_epochs):
        loss = accuracy = 0.0
        for index in local.batches(len(data.y), job.settings.batch_size, rng):
            batch = Dataset(data.x[index], data.y[index], data.classes)
            trained = inner_steps(visit, batch, shared, rng)
            theta = models.get_state(job.model)
            shared = outer_step(visit, shared, theta)
            loss += trained.loss * len(index) / len(data.y)
            accuracy += trained.accuracy * len(index) / len(data.y)
    seen = job.settings.local_epochs * len(data.y)
    return {**theta, **shared}, theta, Trained(loss, accuracy, seen, dict)


def inner_steps(visit: Visit, batch: Dataset, shared: State, rng: np.random.Generator) -> Trained:
    """Take K steps of theta to argmin f(theta; batch) + lambda/2 ||theta - w||^2.

    They are plain gradient steps, as in the paper, whatever the run's optimizer is.
    """
    job = visit.job
    plain = {"optimizer": "sgd", "momentum": 0.0, "batch_size": len(batch.y)}
    return local.train(
        job.model,
        batch,
        job.settings.model_copy(update=plain),
        rng=rng,
        lr=job.lr,
        epochs=int(visit.settings["inner_steps"]),
        proximal_mu=setting(visit, "personal_lambda"),
        problem=Problem(anchor=shared),
    )


def outer_step(visit: Visit, shared: State, theta: State) -> State:
    """Return w - eta lambda (w - theta), which is a gradient step on the Moreau envelope."""
    rate = np.float32(setting(visit, "outer_lr") * setting(visit, "personal_lambda"))
    return {name: w - rate * (w - theta[name]) for name, w in shared.items()}


def setting(visit: Visit, key: str) -> float:
    """Return a number among the strategy's settings."""
    return float(visit.settings[key])
