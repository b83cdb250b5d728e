"""Messages as they go to workers in batches: what is alike once, then a few words a client.

Models are in Ray's object store, each distinct one once; a letter names them by number.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import ray
from flwr.app import ArrayRecord, Metadata

from simulations import flower_internals as internals
from simulations.tasks import Task, TaskResult

internals.carry_large_arrays_apart()


@dataclass(frozen=True)
class Letter:
    """What messages have in common: models by number, everything else as it is."""

    clients: int
    metadata: Metadata
    models: dict[str, int]
    records: dict[str, Any]
    run_config: dict[str, Any]

    def contents(self, models: Mapping[int, ArrayRecord]) -> dict[str, Any]:
        """Return the records, with the models in them."""
        return {**self.records, **{name: models[number] for name, number in self.models.items()}}


class Parcel(NamedTuple):
    """What is a client's own of a message: a letter's number, its address, its state.

    With a `digest` the state is left out, and taken from what the worker keeps.
    """

    client: int
    letter: int
    address: internals.Address
    state: dict[str, Any] | None
    digest: bytes | None = None


@dataclass(frozen=True)
class Chunk:
    """What a worker has done since it last reported.

    `digests` are those of the states that it keeps, by client; of clients in `missing` it does
    not hold the state that the parcel's digest stands for. Sums are in the results' replies.
    """

    results: list[TaskResult]
    digests: dict[int, bytes]
    missing: list[int]
    seconds: float


def pack(tasks: Sequence[Task]) -> tuple[list[Parcel], list[Letter], list[Any]]:
    """Return the tasks as parcels, their letters, and each distinct model in the store, once."""
    numbers: dict[int, int] = {}
    stored: list[Any] = []
    places: dict[Any, int] = {}
    letters: list[Letter] = []
    parcels = []
    for task in tasks:
        metadata, content = task.message.metadata, task.message.content
        alike = (
            tuple((name, id(record)) for name, record in content.items()),
            internals.alike(metadata),
            task.clients,
            id(task.run_config),
        )
        if alike not in places:
            models: dict[str, int] = {}
            for name, record in content.items():
                if isinstance(record, ArrayRecord):
                    if id(record) not in numbers:
                        numbers[id(record)] = len(stored)
                        stored.append(ray.put(record))
                    models[name] = numbers[id(record)]
            records = {n: record for n, record in content.items() if n not in models}
            places[alike] = len(letters)
            letters.append(Letter(task.clients, metadata, models, records, dict(task.run_config)))
        address = internals.address(metadata)
        parcels.append(Parcel(task.client, places[alike], address, task.state))
    return parcels, letters, stored


def enclosed(
    batch: Sequence[Parcel], letters: Sequence[Letter], models: Sequence[Any]
) -> tuple[dict[int, Letter], dict[int, Any]]:
    """Return the letters and models that a batch names, by number: no others are sent with it."""
    named = {number: letters[number] for number in sorted({parcel.letter for parcel in batch})}
    numbers = {number for letter in named.values() for number in letter.models.values()}
    return named, {number: models[number] for number in sorted(numbers)}
