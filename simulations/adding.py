"""Adding replies up where they are made, so that one sum goes to the server for many models.

A reply is read as the server would read it. One that cannot be trusted is left as it is: the
server finds the same fault, and gives the same reason.
"""

from typing import NamedTuple

from flwr.app import Message

from fedsparse import messages, wire
from fedsparse.errors import FedSparseError
from simulations import flower_internals as internals
from simulations.tasks import TaskResult
from strategies.added import AddedUp, PartialSum
from strategies.replies import Reader
from strategies.sums import Tally

HELD_BYTES = 2**20
"""Models that are added in one go, so that the sum is read and written once for all of them; no
more than a cache holds."""


class _Held(NamedTuple):
    """A reply that may still go as it is."""

    result: TaskResult
    place: int
    flat: wire.FlatValues
    examples: int


class Adder:
    """Adds replies up, and takes their models out; not `at_once`: only if that is shorter.

    A sum holds two float64 a value, four times a model's float32: a few replies go whole.
    """

    def __init__(self, reader: Reader, *, at_once: bool) -> None:
        self.reader = reader
        self.at_once = at_once
        self._held: list[_Held] = []
        self._bytes = 0
        self._done: list[TaskResult] = []
        self._tally = Tally(reader.schema, reader.masks)
        self._stands: dict[tuple[int, int], AddedUp] = {}

    @property
    def waiting(self) -> int:
        """Results that were taken and not given back."""
        return len(self._held) + len(self._done)

    def take(self, result: TaskResult) -> None:
        """Take a client's result; `results` gives it back, with or without its model."""
        held = self._read(result)
        if held is None:
            self._done.append(result)
            return
        self._held.append(held)
        self._bytes += held.flat.values.nbytes
        if self.at_once or (self._bytes >= HELD_BYTES and self._many()):
            self._add()

    def results(self) -> list[TaskResult]:
        """Return the results that are settled, each once."""
        done, self._done = self._done, []
        return done

    def finish(self) -> list[TaskResult]:
        """Settle and return all results; what is added later goes to new sums."""
        if self._tally.parts or self._many():
            self._add()
            self._tally = Tally(self.reader.schema, self.reader.masks)
            self._stands = {}
        self._done += [held.result for held in self._held]
        self._held, self._bytes = [], 0
        return self.results()

    def _many(self) -> bool:
        """Whether those that are held are longer than their sum."""
        return bool(self._held) and self._bytes > 4 * self._held[0].flat.values.nbytes

    def _read(self, result: TaskResult) -> _Held | None:
        """Return a reply that can be added, None for any other."""
        client, reply = result.client, result.reply
        if reply.has_error() or client in self.reader.apart:
            return None
        try:
            flat, told, _ = self.reader.open(client, reply)
        except (FedSparseError, KeyError):
            return None
        if flat is None:
            return None
        return _Held(result, self.reader.place(client), flat, told["examples"])

    def _add(self) -> None:
        held, self._held, self._bytes = self._held, [], 0
        addends: dict[int, list[tuple[wire.FlatValues, int]]] = {}
        for one in held:
            addends.setdefault(one.place, []).append((one.flat, one.examples))
        parts = {place: self._tally.add_all(place, some) for place, some in addends.items()}
        for one in held:
            self._take_out(one.result.reply, parts[one.place])
            self._done.append(one.result)

    def _take_out(self, reply: Message, part: PartialSum) -> None:
        """Put what stands for it in the model's place; equal replies share one."""
        length = wire.record_bytes(messages.arrays_of(reply))
        stand = self._stands.get((part.place, length))
        if stand is None:
            stand = self._stands[part.place, length] = AddedUp(length, part)
        internals.put(reply, messages.ARRAYS, stand)
