"""Who can take part: whose device holds the training, and what is done for those it does not.

The need is that of (model, mask, optimizer, batch, method), as `fedsparse.training.price`
counts it. Nothing here is built for each client of the fleet: one client is looked at when
it is drawn, all of them as columns.
"""

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from fedsparse.devices import Device, Fleet
from fedsparse.errors import ConfigError
from fedsparse.messages import Plan
from fedsparse.sparsity.cost import VALUE_BYTES
from fedsparse.training.price import Price, price
from strategies.seats import FULL, Demands, Kept, KeptOf, Seat, erk_counts, kept_for, shared_counts
from strategies.task import Task

SHARES = (0.5, 0.25, 0.125, 0.0625, 0.03125)
"""Parts of the global mask that a client with too little memory is offered."""

NO_DENSITY = (
    "no density would fit: lower client.batch_size, for all or with --set fleet.fit=batch for "
    "those that need it, or choose a smaller model or larger devices"
)

BISECTIONS = 24
"""Halvings in the search for a density that fits."""

Floats = NDArray[np.float64]


@dataclass(frozen=True)
class Refusals:
    """How many clients of the fleet cannot take part and why, and how many get a smaller seat."""

    reasons: dict[str, int]
    profiles: dict[str, int]
    reduced: dict[str, int]

    @property
    def total(self) -> int:
        """All that are refused."""
        return sum(self.reasons.values())


