"""Ditto's client: the global model's training, and beside it a personal model that is kept."""

from dataclasses import replace

from clients.problems import solve
from clients.program import Outcome, Personal, Program, Visit
from fedsparse.sparsity import State
from fedsparse.training.local import Problem
from fedsparse.training.price import price

OWN = "own"


class Ditto(Program):
    """Train the personal model near the received one, then the received one as ever."""

    def train(self, visit: Visit) -> Outcome:
        """Send the global model's training, which the personal model has no part in."""
        visit.keep(OWN, fit_personal(visit))
        return super().train(visit)

    def personal(self, visit: Visit) -> Personal:
        """Return the kept model; a client that has none yet trains one for this."""
        kept = visit.recall(OWN)
        if kept is not None:
            return Personal(kept)
        job = visit.job
        settings = job.settings.model_copy(update={"local_epochs": epochs_of(visit)})
        plan = replace(job.plan, work=1.0)
        cost = price(job.cost, settings, plan, len(job.data.train.y))
        return Personal(fit_personal(visit), None, cost.flops)


def fit_personal(visit: Visit) -> State:
    """v <- argmin F_k(v) + lambda/2 ||v - w||^2 by local steps.

    v starts where the client left it, a new client's at w, the received model.
    """
    received = visit.received.state
    pull = float(visit.settings["personal_lambda"])
    start = visit.recall(OWN) or received
    found, _ = solve(
        visit,
        start,
        Problem(anchor=received),
        purpose="personal",
        epochs=epochs_of(visit),
        proximal_mu=pull,
    )
    return found


def epochs_of(visit: Visit) -> int:
    """Return for how many epochs a round the personal model is trained."""
    return int(visit.settings["personal_epochs"])
