"""Messages as they go to workers in batches: what is alike once, then a few words a client.

Models are in Ray's object store, each distinct one once; a letter names them by number.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import ray
from flwr.app import ArrayRecord, Metadata

from simulations import flower_internals as internals
from simulations.tasks import Task

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


Flat = tuple[int, int, str, int, float, dict[str, Any] | None, bytes | None]
"""A parcel without a class, as which thousands of them are carried in a third of the time."""


def flat(parcels: Sequence[Parcel]) -> list[Flat]:
    """Return the parcels of a batch as they are carried."""
    return [(client, letter, *to, state, name) for client, letter, to, state, name in parcels]


def unflat(carried: Sequence[Flat]) -> Iterator[Parcel]:
    """Yield the parcels that `flat` was given."""
    for client, letter, message_id, node, created_at, state, name in carried:
        yield Parcel(client, letter, internals.Address(message_id, node, created_at), state, name)


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
