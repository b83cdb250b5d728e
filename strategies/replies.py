"""What a client's training reply holds, and how it is read.

A `Reader` is plain data, so that a worker that adds replies up reads them just as the server
would. One that cannot be trusted raises here, and is nobody's sum's.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, Generic, TypeVar

import numpy as np
from flwr.app import ArrayRecord, Message, MetricRecord
from numpy.typing import NDArray

from fedsparse import messages, wire
from fedsparse.errors import FedSparseError, WireError
from fedsparse.sparsity import Mask, State
from strategies import metrics
from strategies.added import AddedUp, is_added
from strategies.metrics import named

T = TypeVar("T")

MOST_FIGURES = 2**16
"""Numbers in a record of figures of a reply."""


@dataclass(frozen=True)
class Answer(Generic[T]):
    """One client's answer to a query."""

    client: int
    examples: int
    value: T


@dataclass(frozen=True)
class Reply:
    """One client's trained model and what came with it.

    `kept` holds what was sent: of a masked tensor the kept values alone, in order. It is empty
    where the model has gone into a sum already.
    """

    client: int
    examples: int
    kept: State
    loss: float
    message: Message
    extra: Any = None
    mask: Mask | None = None

    @property
    def state(self) -> State:
        """The model as whole tensors, zero where pruned."""
        return spread(self.kept, self.mask)

    @cached_property
    def flat(self) -> NDArray[np.float32]:
        """What was sent, as one vector."""
        return np.concatenate([value.reshape(-1) for value in self.kept.values()])


@dataclass(frozen=True)
class Before:
    """What a round's replies answer: its number, the tensors that travelled, and the mask."""

    round_number: int
    shared: State
    mask: Mask | None
    asked: int = 0
    """Clients that were asked."""


@dataclass(frozen=True)
class Reader:
    """How the replies of a round are read: the model's schema, and each client's mask."""

    schema: wire.Schema
    masks: tuple[Mask | None, ...] = (None,)
    """The distinct masks of the round, the global one first."""
    places: Mapping[int, int] = field(default_factory=dict)
    """Which of them a client trained under, if it is not the first."""
    apart: frozenset[int] = frozenset()
    """Clients whose replies must come as they are."""
    round_number: int = 0
    """The round that a reply must be of, where it tells; any for 0."""
    most_examples: int | None = None
    """Samples that a reply may tell at most."""

    def place(self, client: int) -> int:
        """Return the number of a client's mask."""
        return self.places.get(client, 0)

    @property
    def extras(self) -> Mapping[str, int]:
        """The records that replies hold beside model and figures, with their largest bytes."""
        return {}

    def inspect(self, message: Message) -> None:
        """Raise WireError for what a reply of this round cannot hold, before any is decoded.

        That is: other records, longer ones, figures without end, another round, or more samples.
        """
        inspect_records(message, {messages.ARRAYS: self.schema.most_bytes, **self.extras})
        told = messages.metrics_of(message)
        number = told.get(messages.ROUND_KEY, self.round_number)
        if self.round_number and number != self.round_number:
            raise WireError(
                f"the reply is of round {named(number)}; this is round {self.round_number}"
            )
        samples = told.get(messages.EXAMPLES_KEY)
        most = self.most_examples
        if most is not None and isinstance(samples, int | float) and samples > most:
            raise WireError(f"the reply tells {named(samples)} samples; {most} are allowed")

    def extra(self, message: Message) -> Any:
        """Decode what else a reply carries; an error here drops the reply, not the run."""
        return None

    def open(
        self, client: int, message: Message
    ) -> tuple[wire.FlatValues | None, dict[str, Any], Any]:
        """Return a reply's values, figures and extras, once all that it holds was checked.

        Values are those of the model that were sent, tensor by tensor: of a masked one the kept
        alone. None: they are in a sum already. They may lie in the message itself. Raises a
        FedSparseError or, for what is missing, KeyError.
        """
        try:
            self.inspect(message)
            flat = None
            if not is_added(message):
                payload = wire.unpack(messages.arrays_of(message))
                flat = wire.decode_flat(payload, self.schema, self.masks[self.place(client)])
            return flat, metrics.read(message, "examples", "loss"), self.extra(message)
        except (FedSparseError, KeyError, MemoryError):
            raise
        except Exception as error:  # whatever a client has made of its reply, it ends no run
            raise WireError(f"the reply cannot be read: {type(error).__name__}: {error}") from error

    def read(self, client: int, message: Message) -> Reply:
        """Return a reply, decoded; raises as `open` does."""
        flat, told, extra = self.open(client, message)
        mask = self.masks[self.place(client)]
        kept: State = {}
        if flat is not None:
            values = flat.values
            kept = split(values if values.flags.writeable else values.copy(), self.schema, mask)
        return Reply(client, told["examples"], kept, told["loss"], message, extra, mask)


def inspect_records(message: Message, most: Mapping[str, int]) -> None:
    """Raise WireError for records of arrays that nobody asked for, or that are too long.

    `most` holds the largest bytes by record; lists of figures are bounded, too.
    """
    for name, record in message.content.items():
        if isinstance(record, MetricRecord):
            numbers = sum(len(v) if isinstance(v, list) else 1 for v in record.values())
            if numbers > MOST_FIGURES:
                raise WireError(f"the reply's '{name}' holds {numbers} figures; it is refused")
            continue
        if isinstance(record, AddedUp):
            continue
        if name not in most and isinstance(record, ArrayRecord):
            raise WireError(f"the reply holds a record '{name[:40]}' that nobody asked for")
        if is_plain(record):  # refused where a payload is looked for
            continue
        if isinstance(record, ArrayRecord) and (size := wire.record_bytes(record)) > most[name]:
            raise WireError(f"the reply's '{name}' has {size} bytes; at most {most[name]} fit")


def is_plain(record: Any) -> bool:
    """Tell whether a record stands for a model, but not as a payload of ours."""
    return isinstance(record, ArrayRecord) and any(
        array.stype != wire.STYPE for array in record.values()
    )


def split(flat: NDArray[Any], schema: wire.Schema, mask: Mask | None) -> dict[str, NDArray[Any]]:
    """Return a vector of sent values as views by tensor; of masked ones the kept in order."""
    counts = {} if mask is None else mask.layer_kept()
    parts = {}
    begin = 0
    for name, shape in schema.tensors:
        end = begin + counts.get(name, int(np.prod(shape)))
        parts[name] = flat[begin:end] if name in counts else flat[begin:end].reshape(shape)
        begin = end
    return parts


def spread(kept: State, mask: Mask | None) -> State:
    """Return whole tensors of which `kept` holds the entries that the mask keeps, in order."""
    return dict(kept) if mask is None else mask.spread(kept)
