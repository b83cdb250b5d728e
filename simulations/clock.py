"""The simulated clock: a grid on which messages take time, and some replies never arrive.

It stands between the strategy and any grid. What clients really compute and send becomes
seconds and joules of their devices; who is lost, who is late and when the round ends follow
from those and the run's seed alone, so that every engine has the same clock. The time that
the server itself takes is not counted.
"""

import math
from collections.abc import Iterable, Mapping
from dataclasses import replace
from typing import Any

from flwr.app import Message
from flwr.serverapp import Grid

from fedsparse import messages as words
from fedsparse import seeds
from fedsparse.devices import Device, Fleet
from fedsparse.errors import GridError, RunFolderError
from fedsparse.messages import Plan
from fedsparse.training.price import Price
from simulations.departures import FATES, Departure, fated, stream_of
from simulations.enrolment import Enrolment, compute_seconds
from simulations.methods_memory import devices_json
from strategies import metrics
from strategies.addressing import (
    Directory,
    MeteredGrid,
    cohort,
    least_replies,
    payload_bytes,
    pool,
    round_size,
)
from strategies.replies import Reader
from strategies.seats import Kept, KeptOf, Seat, kept_for
from strategies.task import Task
from strategies.trips import Trip

WAIT_SECONDS = 600.0
"""Simulated time between two looks at who is there, when too few are."""

PATIENCE_SECONDS = 14 * 86400.0
"""Simulated time after which the server stops waiting for clients to be there."""

TRIES = 100
"""Clients looked at for each one wanted, at most, in a large fleet."""


