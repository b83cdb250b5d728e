"""The samples that an audit looks at: forgotten, retained, tested, and never seen to compare with.

All sets are bounded and drawn by fixed streams, so that huge fleets can be audited and every
model of an audit is asked the same.
"""

from collections.abc import Collection, Sequence
from dataclasses import dataclass

import numpy as np

from fedsparse import data, seeds
from fedsparse.config import Config
from fedsparse.data import Dataset, FederatedData, backdoor
from fedsparse.data.samples import Indices
from fedsparse.errors import DataError
from simulations.evidence import lira

MOST = 20_000
"""Samples of a set that are looked at: shares of so many are within 0.7 points of the whole's."""
SEED = 0
"""Of the audit's own draws: they are the same whatever the run's seed."""


@dataclass(frozen=True)
class Samples:
    """The sets of an audit; sets of what a run has not are empty.

    `members` and `unseen` are positions in `forgotten` and in `compared`, labels alike in
    proportion: what strong attacks are to tell apart. None of the compared samples was seen, and
    none of the members has a trigger.
    """

    kind: str
    forgotten: Dataset
    retained: Dataset
    test: Dataset
    test_forgotten: Dataset
    triggered: Dataset
    members: np.ndarray
    unseen: np.ndarray

    @property
    def compared(self) -> Dataset:
        """Test samples of the forgotten classes, or of all where no class is forgotten."""
        return self.test_forgotten if self.kind == "class" else self.test

    def sizes(self) -> dict[str, int]:
        """Return how many samples each set holds."""
        sets = ("forgotten", "retained", "test", "test_forgotten", "triggered")
        found = {name: len(getattr(self, name)) for name in sets}
        return {**found, "members": len(self.members), "unseen": len(self.unseen)}


def samples(
    parent: Config, child: Config, most: int = MOST, trained: Collection[int] | None = None
) -> Samples:
    """Return what to look at, given the original's configuration and the unlearned one's.

    `trained` are the clients whose training the original took in, all if unset: nobody else's
    samples were learnt. No set holds more than `most` samples. What the original had forgotten
    before is no part of it. Raises DataError for a regression, and where nothing is forgotten.
    """
    whole, without = data.of(parent), data.of(child)
    if whole.classes == 1:
        raise DataError("the audit asks how sure a model is of a class; these targets are numbers")
    every = range(parent.fleet.training_clients)
    training = list(every) if trained is None else sorted(set(every).intersection(trained))
    forgotten = _forgotten(whole, without, training, most)
    if not len(forgotten):
        raise DataError("the run learnt from no sample of the target: there is nothing to audit")
    test = _bounded(without.test, most, "test samples")
    none = test.take(np.empty(0, np.int64))
    held_out = none if without.test_forgotten is None else without.test_forgotten
    known = ~np.isin(held_out.y, sorted(parent.forget.class_set))
    test_forgotten = _bounded(held_out.take(np.flatnonzero(known)), most, "forgotten tests")
    triggered = whole.triggered
    kind = _kind(parent, child)
    unseen = test_forgotten if kind == "class" else test
    clean = _clean(whole, forgotten)
    members, others = lira.matched(forgotten.y[clean], unseen.y, _rng("attacked samples"))
    return Samples(
        kind=kind,
        forgotten=forgotten,
        retained=_retained(without, training, most),
        test=test,
        test_forgotten=test_forgotten,
        triggered=none if triggered is None else _bounded(triggered, most, "triggered samples"),
        members=clean[members],
        unseen=others,
    )


def _clean(whole: FederatedData, forgotten: Dataset) -> Indices:
    """Return the forgotten samples without a trigger: no test sample is like one with it."""
    if not whole.attack.clients:
        return np.arange(len(forgotten))
    return np.flatnonzero(~backdoor.stamped(forgotten.x, whole.attack.size, whole.patch))


def _kind(parent: Config, child: Config) -> str:
    """Return what is newly forgotten: client, class or samples; the widest of several."""
    return child.forget.since(parent.forget).kind or "samples"


def _forgotten(
    whole: FederatedData, without: FederatedData, training: Sequence[int], most: int
) -> Dataset:
    """Return the training samples that `without` forgets and `whole` had not forgotten yet.

    Clients are gone through in a random order until `most` are found.
    """
    forget = without.forget
    clients = [
        client
        for client in training
        if forget.classes or forget.samples or client in forget.client_set
    ]
    found: list[Dataset] = []
    count = 0
    for client in _rng("forgotten clients").permutation(np.array(clients, np.int64)).tolist():
        gone, before = without.gone(client), whole.gone(client)
        own = without.forgotten(client).take(np.flatnonzero(~before[gone]))
        found += [own] if len(own) else []
        count += len(own)
        if count >= most:
            break
    if not found:
        return without.train.take(np.empty(0, np.int64))
    return _bounded(_joined(found), most, "forgotten samples")


def _retained(federated: FederatedData, training: Sequence[int], most: int) -> Dataset:
    """Return retained training samples: all of them, or `most` drawn from all clients alike."""
    clients = [client for client in training if client not in federated.absent]
    sizes = federated.train_sizes[clients]
    ends = np.cumsum(sizes)
    chosen = np.arange(ends[-1]) if len(ends) else np.empty(0, np.int64)
    if len(chosen) > most:
        chosen = np.sort(_rng("retained samples").choice(ends[-1], most, replace=False))
    owners = np.searchsorted(ends, chosen, "right")
    starts = ends - sizes
    parts = [
        federated.client(clients[place]).train.take(chosen[owners == place] - starts[place])
        for place in np.unique(owners).tolist()
    ]
    return _joined(parts) if parts else federated.train.take(chosen)


def _bounded(found: Dataset, most: int, purpose: str) -> Dataset:
    if len(found) <= most:
        return found
    return found.take(np.sort(_rng(purpose).permutation(len(found))[:most]))


def _joined(parts: list[Dataset]) -> Dataset:
    x, y = (np.concatenate([getattr(part, name) for part in parts]) for name in "xy")
    return Dataset(x, y, parts[0].classes)


def _rng(purpose: str) -> np.random.Generator:
    return seeds.stream(SEED, 0, seeds.SERVER, f"audit: {purpose}")
