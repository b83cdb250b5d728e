"""Models of which a part is shared and the rest is the client's own.

What travels is the plan's `part`: a head or a body (FedPer, LG-FedAvg), all but BatchNorm
(FedBN), or nothing at all.
"""

from clients.program import Outcome, Personal, Program, Visit

REST = "rest"


class Split(Program):
    """Train shared and own tensors together; send the shared, keep the others."""

    def train(self, visit: Visit) -> Outcome:
        """Train the whole model on the client's data."""
        model, trained = visit.fit(visit.whole([REST]))
        state = model.whole()
        shared = visit.shared(state)
        visit.keep(REST, {name: value for name, value in state.items() if name not in shared})
        return Outcome(shared, trained)

    def personal(self, visit: Visit) -> Personal:
        """Return the shared tensors with the client's own."""
        return Personal(visit.whole([REST]))
