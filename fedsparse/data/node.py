"""A node's own data: what lies at its own machine takes the place of a part of the run's data set.

The node is told by its `--node-config`: `data-path`, and if wished `test-path`, `label` (a table's
column) and `cache-path`. Decoded samples are kept on the disk and mapped, so that a process that
answers one message parses nothing. They are split by the run's seed as a part of the data set is.
"""

import logging
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache, lru_cache
from pathlib import Path
from typing import Any

import numpy as np
from flwr.app import ConfigRecord

from fedsparse import data
from fedsparse.config import Config
from fedsparse.data import backdoor, decoded, node_files, nodes, schema
from fedsparse.data.dataset import ClientData, FederatedData, Indices, Partition
from fedsparse.data.node_files import Part, Wanted
from fedsparse.data.samples import Dataset
from fedsparse.errors import ConfigError, DataError, FedSparseError

PATH, TEST, LABEL, CACHE = "data-path", "test-path", "label", "cache-path"
NO_DATA = (
    "this node has no data, and data.name = 'nodes'; start it with --node-config "
    f"'{PATH}=\"/where/they/lie\" partition-id=0'"
)


@dataclass(frozen=True)
class Place:
    """Where a node's own data lie, as its configuration says."""

    path: str
    test: str | None = None
    label: str | None = None
    kept: str | None = None


class Alone(Partition):
    """All samples of a set for one of a run's clients."""

    def __init__(self, clients: int, client: int, samples: int) -> None:
        self.client = client
        self.sizes = np.zeros(clients, np.int64)
        self.sizes[client] = samples

    def part(self, client: int) -> Indices:
        """Return all positions for the one client."""
        return np.arange(self.sizes[client])


@dataclass(frozen=True)
class OwnData(FederatedData):
    """The samples of one node, which are one client's; `own_test` where it has some apart."""

    own_test: Dataset | None = None

    def client(self, client: int) -> ClientData:
        """Return the node's samples, split by the data's seed or as they lie apart."""
        found = super().client(client)
        test = self.own_test
        if test is None or client in self.forget.client_set:
            return found
        left = np.flatnonzero(~np.isin(test.y, sorted(self.forget.class_set)))
        return ClientData(found.train, test.take(left))


def place_of(node_config: Mapping[str, Any]) -> Place | None:
    """Return where a node's own data lie, None where it has none.

    Raises ConfigError for what is no text, and for what tells of data that are not named.
    """
    told = {key: text_of(node_config, key) for key in (PATH, TEST, LABEL, CACHE)}
    path = told[PATH]
    if path is None:
        lone = next((key for key in (TEST, LABEL) if told[key] is not None), None)
        if lone is not None:
            raise ConfigError(f"the node has '{lone}' and no '{PATH}'; tell it both")
        return None
    return Place(path, *(told[key] for key in (TEST, LABEL, CACHE)))


def text_of(node_config: Mapping[str, Any], key: str) -> str | None:
    """Return a text that a node is told, None for none; raises ConfigError for what is no text."""
    value = node_config.get(key)
    if value is None or (isinstance(value, str) and value and "\0" not in value):
        return value
    raise ConfigError(f'the node\'s {key} = {value!r} is no text; write {key}="..."')


def federated(config: Config, node_config: Mapping[str, Any], client: int) -> FederatedData:
    """Return the data that a client's samples come from: the node's own, else the run's.

    Raises DataError for data that are missing, cannot be read, or do not fit the run's model.
    """
    place = place_of(node_config)
    if place is None:
        if config.data.name == nodes.NAME:
            raise DataError(NO_DATA)
        return data.of(config)
    wanted = wanted_of(config, place)
    train, test = _decoded(place, wanted)
    whole = nodes.fitted(train, wanted, f"'{place.path}'")
    apart = None if test is None else nodes.fitted(test, wanted, f"'{place.test or place.path}'")
    return _own(config, client, whole, apart)


