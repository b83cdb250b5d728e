"""The loop of asynchronous strategies: a round is as many updates as the strategy says.

Clients start whenever a place is free and arrive in the order of the simulated clock. The
run folder, checkpoints and figures are those of the round loop.
"""

import time
from collections.abc import Collection, Iterable
from typing import Any, Protocol, cast

from flwr.app import Message

from fedsparse.errors import ConfigError, TooFewRepliesError
from fedsparse.messages import Plan
from strategies import metrics
from strategies.addressing import Traffic
from strategies.asynchronous import AsyncStrategy, Landing
from strategies.metrics import average
from strategies.rounds import RoundLoop, Row
from strategies.seats import Kept, KeptOf, Seat
from strategies.trips import Trip

LEAST_OUTCOMES = 20


class EventQueue(Protocol):
    """What a grid offers on which clients start and arrive one by one."""

    now: float
    last: Trip | None

    def next_client(
        self,
        start: int,
        plan: Plan,
        kept: Kept | KeptOf | None,
        fits: frozenset[str],
        busy: Collection[int],
    ) -> tuple[int, Seat] | None:
        """Return the client of a start and its seat; None when none is there."""

    def wait(self, began: float) -> None:
        """Let simulated time pass."""

    def push_messages(self, messages: Iterable[Message]) -> list[str]:
        """Let clients start."""

    def pull_messages(self, message_ids: Iterable[str]) -> list[Message]:
        """Move the clock to the next arrival and return it."""

    def unfinished(self) -> list[Trip]:
        """Return what those have done who are still under way."""


class AsyncLoop(RoundLoop):
    """A run under way of a strategy that waits for no round."""

    strategy: AsyncStrategy

    def __init__(self, *args: Any) -> None:
        super().__init__(*args)
        self.outcomes: list[bool] = []
        """Whether the latest updates could be used."""
        self.started: list[int] = []
        """Clients that started in the round under way; each counts in the round where it lands."""

    @property
    def queue(self) -> EventQueue:
        """The grid, as an event queue."""
        return cast(EventQueue, self.grid)

    def run(self) -> None:
        """Go to the last round; needs a grid with an event queue."""
        if not hasattr(self.grid, "next_client"):
            raise ConfigError(
                f"strategy.name = '{self.config.strategy['name']}' needs a simulated clock; "
                "set fleet.profile, for example --set fleet.profile=phones"
            )
        super().run()

    def round(self, number: int) -> None:
        """Let clients start and arrive until a round's updates are in; write down what they did."""
        started = time.perf_counter()
        before = self.mask
        rows: list[Row] = []
        landed: list[int] = []
        self.started = []
        wanted = self.strategy.updates_per_round
        while len(landed) < wanted:
            self.fill(number)
            reply = self.queue.pull_messages(map(str, self.strategy.flights))[0]
            landing, trip = self.strategy.land(reply), self.queue.last
            assert trip is not None
            rows.append(self.landing_row(number, reply, landing, trip))
            landed += [landing.staleness] if rows[-1]["status"] == "ok" else []
            self.writer.poll()
            self.progress.clients(len(landed), wanted)
            self.check_losses(rows)
        self.strategy.prune(number)
        if number == self.config.run.rounds:
            rows += [self.trip_row(number, trip) for trip in self.queue.unfinished()]
            self.strategy.abandon()
        self.folder.append_clients(rows)
        self.enter(number, self.started, rows, before)
        self.grid.read_traffic()
        traffic = Traffic()
        for row in rows:
            for table, key in ((traffic.up, "bytes_up"), (traffic.down, "bytes_down")):
                table[row["client"]] = table.get(row["client"], 0) + row[key]
        mean = average(landed, [1] * len(landed))
        self.record(number, rows, traffic, before, time.perf_counter() - started, staleness=mean)
        if number % self.config.run.checkpoint_every == 0 or number == self.config.run.rounds:
            self.checkpoint(number)

    def restore(self) -> int:
        """Go on from the newest checkpoint, with the latest outcomes in mind."""
        number = super().restore()
        rows = [row for row in self.folder.clients() if row["kind"] == "train"]
        self.outcomes.extend(row["status"] == "ok" for row in rows[-self.window :])
        return number

    def fill(self, number: int) -> None:
        """Start clients until as many are under way as the strategy wants, or none is free."""
        strategy, began = self.strategy, self.queue.now
        while len(strategy.flights) < strategy.concurrency:
            plan = strategy.plan(number)
            found = self.queue.next_client(
                strategy.starts, plan, self.kept, self.fits, strategy.flights
            )
            if found is not None:
                client, seat = found
                self.started.append(client)
                self.queue.push_messages([strategy.send_off(client, seat, plan)])
            elif strategy.flights:
                return
            else:
                strategy.starts += 1
                self.queue.wait(began)

    @property
    def window(self) -> int:
        """Outcomes by which a run is judged that loses clients: two rounds, 20 at least."""
        return max(LEAST_OUTCOMES, 2 * self.strategy.updates_per_round)

    def check_losses(self, rows: list[Row]) -> None:
        """Stop a run whose latest clients were mostly lost; raises TooFewRepliesError."""
        self.outcomes = [*self.outcomes, rows[-1]["status"] == "ok"][-self.window :]
        good, least = sum(self.outcomes), self.config.fleet.min_replies
        if len(self.outcomes) == self.window and good < least * self.window:
            self.folder.append_clients(rows)
            last = next(row for row in reversed(rows) if row["reason"])
            raise TooFewRepliesError(
                f"{good} of the last {self.window} updates could be used, fleet.min_replies = "
                f"{least:g} asks for more; client {last['client']}: {last['reason']}"
            )

    def landing_row(self, number: int, reply: Message, landing: Landing, trip: Trip) -> Row:
        """Return the row of a client that has arrived, or was lost."""
        row = self.trip_row(number, trip)
        reason = trip.reason if trip.status in ("late", "dropped") else landing.reason
        if trip.status == "ok" or trip.status == "failed":
            refused = trip.client in self.strategy.failures and not reply.has_error()
            row["status"] = ("rejected" if refused else "failed") if reason else "ok"
        told: dict[str, Any] = {} if row["status"] != "ok" else metrics.fitting(reply)
        columns = ("examples", "loss", "accuracy", "train_flops", "memory_bytes")
        told = {key: told.get(key) for key in columns}
        return {**row, **told, "reason": reason, "staleness": landing.staleness}

    def trip_row(self, number: int, trip: Trip) -> Row:
        """Return the row of a trip alone."""
        return {
            "round": number,
            "client": trip.client,
            "kind": "train",
            "status": trip.status,
            "reason": trip.reason,
            "examples": None,
            "loss": None,
            "accuracy": None,
            "bytes_up": trip.bytes_up,
            "bytes_down": trip.bytes_down,
            "train_flops": None,
            "memory_bytes": None,
            **trip.row(),
        }
