"""Faults on a simulated grid: clients that fail, and messages lost, late, doubled or damaged.

A `Schedule` says what happens to whom in which round; it comes from a seed, so that a run under it
can be repeated. `FaultyGrid` is the grid of this process with such a schedule: what a strategy sees
there is what Flower's nodes would have it see (error replies, no reply, bytes that are not ours).
"""

import zlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace

import numpy as np
from flwr.app import ArrayRecord, Message, RecordDict
from flwr.clientapp import ClientApp

from fedsparse import messages, seeds, wire
from simulations import flower_internals as internals
from simulations.adding import Adder
from simulations.grid import CohortGrid, InlineExecutor
from simulations.tasks import Task, TaskResult, failure, perform
from strategies.replies import Reader

UNASKED, LOST, LATE = "unasked", "lost", "late"
"""The message is lost; the reply is lost; it comes with those of the next exchange."""
RAISES, DIES = "raises", "dies"
"""The client raises an exception; its process ends."""
FLIPPED, CUT, NAN, BARE, UNLABELLED = "flipped", "cut", "nan", "bare", "unlabelled"
"""Bits flipped; bytes cut off; NaN under a checksum that fits; no model; no figures."""
MISDIRECTED = "misdirected"
"""The reply says that it comes from another client."""
TWICE, SKEWED = "twice", "skewed"
"""The reply comes twice; the client's clock is two days off."""

HARMLESS = frozenset({TWICE, SKEWED})
"""Faults of which the reply counts all the same."""
KINDS = (
    *(UNASKED, LOST, LATE, RAISES, DIES, FLIPPED, CUT, NAN, BARE, UNLABELLED),
    *(MISDIRECTED, TWICE, SKEWED),
)
TWO_DAYS = 2 * 86400.0

Place = tuple[str, int, int]
"""Kind of a message, its round, and the client."""


@dataclass(frozen=True)
class Schedule:
    """What happens to the exchanges of a run, and whether replies come in a random order."""

    seed: int = 0
    faults: Mapping[Place, str] = field(default_factory=dict)
    shuffled: bool = False

    @classmethod
    def of(cls, seed: int, *, rounds: int, clients: int, rate: float) -> "Schedule":
        """Draw a fault for each client of each round with probability `rate`, by the seed."""
        rng = seeds.stream(seed, 0, seeds.SERVER, "faults")
        places = [(messages.TRAIN, n, k) for n in range(1, rounds + 1) for k in range(clients)]
        places += [(messages.EVALUATE, rounds, client) for client in range(clients)]
        hit = rng.random(len(places)) < rate
        kinds = rng.integers(len(KINDS), size=len(places))
        faults = {p: KINDS[k] for p, there, k in zip(places, hit, kinds, strict=True) if there}
        return cls(seed, faults, bool(rng.random() < 0.5))

    def fault(self, message: Message, client: int) -> str | None:
        """Return what happens to a client that is sent a message; None for nothing."""
        place = place_of(message, client)
        return None if place is None else self.faults.get(place)

    def counts(self, kind: str, round_number: int, client: int) -> bool:
        """Whether the reply of a client that is asked can count."""
        return self.faults.get((kind, round_number, client), TWICE) in HARMLESS

    def healed(self, round_number: int) -> "Schedule":
        """Return the schedule without the faults of a round's training."""
        healed = (messages.TRAIN, round_number)
        return replace(self, faults={p: f for p, f in self.faults.items() if p[:2] != healed})

    def losses(self) -> "Schedule":
        """Return the schedule in which those whose replies cannot count just do not reply."""
        lost = {place: LOST for place, fault in self.faults.items() if fault not in HARMLESS}
        return Schedule(self.seed, lost)


def place_of(message: Message, client: int) -> Place | None:
    """Return kind and round of a message to a client; None where it says no round."""
    record = message.content.config_records.get(messages.CONFIG)
    number = None if record is None else record.get(messages.ROUND_KEY)
    return (message.metadata.message_type, number, client) if isinstance(number, int) else None