def told(config: Config, node_config: Mapping[str, Any]) -> ConfigRecord | None:
    """Return what a node tells of its own data before the first round: a schema, or a problem.

    None for a node that uses its part of the run's data set.
    """
    try:
        place = place_of(node_config)
        if place is None:
            if config.data.name != nodes.NAME:
                return None
            raise DataError(NO_DATA)
        wanted = wanted_of(config, place)
        (x, y), test = _decoded(place, wanted)
        if not isinstance(x, np.memmap):
            _tell_unkept(place)
        if test is not None:
            nodes.fitted(test, wanted, f"'{place.test or place.path}'")
        return schema.schema_of(Dataset(x, y, wanted.classes)).record()
    except FedSparseError as error:
        return schema.problem_record(str(error))


def _tell_unkept(place: Place) -> None:
    """Log at the node that its decoded samples are not kept; they are decoded for each message."""
    kept = None if place.kept is None else at_home(place.kept, CACHE)
    logging.getLogger(__name__).warning(
        "%s cannot keep decoded samples (%s): they are decoded anew for each message; let the node "
        "write there, or set %s to another folder",
        "the user's cache folder" if kept is None else f"{CACHE} = '{kept}'",
        *(decoded.unwritable(kept) or "no room is left", CACHE),
    )


def wanted_of(config: Config, place: Place) -> Wanted:
    """Return what a run's model takes, as `data.shape` says or the run's own data have it."""
    said = config.data
    if said.input_shape is not None:
        return Wanted(said.input_shape, said.class_count, said.label_names, place.label)
    try:
        run = data.of(config)
    except FedSparseError as error:
        raise DataError(
            f"this node cannot see what the model takes: {error}; set data.shape and data.classes"
        ) from None
    return Wanted(run.input_shape, run.classes, said.label_names, place.label)


def _own(config: Config, client: int, whole: Dataset, test: Dataset | None) -> OwnData:
    """Return a node's samples as the data of a run in which only one client has any."""
    forget, attack = config.forget, config.attack
    if forget.samples:
        raise DataError(
            "forget.samples names rows of the run's data set, and this node has its own; forget "
            "clients or classes"
        )
    if attack.planters:
        backdoor.check(attack, tuple(whole.x.shape[1:]), whole.classes)
    none = whole.take(np.zeros(0, np.int64))
    seed = config.run.seed if config.data.seed is None else config.data.seed
    own = OwnData(
        *(whole, none, none, Alone(config.fleet.clients, client, len(whole))),
        0.0 if test is not None else config.data.client_test_fraction,
        seed,
        forget=forget,
        attack=attack,
        own_test=test,
    )
    data.check_forgotten(own, forget)
    return own


def _decoded(place: Place, wanted: Wanted) -> tuple[Part, Part | None]:
    """Return a node's samples for training and, where it has some apart, for testing."""
    kept = None if place.kept is None else at_home(place.kept, CACHE)
    train, test = _arrays(at_home(place.path, PATH), wanted, kept, PATH)
    if place.test is None:
        return train, test
    return train, _arrays(at_home(place.test, TEST), wanted, kept, TEST)[0]


def at_home(path: str, key: str) -> Path:
    """Return a path with its `~` spelt out; raises ConfigError where that is nobody's home."""
    try:
        return Path(path).expanduser()
    except RuntimeError:
        raise ConfigError(f"{key} = '{path}': nobody has such a home; write it out") from None


def _arrays(place: Path, wanted: Wanted, kept: Path | None, key: str) -> tuple[Part, Part | None]:
    """Return what a path holds, mapped from the disk where it was read before."""
    try:
        state = decoded.state_of(place)
    except OSError:  # the reader says what is wrong
        state = ""
    return _mapped(place, state, wanted, kept, key)


@lru_cache(maxsize=4)
def _mapped(
    place: Path, state: str, wanted: Wanted, kept: Path | None, key: str
) -> tuple[Part, Part | None]:
    @cache
    def parsed() -> list[Any]:
        train, test = node_files.read(place, wanted, key)
        if test is None:  # of no samples, for they are kept as arrays
            test = train[0][:0], train[1][:0]
        return [*train, *test]

    x, y, test_x, test_y = (
        decoded.mapped(
            *(place, lambda part=part: parsed()[part]),
            purpose=f"node {part}",
            way=str(wanted),  # the server's wish: each kept for itself would fill the disk
            kept=kept,
            least=0,  # whatever one part has, the others must not be parsed for
        )
        for part in range(4)
    )
    return (x, y), (test_x, test_y) if len(test_y) else None
