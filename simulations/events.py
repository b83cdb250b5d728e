"""The event queue: clients that start and arrive one by one on the simulated clock.

Flower's `push_messages` and `pull_messages` are its two ends: a pushed client starts now,
and each pull moves the clock to the next arrival and returns it. Clients that cannot be
next are left to work in one batch with others, so that workers are kept busy.
"""

import uuid
from collections.abc import Collection, Iterable, Mapping
from dataclasses import asdict, dataclass
from typing import Any

from flwr.app import Message, RecordDict

from fedsparse import messages as words
from fedsparse import seeds
from fedsparse.messages import Plan
from fedsparse.state_codec import plain_state, record_state
from simulations import flower_internals as internals
from simulations.clock import ClockedGrid
from simulations.departures import Departure
from strategies.seats import Kept, KeptOf, Seat
from strategies.trips import Trip

LOOKS = 1000
"""Free clients of a large fleet that are looked at, at most, before one is given up for now."""


@dataclass(frozen=True)
class Event:
    """An arrival to come: when, whose trip, and the reply or the error that stands for it."""

    trip: Trip
    reply: Message
    order: int

    @property
    def key(self) -> tuple[float, int]:
        """Order of events: by simulated time, then in the order of their starts."""
        return self.trip.finished, self.order


class EventGrid(ClockedGrid):
    """A clocked grid on which clients can also come and go one by one."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._pending: list[Departure] = []
        self._events: list[Event] = []
        self._order: dict[int, int] = {}
        self._pushed = 0
        self.last: Trip | None = None
        """The trip whose reply was pulled last."""

    def next_client(
        self,
        start: int,
        plan: Plan,
        kept: Kept | KeptOf | None,
        fits: frozenset[str],
        busy: Collection[int],
    ) -> tuple[int, Seat] | None:
        """Return the client of start number `start` with its seat, None when none is there now.

        Of a large fleet, a thousand clients that are free are looked at, at most.
        """
        clients, self._plan = self.candidates, plan
        rng = seeds.stream(self.task.config.run.seed, start, seeds.SERVER, "starts")
        if len(clients) <= LOOKS + len(busy):
            draws: Iterable[Any] = rng.permutation(len(clients))
        else:
            draws = rng.integers(len(clients), size=LOOKS + len(busy))
        for client in (clients[int(place)] for place in draws):
            if client not in busy and (seat := self.seat(client, plan, kept, fits)):
                return client, seat
        return None

    def wait(self, began: float) -> None:
        """Let simulated time pass while no client is there; GridError after 14 days of it."""
        self._wait(began, "a client is wanted", 0)

    def push_messages(self, messages: Iterable[Message]) -> list[str]:
        """Let clients start now; returned are names for `pull_messages`."""
        started = [self.depart(message) for message in messages]
        for departure in started:
            self._order[departure.trip.client] = self._pushed
            self._pushed += 1
        self._pending += started
        return [str(departure.trip.client) for departure in started]

    def pull_messages(self, message_ids: Iterable[str]) -> list[Message]:
        """Move the clock to the next arrival among these and return it; none when none is due."""
        wanted = {int(name) for name in message_ids}
        while self._pending and not self._is_next(wanted):
            self._work()
        due = [event for event in self._events if event.trip.client in wanted]
        if not due:
            return []
        event = min(due, key=lambda event: event.key)
        self._events.remove(event)
        self._offers.pop(event.trip.client, None)
        self.now = max(self.now, event.trip.finished)
        self._trips.append(event.trip)
        self.last = event.trip
        return [event.reply]

    def _is_next(self, wanted: set[int]) -> bool:
        """Tell whether an arrival is known that nobody who is yet to work can precede."""
        known = [event.trip.finished for event in self._events if event.trip.client in wanted]
        return bool(known) and min(known) < min(d.earliest for d in self._pending)

    def _work(self) -> None:
        """Let all that have started work, in one batch, and note when they will arrive."""
        left, self._pending = self._pending, []
        trips, replies = self.travel(left, self.task.config.engine.timeout)
        messages = {departure.trip.client: departure.message for departure in left}
        for trip in trips:
            end = trip.started + self.deadline
            done = self.closed(trip, end, trip.status == "ok" and trip.finished <= end)
            reply = replies.get(trip.client)
            if reply is None or done.status in ("late", "dropped"):
                reply = _stand_in(messages[trip.client], done)
            self._events.append(Event(done, reply, self._order.pop(trip.client)))

    def unfinished(self) -> list[Trip]:
        """Return what those who are still at it have done by now, and let go of them."""
        while self._pending:
            self._work()
        trips = [
            event.trip.cut(self.now, "late", "late: the run ended before its reply was in")
            for event in self._events
        ]
        self._events = []
        self._trips += trips
        return sorted(trips, key=lambda trip: trip.client)

    # -- checkpoints ------------------------------------------------------------------

    def state_dict(self) -> dict[str, Any]:
        """Return the clock and every arrival to come."""
        while self._pending:
            self._work()
        events = [
            {"trip": asdict(e.trip), "reply": _stored(e.reply), "order": e.order}
            for e in self._events
        ]
        return {**super().state_dict(), "events": events, "pushed": self._pushed}

    def load_state_dict(self, saved: Mapping[str, Any]) -> None:
        """Go on from what `state_dict` returned."""
        super().load_state_dict(saved)
        self._pending, self._pushed = [], saved["pushed"]
        self._events = [
            Event(trip, self._restored(trip.client, event["reply"]), event["order"])
            for event in saved["events"]
            for trip in [Trip(**event["trip"])]
        ]

    def _restored(self, client: int, stored: Mapping[str, Any]) -> Message:
        """Return the reply that `_stored` flattened, as from the client that sent it."""
        asked = Message(RecordDict(), self.directory.node_of[client], words.TRAIN)
        internals.number(asked, uuid.uuid4().hex)
        if "error" in stored:
            return internals.error_reply(asked, *stored["error"])
        return Message(record_state(stored["content"]), reply_to=asked)


def _stand_in(message: Message, trip: Trip) -> Message:
    """Return the error that stands for the reply of a client that is late or lost."""
    internals.number(message, uuid.uuid4().hex)
    return internals.error_reply(message, internals.CRASHED, trip.reason or "no reply in time")


def _stored(reply: Message) -> dict[str, Any]:
    """Return a reply as nested dicts of bytes, lists and plain values."""
    if reply.has_error():
        return {"error": [reply.error.code, reply.error.reason or ""]}
    return {"content": plain_state(reply.content)}
