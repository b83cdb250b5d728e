"""What asynchronous strategies share: clients start and arrive one by one, under any model.

There is no round to wait for: a fixed number of clients is under way, each with the model
of its start. An update that arrives later, when the model and perhaps its mask have gone
on, is mapped to the present mask or dropped, by `mapped` and `AsyncStrategy.judge`:

- what both masks keep counts;
- what only the present mask keeps is left as the server has it, for the client never
  trained it; what only the client's mask keeps is dropped, for nobody holds it any more;
- an update is dropped whole when it is older than `max_staleness` updates, or when the
  client's mask covers less than `min_overlap` of the present one.

The mask is made before the first round, as by the strategy `static`; it can be made
sparser while training goes on, from `start_density` to `density` (Zhu and Gupta 2017).
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from flwr.app import Message
from pydantic import Field

from fedsparse import messages
from fedsparse.config import Density, Finite
from fedsparse.errors import ConfigError
from fedsparse.messages import Plan
from fedsparse.sparsity import Mask, State, cubic
from fedsparse.sparsity.patterns import Shared
from strategies.addressing import round_size
from strategies.replies import Reply, spread
from strategies.seats import FULL, Demands, Seat, submask
from strategies.static_mask import StaticMask, StaticMaskSettings
from strategies.task import Task, masked


class AsyncSettings(StaticMaskSettings):
    """Keys of `[strategy]` that asynchronous strategies share."""

    concurrency: int | None = Field(
        default=None, ge=1, description="clients under way; fleet.clients_per_round if unset"
    )
    max_staleness: int | None = Field(
        default=None, ge=0, description="updates since its start after which one is dropped"
    )
    min_overlap: Finite = Field(
        default=0.5, ge=0, le=1, description="least part of the mask that an update must cover"
    )
    start_density: Density | None = Field(default=None, description="of round 0; density if unset")
    prune_every: int = Field(default=1, ge=1, description="rounds between prunings")
    prune_until: int = Field(default=10, ge=1, description="round at which density is reached")


@dataclass(frozen=True)
class Flight:
    """A client under way: the version, the seat and the mask that it started with."""

    version: int
    seat: Seat
    mask: Mask | None


@dataclass(frozen=True)
class Landing:
    """An update that arrived: how many versions old, and why it is dropped, if it is."""

    staleness: int
    reason: str | None = None


class AsyncStrategy(StaticMask):
    """A federated method that learns from each client's update when it arrives."""

    Settings: type[AsyncSettings] = AsyncSettings

    keeps_starts = True
    """Whether an update is learnt from against the model that its client started with."""

    def __init__(self, task: Task) -> None:
        super().__init__(task)
        self.version = 0
        self.starts = 0
        self.flights: dict[int, Flight] = {}
        self.states: dict[int, State] = {}
        """Models of the versions that clients under way started with."""
        s = self.settings
        if s.start_density is not None and s.start_density < s.density:
            raise ConfigError(
                f"strategy.start_density = {s.start_density:g} is below strategy.density = "
                f"{s.density:g}; masks only get sparser, raise it or leave it out"
            )
        if s.start_density is not None and isinstance(self.pruned.pattern, Shared):
            raise ConfigError(
                f"strategy.start_density with strategy.pattern = '{s.pattern}': outputs that share "
                "a pattern would part as masks get sparser; leave out one of them"
            )
        if task.config.robust.max_norm is not None:
            raise ConfigError(
                f"robust.max_norm = {task.config.robust.max_norm:g}: an asynchronous strategy has "
                "no round whose median it could be of; leave it out"
            )
        if task.config.fleet.over_selection:
            raise ConfigError(
                f"fleet.over_selection = {task.config.fleet.over_selection:g}: an asynchronous "
                "strategy waits for nobody; leave it out, or raise strategy.concurrency"
            )

    # -- what a method overrides ------------------------------------------------------

    @property
    def updates_per_round(self) -> int:
        """Return how many updates make a round: a row of figures and a test."""
        raise NotImplementedError

    def absorb(self, update: Reply, flight: Flight, staleness: int) -> None:
        """Take one update, already mapped, into the model or a buffer."""
        raise NotImplementedError

    def demands(self, density: float) -> Demands:
        """Return training under the first mask, which is the largest."""
        return super().demands(max(density, self.settings.start_density or 0.0))

    # -- the mask ---------------------------------------------------------------------

    def prepare(self, grid: Any) -> None:
        """Make the model and its first mask; none for a dense model."""
        start = self.settings.start_density or self.settings.density
        if start == 1.0 and self.settings.density == 1.0:
            self.state = self.task.pretrain(
                self.settings.pretrain_epochs, self.settings.pretrain_lr
            )
            return
        chosen = self.settings
        self.settings = chosen.model_copy(update={"density": start})
        super().prepare(grid)
        self.settings = chosen

    def prune(self, round_number: int) -> None:
        """Make the mask sparser by magnitude, as the schedule says of the round that has ended."""
        s = self.settings
        if self.mask is None or s.start_density is None or round_number > s.prune_until:
            return
        if round_number % s.prune_every and round_number != s.prune_until:
            return
        density = cubic(s.start_density, s.density, 0, s.prune_until)(round_number)
        scored = {
            name: np.where(bits, np.abs(self.state[name]), -1.0) for name, bits in self.mask.items()
        }
        self.mask = self.mask & self.pruned.from_scores(scored, density, s.allocation)
        self.state = masked(self.state, self.mask)

    # -- clients that come and go -----------------------------------------------------

    @property
    def concurrency(self) -> int:
        """Clients under way at once."""
        return int(self.settings.concurrency or round_size(self.task.config.fleet))

    def send_off(self, client: int, seat: Seat, plan: Plan) -> Message:
        """Return the message with which a client starts under the present model."""
        mask = submask(self.state, self.mask, self.task.shapes, seat.share)
        self.flights[client] = Flight(self.version, seat, mask)
        self.starts += 1
        if self.keeps_starts:
            self.states.setdefault(self.version, self.state)
        self.seats, self._parts = {client: seat}, {seat.share: mask}
        return self.ask_with_model([client], messages.TRAIN, replace(plan, draw=self.starts))[0]

    def land(self, message: Message) -> Landing:
        """Read an arrival and learn from it; one that cannot be used says why."""
        assert self.directory is not None
        client = self.directory.client_of[message.metadata.src_node_id]
        flight = self.flights.pop(client)
        staleness = self.version - flight.version
        self.seats = {client: flight.seat}
        self._parts = {flight.seat.share: flight.mask}
        good = self.read_replies([message])
        self.held.replied(flight.mask, [client], [reply.client for reply in good])
        reason = self.failures.get(client) if not good else self.judge(flight, staleness)
        if reason is None:
            self.absorb(good[0], flight, staleness)
        self._forget_states()
        return Landing(staleness, reason)

    def judge(self, flight: Flight, staleness: int) -> str | None:
        """Return why an update is too old to be used, or None."""
        s = self.settings
        if s.max_staleness is not None and staleness > s.max_staleness:
            return f"stale: {staleness} updates old, strategy.max_staleness = {s.max_staleness}"
        share = covered(flight.mask, self.mask) / flight.seat.share
        if share < s.min_overlap:
            return (
                f"stale: its mask covers {share:.2f} of the present one, "
                f"strategy.min_overlap = {s.min_overlap:g}"
            )
        return None

    def abandon(self) -> None:
        """Let go of the clients under way, of whom nothing is known any more."""
        for client, flight in self.flights.items():
            self.held.replied(flight.mask, [client], [])
        self.flights.clear()
        self._forget_states()

    def _forget_states(self) -> None:
        used = {flight.version for flight in self.flights.values()}
        self.states = {v: state for v, state in self.states.items() if v in used}

    # -- rounds of other loops --------------------------------------------------------

    def aggregate(self, round_number: int, replies: Sequence[Reply]) -> None:
        """Learn from the replies of a loop that waits for all: each is as new as can be."""
        self.states = {self.version: self.state}
        version = self.version
        for reply in replies:
            seat = self.seats.get(reply.client, FULL)
            flight = Flight(version, seat, reply.mask)
            self.absorb(reply, flight, self.version - version)
        self.prune(round_number)

    # -- state of a run ---------------------------------------------------------------

    def state_dict(self) -> dict[str, Any]:
        """Add the versions and the clients under way."""
        flights = {
            str(client): {
                "version": flight.version,
                "batch_size": flight.seat.batch_size,
                "share": flight.seat.share,
                "mask": None if flight.mask is None else dict(flight.mask.packed),
            }
            for client, flight in self.flights.items()
        }
        states = {str(version): dict(state) for version, state in self.states.items()}
        return {
            **super().state_dict(),
            "version": self.version,
            "starts": self.starts,
            "flights": flights,
            "states": states,
        }

    def load_state_dict(self, saved: dict[str, Any]) -> None:
        """Take the versions and the clients under way, too."""
        super().load_state_dict(saved)
        self.version, self.starts = saved["version"], saved["starts"]
        shapes = self.task.shapes
        self.flights = {
            int(client): Flight(
                one["version"],
                Seat(one["batch_size"], one["share"]),
                None if one["mask"] is None else Mask.from_packed(shapes, one["mask"]),
            )
            for client, one in saved["flights"].items()
        }
        self.states = {int(version): state for version, state in saved["states"].items()}


def covered(old: Mask | None, new: Mask | None) -> float:
    """Return the fraction of what `new` keeps that `old` keeps, too."""
    if old is None or new is None or not new.kept:
        return 1.0 if old is None else old.density
    return (old & new).kept / new.kept


def mapped(update: Reply, present: State, mask: Mask | None) -> tuple[State, dict[str, Any]]:
    """Return a client's model over the present one, and where it counts, by tensor.

    Entries count that both masks keep; all others are the present model's.
    """
    theirs = spread(update.kept, update.mask)
    own, now = update.mask, mask
    where: dict[str, Any] = {}
    values: State = {}
    for name, value in present.items():
        bits = [m[name] for m in (own, now) if m is not None and name in m]
        both = np.logical_and.reduce(bits) if bits else np.ones(value.shape, bool)
        where[name] = both
        values[name] = np.where(both, theirs[name], value)
    return values, where
