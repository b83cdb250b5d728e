"""Which worker does what of a round, and in which batches.

Workers should end together: a round is as long as its slowest one. So the heaviest clients are
dealt first, and the lightest are left for whoever is idle at the end.
"""

from collections import deque
from collections.abc import Callable, Iterable, Sequence

from simulations.parcels import Parcel

Weigh = Callable[[int], float]
"""How long a client takes, beside others: its number of samples, say."""


def alike(client: int) -> float:
    """Weigh all clients the same."""
    return 1.0


class Work:
    """What is still to be handed out: a queue for each worker, and what is asked for again.

    A client goes to the worker of its number, which knows its state, unless that one has its
    share. A worker takes half of what is left in its queue, so that the others can take over the
    rest; one whose queue is empty takes half of the heaviest, from the end. Batches weigh no less
    than `least`; `mean` is what a client weighs.
    """

    least = 0.0

    def __init__(self, parcels: Sequence[Parcel], workers: int, weigh: Weigh = alike) -> None:
        # Every client takes some time, so none weighs nothing.
        self._weights = {parcel.client: max(1.0, weigh(parcel.client)) for parcel in parcels}
        self._queues: list[deque[Parcel]] = [deque() for _ in range(workers)]
        self._loads = [0.0] * workers
        self._alone: deque[Parcel] = deque()
        self._lost: set[int] = set()
        total = sum(self._weights.values())
        self.mean = total / len(parcels) if parcels else 0.0
        share = total / workers
        for parcel in sorted(parcels, key=lambda p: self._weights[p.client], reverse=True):
            home = parcel.client % workers
            if self._loads[home] + self._weights[parcel.client] > share:
                home = self._loads.index(min(self._loads))
            self._put(parcel, home)

    def __bool__(self) -> bool:
        return bool(self._alone) or any(self._queues)

    def take(self, number: int) -> list[Parcel]:
        """Return a worker's next batch; retries come last, each alone."""
        if self._queues[number]:
            return self._cut(number, deque.popleft)
        waiting = [number for number, queue in enumerate(self._queues) if queue]
        if waiting:
            return self._cut(max(waiting, key=self._loads.__getitem__), deque.pop)[::-1]
        return [self._alone.popleft()]

    def _cut(self, number: int, pop: Callable[[deque[Parcel]], Parcel]) -> list[Parcel]:
        """Take half of a queue, by weight."""
        queue, weight = self._queues[number], 0.0
        batch: list[Parcel] = []
        wanted = max(self.least, self._loads[number] / 2)
        while queue and (not batch or weight < wanted):
            parcel = pop(queue)
            batch.append(parcel)
            weight += self._weights[parcel.client]
        self._loads[number] = self._loads[number] - weight if queue else 0.0
        return batch

    def _put(self, parcel: Parcel, number: int) -> None:
        self._queues[number].append(parcel)
        self._loads[number] += self._weights[parcel.client]

    def again(self, parcel: Parcel) -> None:
        """Hand a parcel out once more: its state must be sent after all."""
        self._put(parcel, parcel.client % len(self._queues))

    def lost(self, parcels: Iterable[Parcel]) -> list[Parcel]:
        """Hand out again what a lost worker had not answered; return what was lost twice."""
        twice: list[Parcel] = []
        once: list[Parcel] = []
        for parcel in parcels:
            (twice if parcel.client in self._lost else once).append(parcel)
        self._lost |= {parcel.client for parcel in once}
        self._alone.extend(once)
        return twice

    def weight(self, client: int) -> float:
        """Return what a client that was handed out weighs."""
        return self._weights[client]