class FaultyExecutor(InlineExecutor):
    """Clients of this process under a schedule; `deliver` is the network that brings replies."""

    one_by_one = False  # a client without a result may have been handed its message

    def __init__(self, client_app: ClientApp | str, schedule: Schedule) -> None:
        super().__init__(client_app)
        self.schedule = schedule
        self.whole: dict[Place, Message] = {}
        """Each client's last reply as it left the client, for whoever checks what came of it."""
        self._withheld: set[str] = set()
        self._late: list[Message] = []

    def run(
        self, tasks: Sequence[Task], timeout: float | None, reader: Reader | None = None
    ) -> Iterator[TaskResult]:
        """Yield the results of clients that were reached, damaged as the schedule says."""
        adder = None if reader is None else Adder(reader, at_once=True)
        for task in tasks:
            result = self._result(task)
            if result is None:
                continue
            apart = result.reply.metadata.reply_to_message_id in self._withheld
            if adder is None or apart or self._astray(task):  # sums are made of what arrives
                yield result
            else:
                adder.take(result)
                yield from adder.results()

    def _astray(self, task: Task) -> bool:
        return self.schedule.fault(task.message, task.client) == MISDIRECTED

    def _result(self, task: Task) -> TaskResult | None:
        fault = self.schedule.fault(task.message, task.client)
        if fault == UNASKED:
            return None
        if fault == RAISES:
            return failure(task, internals.RAISED, f"ValueError: client {task.client} broke")
        if fault == DIES:
            return failure(task, internals.CRASHED, f"client {task.client}'s process ended")
        result = perform(self.app, task)
        reply = result.reply
        if (place := place_of(task.message, task.client)) is not None:
            self.whole[place] = internals.copied(reply)
        if fault in (LOST, LATE):
            self._withheld.add(reply.metadata.reply_to_message_id)
        if fault == LATE:
            self._late.append(internals.copied(reply))
        if fault is not None and not reply.has_error():
            damage(reply, fault, self.schedule.seed)
        return result

    def deliver(
        self, replies: Sequence[Message], fault_of: Callable[[Message], str | None]
    ) -> list[Message]:
        """Return what reaches the server: some replies twice, some not, and those late before."""
        late = [m for m in self._late if m.metadata.reply_to_message_id not in self._withheld]
        here = [m for m in replies if m.metadata.reply_to_message_id not in self._withheld]
        twice = [internals.copied(m) for m in here if fault_of(m) == TWICE]
        self._late = [m for m in self._late if m.metadata.reply_to_message_id in self._withheld]
        self._withheld.clear()
        come = [*late, *here, *twice]
        if self.schedule.shuffled:
            rng = seeds.stream(self.schedule.seed, len(come), seeds.SERVER, "order")
            come = [come[i] for i in rng.permutation(len(come))]
        return come


class FaultyGrid(CohortGrid):
    """The grid of this process, on which a schedule's faults happen."""

    def __init__(self, client_app: ClientApp | str, *, clients: int, schedule: Schedule) -> None:
        self.faulty = FaultyExecutor(client_app, schedule)
        super().__init__(client_app, clients=clients, executor=self.faulty)

    def _exchange(
        self, sent: list[Message], timeout: float | None, reader: Reader | None = None
    ) -> list[Message]:
        replies = super()._exchange(sent, timeout, reader)
        happens = {
            m.metadata.message_id: self.faulty.schedule.fault(
                m, self.client_of(m.metadata.dst_node_id)
            )
            for m in sent
        }
        return self.faulty.deliver(
            replies, lambda reply: happens.get(reply.metadata.reply_to_message_id)
        )


def damage(reply: Message, fault: str, seed: int) -> None:
    """Do to a reply what a fault does to its bytes and its metadata."""
    if fault == SKEWED:
        internals.skew(reply, TWO_DAYS if seed % 2 else -TWO_DAYS)
    elif fault == MISDIRECTED:
        internals.redirect(reply, reply.metadata.src_node_id + (1 if seed % 2 else 10**6))
    elif fault in (BARE, UNLABELLED):
        gone = messages.ARRAYS if fault == BARE else messages.METRICS
        reply.content = RecordDict({k: v for k, v in reply.content.items() if k != gone})
    elif fault in (FLIPPED, CUT, NAN):
        arrays = reply.content.get(messages.ARRAYS)
        if isinstance(arrays, ArrayRecord):
            rng = seeds.stream(seed, 0, seeds.SERVER, fault)
            spoilt = _SPOIL[fault](bytearray(wire.unpack(arrays)), rng)
            internals.put(reply, messages.ARRAYS, wire.pack(bytes(spoilt)))
        else:  # a test's reply has figures alone
            reply.content = RecordDict()


def _flip(payload: bytearray, rng: np.random.Generator) -> bytearray:
    for at in rng.integers(len(payload), size=3):
        payload[at] ^= 1 << int(rng.integers(8))
    return payload


def _cut(payload: bytearray, rng: np.random.Generator) -> bytearray:
    return payload[: int(rng.integers(len(payload)))]


def _spoil_value(payload: bytearray, rng: np.random.Generator) -> bytearray:
    """Put a NaN in the place of the last value, under a checksum that fits."""
    payload[-8:-4] = b"\xff" * 4
    payload[-4:] = zlib.crc32(payload[:-4]).to_bytes(4, "little")
    return payload


_SPOIL = {FLIPPED: _flip, CUT: _cut, NAN: _spoil_value}
