"""Data: where samples come from, and which client holds which."""

from dataclasses import replace
from functools import lru_cache

import numpy as np

from fedsparse import registry, seeds
from fedsparse.config import AttackConfig, Config, DataConfig, ForgetConfig
from fedsparse.data import backdoor, nodes, partitions
from fedsparse.data.dataset import (
    ClientData,
    Dataset,
    FederatedData,
    Indices,
    Partition,
    Placed,
    Source,
)
from fedsparse.data.samples import spread
from fedsparse.errors import DataError

__all__ = [
    "ClientData",
    "Dataset",
    "FederatedData",
    "Source",
    "check_forgotten",
    "load",
    "of",
    "partition_counts",
]

MOST_COUNTED = 2_000
"""Clients whose classes `partition_counts` counts."""


def of(config: Config) -> FederatedData:
    """Load what a configuration names, without what it forgets and with its attack.

    Raises DataError as `load` does, and for classes and samples that are not there.
    """
    seed = config.run.seed if config.data.seed is None else config.data.seed
    return _of(config.data, config.fleet.clients, seed, config.forget, config.attack)


@lru_cache(maxsize=4)
def _of(
    data: DataConfig, clients: int, seed: int, forget: ForgetConfig, attack: AttackConfig
) -> FederatedData:
    whole = load(data, clients=clients, seed=seed)
    if not forget.kind and not attack.planters:
        return whole
    if attack.planters:
        backdoor.check(attack, whole.input_shape, whole.classes)
    check_forgotten(whole, forget)
    changed = replace(whole, forget=forget, attack=attack)
    if forget.classes:
        gone = sorted(forget.class_set)
        tested = np.isin(whole.test.y, gone)
        changed = replace(
            changed,
            test=whole.test.take(np.flatnonzero(~tested)),
            test_forgotten=whole.test.take(np.flatnonzero(tested)),
            public=whole.public.take(np.flatnonzero(~np.isin(whole.public.y, gone))),
        )
    if len(changed.absent) >= clients:
        raise DataError("[forget] leaves no client with a sample to train on; forget less")
    return changed


def check_forgotten(whole: FederatedData, forget: ForgetConfig) -> None:
    """Raise DataError for classes that do not exist and samples that no client holds."""
    if forget.classes and whole.classes == 1:
        raise DataError("forget.classes: these targets are numbers, there are no classes")
    unknown = [label for label in sorted(forget.class_set) if label >= whole.classes]
    if unknown:
        raise DataError(
            f"forget.classes names class {unknown[0]}; the classes are 0 to {whole.classes - 1}"
        )
    if not forget.samples:
        return
    wanted = np.array(sorted(forget.sample_set), np.int64)
    held = whole.partition.places if isinstance(whole.partition, Placed) else whole.rows
    foreign = wanted if held is None else np.setdiff1d(wanted, held)
    if len(foreign):
        raise DataError(
            f"forget.samples names sample {foreign[0]}, which belongs to no client: it is no row "
            "of the training set, is not used (data.samples), or is the server's own "
            "(data.public_samples)"
        )


def load(data: DataConfig, *, clients: int, seed: int) -> FederatedData:
    """Load a dataset and deal it to clients; a process does this once for each arguments.

    The server's public samples come out of the training set first and belong to no
    client. Raises DataError when samples are too few for what is asked.
    """
    return _load(data.model_dump_json(), clients, seed)


@lru_cache(maxsize=2)
def _load(text: str, clients: int, seed: int) -> FederatedData:
    data = DataConfig.model_validate_json(text)
    if data.name == nodes.NAME:
        return nodes.federated(data, clients, seed)
    source = registry.call("datasets", data.name, data, seed)
    if not isinstance(source, Source):
        raise DataError(
            f"dataset '{data.name}' returned a {type(source).__name__}, not a fedsparse.data.Source"
        )
    nodes.check_declared(data, source.train)
    limit = min(len(source.train), data.samples or len(source.train))
    if data.partition == "sampled" and data.public_samples >= limit:
        raise DataError(
            f"data.public_samples = {data.public_samples} of {limit} samples leave none for the "
            "clients; lower data.public_samples"
        )
    needed = clients * data.min_per_client + data.public_samples
    if data.partition != "sampled" and needed > limit:
        raise DataError(
            f"fleet.clients = {clients} with {data.min_per_client} samples each and "
            f"{data.public_samples} public ones need {needed} samples, there are {limit}; "
            "lower fleet.clients or data.public_samples, or set data.partition = 'sampled'"
        )
    chosen = spread(source.train.y, limit, seeds.stream(seed, 0, seeds.SERVER, "samples"))
    public, rest = _public(source.train, chosen, data.public_samples, seed)
    test = source.test
    if data.test_samples and data.test_samples < len(test):
        rng = seeds.stream(seed, 0, seeds.SERVER, "test samples")
        test = test.take(spread(test.y, data.test_samples, rng))
    column = None if source.column is None else source.column[rest]
    labels = source.train.y[rest]
    partition = _deal(data, labels, source.train.classes, column, clients, seed)
    if isinstance(source.train.x, np.memmap):  # a copy would be each process's own
        train, partition, rows = source.train, Placed(partition, rest), None
    else:
        train, rows = source.train.take(rest), rest
    return FederatedData(
        train, test, source.train.take(public), partition, data.client_test_fraction, seed, rows
    )


def _public(train: Dataset, chosen: Indices, count: int, seed: int) -> tuple[Indices, Indices]:
    """Split positions into the server's public samples and the clients'."""
    rng = seeds.stream(seed, 0, seeds.SERVER, "public samples")
    public = chosen[spread(train.y[chosen], count, rng)]
    return public, np.setdiff1d(chosen, public)


def _deal(
    data: DataConfig,
    labels: np.ndarray,
    classes: int,
    column: np.ndarray | None,
    clients: int,
    seed: int,
) -> Partition:
    if data.partition == "sampled":
        return partitions.Sampled(labels, clients, data.samples_per_client, data.alpha, seed)
    rng = seeds.stream(seed, 0, seeds.SERVER, "partition")
    if data.partition in ("dirichlet", "shards") and classes == 1:
        raise DataError(
            f"data.partition = '{data.partition}' needs classes, {data.name} has none; "
            "use 'iid' or 'quantity'"
        )
    if data.partition == "dirichlet":
        return partitions.dirichlet(labels, clients, data.alpha, data.min_per_client, rng)
    if data.partition == "shards":
        return partitions.shards(labels, clients, data.shards_per_client, rng)
    if data.partition == "quantity":
        return partitions.quantity(len(labels), clients, data.alpha, data.min_per_client, rng)
    if data.partition == "natural":
        return partitions.natural(column, clients)
    return partitions.iid(len(labels), clients, rng)


def partition_counts(federated: FederatedData, most: int = MOST_COUNTED) -> list[list[int]]:
    """Return how many samples of each class each client has; one column for regression.

    Of the first `most` clients: a million would be a picture that nobody reads.
    """
    first = range(min(most, federated.clients))
    if federated.classes == 1:
        return [[len(_held(federated, client))] for client in first]
    labels, classes = federated.train.y, federated.classes
    return [
        np.bincount(labels[_held(federated, client)], minlength=classes).tolist()
        for client in first
    ]


def _held(federated: FederatedData, client: int) -> Indices:
    """Return the positions of a client's samples, without those that are forgotten."""
    own = federated.partition[client]
    if not federated.forget.kind:
        return own
    return own[:0] if client in federated.absent else own[~federated.is_forgotten(own)]
