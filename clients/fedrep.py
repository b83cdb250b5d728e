"""FedRep's client: first its own head on the received body, then the body under that head."""

from clients.problems import solve
from clients.program import Outcome, Personal, Program, Visit
from fedsparse.sparsity import State
from fedsparse.training.local import Problem, Trained

HEAD = "head"


class FedRep(Program):
    """Train the head with the body frozen, then the body with the head frozen."""

    def train(self, visit: Visit) -> Outcome:
        """Send the trained body; keep the head."""
        head = fit_head(visit, visit.whole([HEAD]))
        visit.keep(HEAD, head)
        body, trained = fit_body(visit, {**head, **visit.received.state})
        return Outcome(body, trained)

    def personal(self, visit: Visit) -> Personal:
        """Return the body under the client's own head; one that has none yet trains one for this.

        That is how the paper brings in new clients: the body stays, the head is theirs.
        """
        head, flops = visit.recall(HEAD), 0.0
        if head is None:
            head, flops = fit_head(visit, visit.whole()), head_flops(visit)
        return Personal({**head, **visit.received.state}, None, flops)


def fit_head(visit: Visit, state: State) -> State:
    """Return the head after `head_epochs` with the body frozen."""
    frozen = frozenset(visit.job.schema.names)
    found, _ = solve(visit, state, Problem(frozen=frozen), purpose="head", epochs=epochs_of(visit))
    return {name: value for name, value in found.items() if name not in frozen}


def fit_body(visit: Visit, state: State) -> tuple[State, Trained]:
    """Return the body after the run's local epochs with the head frozen."""
    frozen = state.keys() - set(visit.job.schema.names)
    found, trained = solve(visit, state, Problem(frozen=frozenset(frozen)), purpose="batches")
    return visit.shared(found), trained


def head_flops(visit: Visit) -> float:
    """Return what training the head takes: all forward passes, and the head's own gradients."""
    cost, samples = visit.job.cost, len(visit.job.data.train.y)
    passes = cost.forward_flops() + cost.layers[-1].forward_flops
    return float(samples * epochs_of(visit) * passes)


def epochs_of(visit: Visit) -> int:
    """Return for how many epochs a head is trained."""
    return int(visit.settings["head_epochs"])
