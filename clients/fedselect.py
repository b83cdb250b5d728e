"""FedSelect's client: weights of its own beside shared ones, and more of its own each round.

The received mask says which weights are shared. The others are trained first, with all that is
shared held still; then what is shared, with the others held still. Of each layer the shared
weights that the round moved most become the client's own.
"""

import math
from dataclasses import replace

import numpy as np

from clients.problems import solve
from clients.program import Outcome, Personal, Program, Visit
from fedsparse.sparsity import Mask, State
from fedsparse.training.local import Problem, Trained
from fedsparse.training.price import price

OWN = "own"


class FedSelect(Program):
    """Train own and shared weights in turn; keep the own ones, send the rest."""

    def train(self, visit: Visit) -> Outcome:
        """Send what is shared under the client's next mask."""
        shared = shared_mask(visit)
        start = merged(visit, shared)
        found, trained = fit_shared(visit, fit_own(visit, start, shared), shared)
        rate, limit = (float(visit.settings[f"personal_{key}"]) for key in ("rate", "limit"))
        after = selected(start, found, shared, rate, limit)
        visit.keep(OWN, {name: found[name] for name in after.names}, own_mask(after))
        job = visit.job
        plan = job.plan if own_mask(shared).kept else replace(job.plan, work=1.0)
        cost = price(job.cost, job.settings, plan, len(job.data.train.y))
        return Outcome(after.take(found), trained, after, price=cost)

    def personal(self, visit: Visit) -> Personal:
        """Return the shared weights with the client's own."""
        return Personal(merged(visit, shared_mask(visit)))


def shared_mask(visit: Visit) -> Mask:
    """Return which weights are shared, as the server says."""
    return visit.received.mask or Mask.full(visit.job.shapes)


def own_mask(shared: Mask) -> Mask:
    """Return which weights are the client's own."""
    return Mask.full(shared.shapes) - shared


def merged(visit: Visit, shared: Mask) -> State:
    """Return the received model with the client's own weights where none are shared."""
    own = visit.recall(OWN) or visit.job.initial
    received = visit.received.state
    return {
        name: np.where(shared[name], value, own[name]) if name in shared else value
        for name, value in received.items()
    }


def fit_own(visit: Visit, state: State, shared: Mask) -> State:
    """Return the model after `personal_epochs` of its own weights, all else held still."""
    own = own_mask(shared)
    if not own.kept:
        return state
    problem = Problem(frozen=frozenset(state.keys() - set(own.names)), movable=own)
    epochs = int(visit.settings["personal_epochs"])
    found, _ = solve(visit, state, problem, purpose="personal", epochs=epochs)
    return {**state, **{name: found[name] for name in own.names}}


def fit_shared(visit: Visit, state: State, shared: Mask) -> tuple[State, Trained]:
    """Return the model after the run's local epochs of what is shared."""
    if not own_mask(shared).kept:
        model, trained = visit.fit(state)
        return model.whole(), trained
    return solve(visit, state, Problem(movable=shared), purpose="batches")


def selected(before: State, after: State, shared: Mask, rate: float, limit: float) -> Mask:
    """Return the next mask of shared weights: those that changed most leave it, layer by layer.

    A layer gives up the fraction `rate` of its weights, rounded up, until `limit` of them, rounded
    down, are the client's own. Of equal changes the first go.
    """
    left = {}
    for name, bits in shared.items():
        own = bits.size - int(bits.sum())
        count = max(0, min(math.ceil(rate * bits.size), math.floor(limit * bits.size) - own))
        change = np.where(bits, np.abs(after[name] - before[name]), -1.0).reshape(-1)
        most = np.argsort(-change, kind="stable")[:count]
        flat = bits.reshape(-1).copy()
        flat[most] = False
        left[name] = flat.reshape(bits.shape)
    return Mask.from_arrays(left)
