"""Class-discriminative pruning at a client (Wang et al., WWW 2022): which channels see which class.

The client tells the mean activation of each channel by class, of the classes to be forgotten too,
and trains plainly on what it retains.
"""

from dataclasses import replace

from clients.program import Outcome, Program, Visit
from clients.unlearning.vector import joined
from fedsparse import messages, models, wire
from fedsparse.training import channels
from fedsparse.training.price import price


class DiscriminativePruning(Program):
    """Measure channels by class, then train plainly on the retained data."""

    def train(self, visit: Visit) -> Outcome:
        """Return the trained model, and in a record the received one's activations."""
        job, mask = visit.job, visit.received.mask
        data = joined(job.data.train, job.forgotten)
        models.load_state(job.model, visit.received.state)
        found = channels.activations(job.model, data)
        outcome = super().train(visit)
        kept = None if mask is None else mask.layer_kept()
        cost = price(job.cost, job.config.client, job.plan, len(job.data.train), kept)
        cost = replace(cost, flops=cost.flops + len(data) * job.cost.flops_of(kept))
        records = {**outcome.records, messages.ACTIVATIONS: wire.pack(wire.encode(found))}
        return replace(outcome, records=records, price=cost)
