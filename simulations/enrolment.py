"""Who can take part: whose device holds the training, and what is done for those it does not.

The need is that of (model, mask, optimizer, batch, method), as `fedsparse.training.price`
counts it. Nothing here is built for each client of the fleet: one client is looked at when
it is drawn, all of them as columns.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from fedsparse.devices import Device, Fleet
from fedsparse.errors import ConfigError
from fedsparse.messages import Plan
from fedsparse.sparsity import allocation
from fedsparse.training.price import Price, price
from strategies.seats import FULL, Seat, shared_counts
from strategies.task import Task

SHARES = (0.5, 0.25, 0.125, 0.0625, 0.03125)
"""Parts of the global mask that a client with too little memory is offered."""

Kept = Mapping[str, int]


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
        self.whole = {layer.name: layer.weights for layer in task.cost.layers}
        self._sizes, self._place = np.unique(task.data.train_sizes, return_inverse=True)

    # -- one client -------------------------------------------------------------------

    def price(self, client: int, plan: Plan, kept: Kept | None, seat: Seat = FULL) -> Price:
        """Return what a round costs a client in a seat."""
        samples = self.task.data.train_samples(client)
        return self._price(samples, plan, kept, seat)

    def density(self, kept: Kept | None) -> float:
        """Return the density that a device computes at: kept FLOPs over dense FLOPs."""
        cost = self.task.cost
        return float(cost.flops_of(kept) / cost.flops_of(None))

    def seat(
        self, client: int, plan: Plan, kept: Kept | None, fits: frozenset[str]
    ) -> tuple[Seat, Price] | None:
        """Return the largest seat whose training the client's device holds; None for none."""
        device = self.fleet.device(client)
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
        seconds = device.compute_seconds(cost.flops, density)
        return device.joules(seconds, 0.0) <= device.battery_joules

    def _price(self, samples: int, plan: Plan, kept: Kept | None, seat: Seat) -> Price:
        counts = self.counts(kept, seat.share)
        seated = replace(plan, batch_size=seat.batch_size or plan.batch_size)
        return price(self.task.cost, self.settings, seated, samples, counts)

    def counts(self, kept: Kept | None, share: float) -> Kept | None:
        """Return the weights that a seat of a share keeps by layer; None for all of them."""
        return kept if share >= 1 else shared_counts(kept or self.whole, share)

    # -- all clients ------------------------------------------------------------------

    def refused(self, plan: Plan, kept: Kept | None, fits: frozenset[str]) -> int:
        """Return how many clients of the fleet hold the training in no seat."""
        *_, least = self.seats(fits)
        return int(np.count_nonzero(self._reason(plan, kept, least)))

    def refusals(self, plan: Plan, kept: Kept | None, fits: frozenset[str]) -> Refusals:
        """Return who is refused and why, and who gets a smaller seat, counted over the fleet."""
        columns = self.fleet.columns()
        reasons = np.zeros(self.fleet.clients, np.int8)
        reduced = {"batch": 0, "density": 0}
        waiting = np.ones(self.fleet.clients, bool)
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

    def _reason(self, plan: Plan, kept: Kept | None, seat: Seat) -> NDArray[np.int8]:
        """Return 0 for each client that holds the seat's training, or what it lacks: 1, 2, 3."""
        columns, profiles = self.fleet.columns(), self.fleet.profiles
        prices = [self._price(int(size), plan, kept, seat) for size in self._sizes]
        memory, storage, flops = (
            np.array(column, float)[self._place]
            for column in zip(
                *((p.memory.total, p.memory.parameters, p.flops) for p in prices), strict=True
            )
        )
        density = self.density(self.counts(kept, seat.share))
        relative = np.array([profile.relative_speed(density) for profile in profiles])
        watts = np.array([profile.compute_watts for profile in profiles])[columns.profile]
        joules = watts * flops / (columns.dense_flops * relative[columns.profile])
        reasons = np.zeros(self.fleet.clients, np.int8)
        reasons[joules > columns.battery_joules] = 3
        reasons[storage > columns.storage_bytes] = 2
        reasons[memory > columns.memory_bytes] = 1
        return reasons

    # -- before the first round -------------------------------------------------------

    def check(self, plan: Plan, density: float, fits: frozenset[str]) -> None:
        """Refuse a fleet of which no client holds the training at a density.

        Raises ConfigError that names the largest density that some client holds.
        """
        if self.refused(plan, self.nominal(density), fits) < self.fleet.clients:
            return
        device = float(self.fleet.columns().memory_bytes.max())
        name, kept = self.task.config.fleet.profile, self.nominal(density)
        least = int(self._sizes.min())
        *_, smallest = self.seats(fits)
        need = self._price(least, plan, kept, smallest).memory.total
        raise ConfigError(
            f"fleet.profile = '{name}': no client holds the training of '"
            f"{self.task.config.model.name}' at density {density:g}, which needs "
            f"{need:,} bytes at least; the largest device has {device:,.0f}; "
            f"{self._advice(plan, device)}"
        )

    def _advice(self, plan: Plan, device: float) -> str:
        """Return what would fit: a density, or what stands in the way of any."""
        least = int(self._sizes.min())
        layers = len(self.task.cost.layers)
        total = sum(self.whole.values())

        def fits(kept: int) -> bool:
            counts = self.nominal(kept / total)
            return self._price(least, plan, counts, FULL).memory.total <= device

        if not fits(layers):
            alone = self._price(least, plan, self.nominal(layers / total), FULL).memory
            return (
                f"at no density it would fit: activations alone take {alone.activations:,} bytes; "
                "lower client.batch_size or choose a smaller model or larger devices"
            )
        low, high = layers, total
        while high - low > 1:
            middle = (low + high) // 2
            low, high = (middle, high) if fits(middle) else (low, middle)
        density = np.floor(low / total * 1e6) / 1e6
        return f"a density of {density:g} or less would fit: --set strategy.density={density:g}"

    def nominal(self, density: float) -> Kept | None:
        """Return kept weights by layer as ERK shares a density out; None for a dense model."""
        if density >= 1:
            return None
        shapes = self.task.shapes
        return allocation.layer_counts(shapes, allocation.erk(shapes, density))