class Enrolment:
    """The fleet of a run, with what the run's training needs."""

    def __init__(self, task: Task, fleet: Fleet) -> None:
        self.task = task
        self.fleet = fleet
        self.settings = task.config.client
        self.present = np.zeros(fleet.clients, bool)
        """Which clients take part in training."""
        self.present[: task.config.fleet.training_clients] = True
        self.present[sorted(task.absent)] = False
        self.training = int(np.count_nonzero(self.present))
        """How many these are."""
        self.whole = {layer.name: layer.weights for layer in task.cost.layers}
        self._sizes, self._place = np.unique(task.data.train_sizes, return_inverse=True)

    # -- one client -------------------------------------------------------------------

    def price(
        self, client: int, plan: Plan, kept: Kept | KeptOf | None, seat: Seat = FULL
    ) -> Price:
        """Return what a round costs a client in a seat."""
        samples = self.task.data.train_samples(client)
        return self._price(samples, plan, kept_for(kept, client), seat)

    def density(self, kept: Kept | None) -> float:
        """Return the density that a device computes at: kept FLOPs over dense FLOPs."""
        cost = self.task.cost
        return float(cost.flops_of(kept) / cost.flops_of(None))

    def seat(
        self, client: int, plan: Plan, kept: Kept | KeptOf | None, fits: frozenset[str]
    ) -> tuple[Seat, Price] | None:
        """Return the largest seat whose training the client's device holds; None for none."""
        device, kept = self.fleet.device(client), kept_for(kept, client)
        for seat in self.seats(fits):
            cost = self.price(client, plan, kept, seat)
            if self._holds(device, cost, seat, kept):
                return seat, cost
        return None

    def seats(self, fits: frozenset[str]) -> Iterator[Seat]:
        """Yield the seats that the strategy and `fleet.fit` allow, the largest first."""
        yield FULL
        wanted = self.task.config.fleet.fit
        least = 0
        if "batch" in fits and wanted in ("batch", "both"):
            size = self.settings.batch_size
            while size > 2:
                least = size = max(2, size // 2)
                yield Seat(batch_size=size)
        if "density" in fits and wanted in ("density", "both"):
            yield from (Seat(batch_size=least, share=share) for share in SHARES)

    def _holds(self, device: Device, cost: Price, seat: Seat, kept: Kept | None) -> bool:
        if cost.memory.total > device.memory_bytes:
            return False
        if cost.memory.parameters > device.storage_bytes:
            return False
        if device.battery_joules is None:
            return True
        density = self.density(self.counts(kept, seat.share))
        seconds = compute_seconds(device, cost, density, cost.flops)
        return device.joules(seconds, 0.0) <= device.battery_joules

    def _price(self, samples: int, plan: Plan, kept: Kept | None, seat: Seat) -> Price:
        counts = self.counts(kept, seat.share)
        seated = replace(plan, batch_size=seat.batch_size or plan.batch_size)
        return price(self.task.cost, self.settings, seated, samples, counts)

    def counts(self, kept: Kept | None, share: float) -> Kept | None:
        """Return the weights that a seat of a share keeps by layer; None for all of them."""
        return kept if share >= 1 else shared_counts(kept or self.whole, share)

    def budget(
        self,
        client: int,
        plan: Plan,
        kept_of: Callable[[float], Kept | None],
        choices: Sequence[float],
    ) -> float | None:
        """Return the largest of some budgets whose training the client's device holds.

        `kept_of` says which weights a budget keeps at most. With `fleet.deadline`, fetching the
        kept values, training them and sending them must take no longer. None for none.
        """
        device = self.fleet.device(client)
        deadline = self.task.config.fleet.deadline or math.inf
        for share in sorted(choices, reverse=True):
            kept = kept_of(share)
            cost = self.price(client, plan, kept)
            if not self._holds(device, cost, FULL, kept):
                continue
            size = VALUE_BYTES * sum((kept or self.whole).values())
            seconds = compute_seconds(device, cost, self.density(kept), cost.flops)
            travel = device.download_seconds(size, 0.0) + device.upload_seconds(size, 0.0)
            if seconds + travel <= deadline:
                return share
        return None

    # -- all clients ------------------------------------------------------------------

    def refused(self, plan: Plan, kept: Kept | KeptOf | None, fits: frozenset[str]) -> int:
        """Return how many clients of the fleet hold the training in no seat."""
        *_, least = self.seats(fits)
        return int(np.count_nonzero(self._reason(plan, kept, least)[self.present]))

    def refusals(self, plan: Plan, kept: Kept | KeptOf | None, fits: frozenset[str]) -> Refusals:
        """Return who is refused and why, and who gets a smaller seat, counted over the fleet."""
        columns = self.fleet.columns()
        reasons = np.zeros(self.fleet.clients, np.int8)
        reduced = {"batch": 0, "density": 0}
        waiting = self.present.copy()
        for seat in self.seats(fits):
            reasons = self._reason(plan, kept, seat)
            seated = waiting & (reasons == 0)
            if seat != FULL:
                reduced["density" if seat.share < 1 else "batch"] += int(np.count_nonzero(seated))
            waiting &= ~seated
        counts = np.bincount(columns.profile[waiting], minlength=len(self.fleet.profiles))
        return Refusals(
            {
                name: int(np.count_nonzero(reasons[waiting] == code))
                for code, name in enumerate(("memory", "storage", "battery"), 1)
            },
            {
                profile.name: int(count)
                for profile, count in zip(self.fleet.profiles, counts, strict=True)
                if count
            },
            reduced,
        )

    def _reason(self, plan: Plan, kept: Kept | KeptOf | None, seat: Seat) -> NDArray[np.int8]:
        """Return 0 for each client that holds the seat's training, or what it lacks: 1, 2, 3."""
        reasons = np.zeros(self.fleet.clients, np.int8)
        for code, (wanted, there) in reversed(list(enumerate(self._needs(plan, kept, seat), 1))):
            reasons[wanted > there] = code
        return reasons

    def _needs(
        self, plan: Plan, kept: Kept | KeptOf | None, seat: Seat
    ) -> list[tuple[Floats, Floats]]:
        """Return what a seat takes and what there is, by client: memory, storage, battery."""
        columns, profiles = self.fleet.columns(), self.fleet.profiles
        if callable(kept):
            every = range(self.fleet.clients)
            prices = self._own_prices(plan, kept, seat)
            place = np.arange(self.fleet.clients)
            densities = [self.density(self.counts(kept(client), seat.share)) for client in every]
        else:
            prices = [self._price(int(size), plan, kept, seat) for size in self._sizes]
            place = self._place
            densities = [self.density(self.counts(kept, seat.share))]
        memory, storage, flops, dense = (
            np.array(column, float)[place]
            for column in zip(
                *((p.memory.total, p.memory.parameters, p.flops, p.dense_flops) for p in prices),
                strict=True,
            )
        )
        known = {d: [p.relative_speed(d) for p in profiles] for d in dict.fromkeys(densities)}
        speeds = np.array([known[density] for density in densities])
        which = np.arange(self.fleet.clients) if callable(kept) else 0
        relative = speeds[which, columns.profile]
        watts = np.array([profile.compute_watts for profile in profiles])[columns.profile]
        work = (flops - dense) / relative + dense
        joules = watts * work / columns.dense_flops
        return [
            (memory, columns.memory_bytes),
            (storage, columns.storage_bytes),
            (joules, columns.battery_joules),
        ]

    def _own_prices(self, plan: Plan, kept: KeptOf, seat: Seat) -> list[Price]:
        """Return each client's price; those alike, as most are at first, are reckoned once."""
        known: dict[tuple[int, int], Price] = {}
        found, alive = [], []
        for client in range(self.fleet.clients):
            counts, samples = kept(client), self.task.data.train_samples(client)
            alive.append(counts)  # so that no other object takes its id
            key = samples, id(counts)
            if key not in known:
                known[key] = self._price(samples, plan, counts, seat)
            found.append(known[key])
        return found

    # -- before the first round -------------------------------------------------------

    def check(
        self, demands: Callable[[float], Demands], density: float, fits: frozenset[str], remedy: str
    ) -> None:
        """Refuse a fleet of which no client holds the training at a density.

        `demands` says what a strategy asks of clients at a density, `remedy` how another is set,
        such as "--set strategy.density={}". Raises ConfigError with the largest that some
        client holds.
        """
        wrong = self._unmet(demands(density), fits)
        if wrong is None:
            return
        low, high = 0.0, density
        for _ in range(BISECTIONS):
            middle = (low + high) / 2
            held = self._unmet(demands(middle), fits) is None
            low, high = (middle, high) if held else (low, middle)
        fitting = math.floor(low * 1e6) / 1e6
        advice = (
            f"a density of {fitting:g} or less would fit: {remedy.format(f'{fitting:g}')}"
            if fitting > 0 and self._unmet(demands(fitting), fits) is None
            else NO_DENSITY
        )
        if not self.fleet.columns().memory_bytes.any():
            advice = "these devices cannot train at all (memory_bytes = 0); choose others"
        raise ConfigError(
            f"fleet.profile = '{self.task.config.fleet.profile}': no client holds the training of "
            f"'{self.task.config.model.name}' at density {density:g}: {wrong}; {advice}"
        )

    def _unmet(self, demands: Demands, fits: frozenset[str]) -> str | None:
        """Return what is wanted of clients and none of them has; None when each demand is met."""
        for plan, kept in demands:
            if self.refused(plan, kept, fits) < self.training:
                continue
            *_, least = self.seats(fits)
            reasons = np.bincount(self._reason(plan, kept, least)[self.present], minlength=4)
            code = int(reasons.argmax())
            wanted, there = self._needs(plan, kept, least)[code - 1]
            what, unit = (("memory", "bytes"), ("storage", "bytes"), ("battery", "joules"))[
                code - 1
            ]
            return (
                f"it needs {wanted.min():,.0f} {unit} of {what} at least, the devices have "
                f"{there.max():,.0f} at most"
            )
        return None

    def nominal(self, density: float) -> Kept | None:
        """Return kept weights by layer as ERK shares a density out; None for a dense model."""
        return erk_counts(self.task, density)


def compute_seconds(device: Device, cost: Price, density: float, flops: float) -> float:
    """Return how long a device computes `flops`, of which a part is dense as foreseen."""
    dense = flops * (cost.dense_flops / cost.flops) if cost.flops else 0.0
    return device.compute_seconds(flops - dense, density) + device.compute_seconds(dense, 1.0)
