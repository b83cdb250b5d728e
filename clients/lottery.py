"""LotteryFL (Li et al. 2020): each client looks for a winning ticket of its own.

A ticket is a mask and the initial weights under it. A client whose masked global model does
well enough on its data prunes that further, rewinds what is left, and trains it. As pruning is
by the global weights, tickets differ by when clients prune.
"""

from clients.program import Outcome, Program, Visit
from clients.tickets import accuracy, can_prune, cost_of, floors, prune_smallest
from fedsparse.sparsity import Mask, State


class Lottery(Program):
    """Prune and rewind where the accuracy allows it, train, send the ticket alone.

    The personal model is the client's mask on the global weights.
    """

    def train(self, visit: Visit) -> Outcome:
        """Train the ticket that was received, or a smaller one from the initial weights."""
        job, state, mask = visit.job, visit.received.state, visit.received.mask
        assert mask is not None
        least, tested = floors(visit), None
        if can_prune(mask, least):
            tested = mask
            if accuracy(visit, state, mask) >= float(visit.settings["accuracy_threshold"]):
                mask = prune_smallest(state, mask, float(visit.settings["prune_rate"]), least)
                state = rewound(job.initial, mask)
        model, trained = visit.fit(state, mask)
        return Outcome(model.kept(), trained, mask, price=cost_of(job, mask, tested))


def rewound(initial: State, mask: Mask) -> State:
    """Return the initial model, zero where the mask prunes."""
    state = {name: value.copy() for name, value in initial.items()}
    mask.apply_(state)
    return state
