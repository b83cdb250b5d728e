"""Sub-FedAvg (Vahidian et al. 2021): each client prunes towards a subnetwork of its own.

It prunes after a round's training, by magnitude, where its mask is still moving and the pruned
model does well enough. Unstructured pruning alone; the paper's hybrid, which also prunes
channels, is left out.
"""

import numpy as np

from clients.program import Outcome, Personal, Program, Visit
from clients.tickets import accuracy, can_prune, cost_of, floors, prune_smallest
from fedsparse.sparsity import Mask, State
from fedsparse.training.results import Trained

OWN = "own"


class SubFedAvg(Program):
    """Train, prune where two conditions allow it, keep the subnetwork, send its weights.

    The personal model is the subnetwork as the client last trained it.
    """

    def train(self, visit: Visit) -> Outcome:
        """Train the subnetwork that was received, and send it or a smaller one."""
        job, mask = visit.job, visit.received.mask
        assert mask is not None
        least = floors(visit)
        first, state, trained = trained_twice(visit, mask)
        pruned = None
        if can_prune(mask, least):
            pruned = self.pruned(visit, first, state, mask, least)
        after = self.accepted(visit, state, mask, pruned)
        if after is not mask:
            after.apply_(state)
        visit.keep(OWN, state, after)
        return Outcome(after.take(state), trained, after, price=cost_of(job, mask, pruned))

    def pruned(
        self, visit: Visit, first: State, last: State, mask: Mask, least: dict[str, int]
    ) -> Mask | None:
        """Return the next mask where that of the first epoch is far enough from the last's.

        They are compared after a whole step, also where the density allows only a part of it.
        """
        rate, one = float(visit.settings["prune_rate"]), dict.fromkeys(mask.names, 1)
        apart = distance(*(prune_smallest(state, mask, rate, one) for state in (first, last)))
        far = apart > float(visit.settings["distance_threshold"])
        return prune_smallest(last, mask, rate, least) if far else None

    def accepted(self, visit: Visit, state: State, mask: Mask, pruned: Mask | None) -> Mask:
        """Return the pruned mask if the model is accurate enough under it, else the old one."""
        if pruned is None:
            return mask
        smaller = pruned.spread(pruned.take(state))
        enough = float(visit.settings["accuracy_threshold"])
        return pruned if accuracy(visit, smaller, pruned) > enough else mask

    def personal(self, visit: Visit) -> Personal:
        """Return the subnetwork as last trained; who has none takes the global weights."""
        state = visit.recall(OWN)
        if state is None:
            return super().personal(visit)
        return Personal(state, visit.recall_mask(OWN))


def trained_twice(visit: Visit, mask: Mask) -> tuple[State, State, Trained]:
    """Return the model after the first and after the last local epoch.

    With one epoch in all, the first is the model that was received.
    """
    job, rng = visit.job, visit.stream("batches")
    model = job.backend.load(visit.received.state, mask)
    epochs, trained = job.settings.local_epochs, None
    first = visit.received.state
    if epochs > 1:
        trained = model.train(job.data.train, job.settings, rng=rng, lr=job.lr, epochs=1)
        first = model.whole()
    trained = model.train(
        job.data.train,
        job.settings,
        rng=rng,
        lr=job.lr,
        epochs=max(1, epochs - 1),
        optimizer_state=trained.slots() if trained else None,
    )
    return first, model.whole(), trained


def distance(one: Mask, other: Mask) -> float:
    """Return the mean over layers of the fraction of weights in which two masks differ."""
    apart = (one ^ other).layer_density()
    return float(np.mean([apart[name] for name in one.names]))
