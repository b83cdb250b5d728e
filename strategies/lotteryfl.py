"""LotteryFL (Li et al. 2020): personal lottery tickets of one global model.

A client downloads its ticket of the global weights. If that is accurate enough on the client's
data, the client prunes it further and rewinds it to the initial weights; it trains what it has,
and uploads that ticket alone. The server averages tickets where they overlap.

As in the authors' code, a client tests the masked global model before it trains, and prunes
each layer by the same rate. Here clients count by their samples; the test is on a client's own
training samples, so that those held out stay unseen; the last step prunes only down to the
density; and what no mask covers is rewound with the weights. While clients prune, they start
anew in every round: give a run enough rounds after that.
"""

from strategies.tickets import Tickets


class LotteryFl(Tickets):
    """Masked averaging of tickets that clients prune and rewind."""

    program = "lottery"

    @property
    def held_entries(self) -> int:
        """The initial model, to which a ticket is rewound."""
        return self.schema.entries