class ClockedGrid(MeteredGrid):
    """Any grid, under the clock of a fleet of devices."""

    def __init__(self, inner: Grid, directory: Directory, *, task: Task, fleet: Fleet) -> None:
        super().__init__(inner, directory)
        self.task = task
        self.fleet = fleet
        self.enrolment = Enrolment(task, fleet)
        self.budget = self.enrolment.budget
        """Strategies ask it for the largest part of the model that a client's device holds."""
        self.candidates = pool(task.config.fleet, task.config.run.seed)
        """The clients that rounds draw from, absent ones too: they are never there."""
        self.now = 0.0
        self._trips: list[Trip] = []
        self._offers: dict[int, tuple[Price, float]] = {}
        self._plan = Plan()
        self._refused: int | None = None
        self._waited = 0.0

    # -- who is asked -----------------------------------------------------------------

    def cohort(
        self, round_number: int, plan: Plan, kept: Kept | KeptOf | None, fits: frozenset[str]
    ) -> dict[int, Seat]:
        """Return a round's clients with their seats: those that are there and hold the training.

        Without refusals and absences they are those of a run without a clock. Waits in
        simulated time while too few are there; raises GridError after 14 days of it.
        """
        config = self.task.config
        if round_number == 0 and kept is None and not plan.criterion:  # scoring is dense
            kept = self.enrolment.nominal(config.strategy["density"])
        self._offers, self._plan = {}, plan
        self._refused = self.enrolment.refused(plan, kept, fits)
        wanted = round_size(config.fleet)
        asked = min(
            config.fleet.training_clients, math.ceil(wanted * (1 + config.fleet.over_selection))
        )
        enough = self._enough(f"round {round_number}", self._refused)
        began = self.now
        while True:
            seats = self._drawn(round_number, asked, plan, kept, fits)
            if len(seats) >= enough:
                return dict(sorted(seats.items()))
            self._wait(began, f"{enough} clients are wanted in round {round_number}", len(seats))

    def _enough(self, what: str, refused: int) -> int:
        """Return how many clients a round needs; GridError when the fleet never has so many."""
        fleet = self.task.config.fleet
        clients = len(self.task.present)
        enough = min(clients, least_replies(round_size(fleet), fleet.min_replies))
        if clients - refused < enough:
            raise GridError(
                f"{what} wants {enough} clients, and the devices of {clients - refused} of "
                f"{clients} hold its training; lower fleet.min_replies, set fleet.fit, or "
                "start again with larger devices"
            )
        return enough

    def _drawn(
        self,
        round_number: int,
        asked: int,
        plan: Plan,
        kept: Kept | KeptOf | None,
        fits: frozenset[str],
    ) -> dict[int, Seat]:
        """Draw clients until enough are found, or all, or very many, were looked at."""
        seed = self.task.config.run.seed
        rng = seeds.stream(seed, round_number, seeds.SERVER, "more clients")
        sized = self.task.config.fleet.model_copy(update={"clients_per_round": asked})
        looked: set[int] = set()
        seats: dict[int, Seat] = {}
        clients = len(self.candidates)
        draw = cohort(sized, seed, round_number)
        while draw:
            for client in draw:
                looked.add(client)
                if len(seats) < asked and (seat := self.seat(client, plan, kept, fits)):
                    seats[client] = seat
            missing = asked - len(seats)
            if not missing or len(looked) >= min(clients, TRIES * asked):
                break
            more = rng.permutation(clients) if clients <= 4 * asked + 1024 else None
            places = more if more is not None else rng.integers(clients, size=4 * missing)
            found = (self.candidates[int(place)] for place in places)
            fresh = dict.fromkeys(client for client in found if client not in looked)
            draw = list(fresh) or ([] if more is not None else draw[:1])
        return seats

    def seat(
        self, client: int, plan: Plan, kept: Kept | KeptOf | None, fits: frozenset[str]
    ) -> Seat | None:
        """Return a client's seat if it is there now and holds the training."""
        if client in self.task.absent or not self.fleet.device(client).available(self.now):
            return None
        offer = self.enrolment.seat(client, plan, kept, fits)
        if offer is None:
            return None
        seat, price = offer
        counts = self.enrolment.counts(kept_for(kept, client), seat.share)
        self._offers[client] = price, self.enrolment.density(counts)
        return seat

    def _wait(self, began: float, why: str, there: int) -> None:
        if self.now - began >= PATIENCE_SECONDS:
            raise GridError(
                f"{why}, {there} are there and hold the training, after 14 simulated days; "
                "look at the fleet's availability and memory, or lower fleet.min_replies"
            )
        self.now += WAIT_SECONDS
        self._waited += WAIT_SECONDS

    def get_node_ids(self) -> Any:
        """Return the addresses of clients that are there and hold dense training.

        For strategies of other makers, which choose for themselves. Waits in simulated time
        until as many are there as they want at least, for they would wait in real time.
        """
        config = self.task.config
        self._offers, self._plan = {}, Plan()
        self._refused = self.enrolment.refused(Plan(), None, frozenset())
        enough = max(self.least_nodes, self._enough("a round", self._refused))
        began = self.now
        while True:
            there = [
                client
                for client in range(config.fleet.clients)
                if self.seat(client, Plan(), None, frozenset())
            ]
            if len(there) >= enough:
                return [self.directory.node_of[client] for client in there]
            self._wait(began, f"{enough} clients are wanted", len(there))

    # -- a round ----------------------------------------------------------------------

    def send_and_receive(
        self,
        messages: Iterable[Message],
        *,
        timeout: float | None = None,
        reader: Reader | None = None,
    ) -> list[Message]:
        """Send messages and return the replies that arrive before the round ends.

        A training round ends when as many replies as wanted are in, with the deadline, or
        when nobody is left to wait for. Tests by clients are no part of a round and take no
        simulated time. Replies are added up on the way where it is known beforehand whose
        count: with a deadline or over-selection that is seen when all are there.
        """
        sent = list(messages)
        if not sent or sent[0].metadata.message_type == words.EVALUATE:
            return super().send_and_receive(sent, timeout=timeout)
        left = [self.depart(message) for message in sent]
        fleet = self.task.config.fleet
        if reader is not None:
            lost = frozenset(departure.trip.client for departure in left if departure.fate)
            unsure = fleet.deadline is not None or fleet.over_selection > 0
            reader = None if unsure else replace(reader, apart=lost)
        trips, replies = self.travel(left, timeout, reader)
        training = sent[0].metadata.message_type == words.TRAIN
        accepted, end = self._outcome(trips) if training else (trips, _last(trips, self.now))
        heard = {trip.client for trip in accepted}
        done = {trip.client: self.closed(trip, end, trip.client in heard) for trip in trips}
        self._trips += done.values()
        self.now = end
        return [r for client, r in replies.items() if done[client].status in ("ok", "failed")]

    def depart(self, message: Message) -> Departure:
        """Return a client's trip as it is foreseen when it is asked, now."""
        client = self.directory.client_of[message.metadata.dst_node_id]
        device = self.fleet.device(client)
        training = message.metadata.message_type == words.TRAIN
        price, density = self._offers.get(client) or (
            self.enrolment.price(client, Plan(), None),
            1.0,
        )
        if message.metadata.message_type == words.SCORE:  # of every weight of the dense model
            density = 1.0
        fate, part = self._fate(message, client, device) if training else (None, 1.0)
        size = payload_bytes(message)
        trip = Trip(
            client=client,
            device=device.profile,
            started=self.now,
            compute_watts=device.figures.compute_watts,
            radio_watts=device.figures.radio_watts,
        )
        if fate != "before":
            trip = replace(
                trip,
                download_seconds=device.download_seconds(size, self.now),
                compute_seconds=(
                    compute_seconds(device, price, density, price.flops) if training else 0.0
                ),
                bytes_down=size,
            )
        limit = self.deadline if training else math.inf
        return Departure(message, device, trip, density, fate, part, limit, price)

    def _fate(self, message: Message, client: int, device: Device) -> tuple[str | None, float]:
        """Return where a client is lost in its round, if it is, and how far it came."""
        if not device.dropout:
            return None, 1.0
        rng = seeds.stream(self.task.config.run.seed, stream_of(message), client, "dropout")
        lost, place, part = rng.random(3)
        return (FATES[int(place * len(FATES))], float(part)) if lost < device.dropout else (None, 1)

    def travel(
        self, left: list[Departure], timeout: float | None, reader: Reader | None = None
    ) -> tuple[list[Trip], dict[int, Message]]:
        """Let clients really work and return their whole trips, and the replies by client.

        Those that are lost before they are done, or would compute beyond the deadline, do
        not work: their state is as before.
        """
        foreseen: list[Trip] = []
        working = []
        for departure in left:
            trip = departure.trip
            if departure.fate in ("before", "during"):
                foreseen.append(fated(departure))
            elif trip.finished > trip.started + departure.limit:
                foreseen.append(trip)
            else:
                working.append(departure)
        for trip in foreseen:
            self._count_down(trip.client, trip.bytes_down)
        asked = [departure.message for departure in working]
        came = super().send_and_receive(asked, timeout=timeout, reader=reader)
        by_node: dict[int, Message] = {}
        for reply in came:
            by_node.setdefault(reply.metadata.src_node_id, reply)
        replies, trips = {}, foreseen
        for departure in working:
            answer = by_node.get(departure.message.metadata.dst_node_id)
            trip = self._arrived(departure, answer)
            trips.append(trip)
            if answer is not None and trip.status in ("ok", "failed"):
                replies[trip.client] = answer
        trips.sort(key=lambda trip: trip.client)
        return trips, dict(sorted(replies.items()))

    @property
    def deadline(self) -> float:
        """Simulated seconds that a round may take."""
        return self.task.config.fleet.deadline or math.inf

    def _arrived(self, departure: Departure, reply: Message | None) -> Trip:
        """Return the trip of a client that worked: what it reports and sends takes its time."""
        trip, device = departure.trip, departure.device
        if reply is None or reply.has_error():
            return replace(trip, status="failed")
        told = metrics.fitting(reply)
        flops = told.get("train_flops", told.get("query_flops"))
        if flops is not None:
            seconds = compute_seconds(device, departure.price, departure.density, flops)
            trip = replace(trip, compute_seconds=seconds)
        size = payload_bytes(reply)
        upload = device.upload_seconds(size, trip.finished)
        trip = replace(trip, upload_seconds=upload, bytes_up=size)
        if departure.fate == "after":
            return replace(trip, status="dropped", reason="lost after training, with its reply")
        return trip

    def _outcome(self, trips: list[Trip]) -> tuple[list[Trip], float]:
        """Return the trips whose replies count, and when the round ends that begins now."""
        fleet = self.task.config.fleet
        wanted = round_size(fleet)
        arrivals = sorted((t for t in trips if t.status == "ok"), key=lambda t: t.finished)
        end = _last(trips, self.now)
        if fleet.over_selection and len(arrivals) >= wanted:
            arrivals = arrivals[:wanted]
            end = arrivals[-1].finished
        end = min(end, self.now + self.deadline)
        return [trip for trip in arrivals if trip.finished <= end], end

    def closed(self, trip: Trip, end: float, accepted: bool) -> Trip:
        """Return what a trip is once its round has ended; of a late one, what it did so far."""
        late = trip.status == "ok" and not accepted
        if not late and trip.finished <= end:
            return trip
        reason = "late: the round ended before its reply was in" if late else trip.reason
        done = trip.cut(end, "late" if late else trip.status, reason)
        self._recount(trip, done)
        return done

    def _recount(self, whole: Trip, done: Trip) -> None:
        for table, full, part in (
            (self._traffic.up, whole.bytes_up, done.bytes_up),
            (self._traffic.down, whole.bytes_down, done.bytes_down),
        ):
            if whole.client in table:
                table[whole.client] += part - full

    def _count_down(self, client: int, size: int) -> None:
        self._traffic.down[client] = self._traffic.down.get(client, 0) + size

    # -- what is written down ---------------------------------------------------------

    @property
    def trips(self) -> dict[int, Trip]:
        """Each client's last trip since the figures were last read."""
        return {trip.client: trip for trip in self._trips}

    def figures(self, kept: Kept | KeptOf | None, fits: frozenset[str]) -> dict[str, Any]:
        """Return the clock, the energy of the trips since the last call, and who is refused."""
        seen, self._trips = self._trips, []
        waited, self._waited = self._waited, 0.0
        refused, self._refused = self._refused, None
        if refused is None:
            refused = self.enrolment.refused(self._plan, kept, fits)
        return {
            "simulated_seconds": self.now,
            "waited_seconds": waited,
            "energy_joules": math.fsum(trip.energy_joules for trip in seen),
            "clients_refused": refused,
        }

    def describe(
        self, plan: Plan, kept: Kept | KeptOf | None, fits: frozenset[str]
    ) -> dict[str, Any]:
        """Return what `devices.json` says: the mixture, who is refused, memory by method."""
        return devices_json(self.enrolment, plan, kept, fits)

    def state_dict(self) -> dict[str, Any]:
        """Return what the clock needs to go on from here."""
        return {"now": self.now, "fleet": self.fleet.digest}

    def load_state_dict(self, saved: Mapping[str, Any]) -> None:
        """Go on from what `state_dict` returned; RunFolderError when the devices are others."""
        if saved["fleet"] != self.fleet.digest:
            raise RunFolderError(
                f"the devices or traces of fleet.profile = '{self.task.config.fleet.profile}' are "
                "not those that the run began with; put the files back as they were, or start "
                "again with another --out"
            )
        self.now = saved["now"]


def _last(trips: Iterable[Trip], now: float) -> float:
    return max((trip.finished for trip in trips), default=now)
