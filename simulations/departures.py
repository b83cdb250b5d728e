"""A client that was asked, with its trip as it is foreseen: what fate it may meet on the way."""

from dataclasses import dataclass, replace

from flwr.app import ConfigRecord, Message

from fedsparse import messages as words
from fedsparse.devices import Device
from fedsparse.training.price import Price
from strategies.trips import Trip

FATES = ("before", "during", "after")


@dataclass(frozen=True)
class Departure:
    """A client that was asked: its message, its device, and its trip as far as foreseen."""

    message: Message
    device: Device
    trip: Trip
    density: float
    fate: str | None
    part: float
    """Of its computing that a client lost during training has done."""
    limit: float
    """Seconds from its start after which its reply is late."""
    price: Price

    @property
    def earliest(self) -> float:
        """The first simulated second at which something can be heard of it."""
        end = fated(self).finished if self.fate in ("before", "during") else self.trip.finished
        return min(end, self.trip.started + self.limit)


def fated(departure: Departure) -> Trip:
    """Return the trip of a client that is lost before or during training."""
    trip = departure.trip
    if departure.fate == "before":
        return replace(trip, status="dropped", reason="lost before training")
    return replace(
        trip,
        compute_seconds=trip.compute_seconds * departure.part,
        status="dropped",
        reason="lost during training",
    )


def stream_of(message: Message) -> int:
    """Return the number that a client's draws of this message derive from."""
    record = message.content.config_records.get(words.CONFIG, ConfigRecord())
    if words.PLAN_KEY in record:
        return words.read_config(record)[1].stream
    number = record.get(words.ROUND_KEY, 0)
    return number if isinstance(number, int) else 0
