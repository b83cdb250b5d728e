"""What a run's ledger tells of a client or a sample: rounds, bytes, masks, and Merkle proofs.

Rows of clients add what each sent and trained on; samples are looked up in the data, which is dealt
again from the configuration.
"""

import math
from collections.abc import Sequence
from typing import Any

import numpy as np

from fedsparse.data import FederatedData
from fedsparse.errors import ConfigError, DataError, LedgerError
from fedsparse.runs import RunFolder, merkle
from fedsparse.runs.ledger import Entry, Ledger
from fedsparse.runs.tables import Row
from simulations.influence import first_asked
from strategies.ledger_rows import trained_ids

Json = dict[str, Any]

MOST_SEARCHED = 20_000
"""Registered clients up to which all are searched for a sample; of more, those that were asked."""


def summary(folder: RunFolder, entries: Sequence[Entry]) -> Json:
    """Return what the ledger holds as a whole."""
    rounds = entries[1:]
    return {
        "run": str(folder.path),
        "entries": len(entries),
        "head": entries[-1]["hash"],
        "begins": entries[0]["begins"],
        "parent": entries[0].get("parent"),
        "rounds": len(rounds),
        "asked": len({client for entry in rounds for client in entry["asked"]}),
        "counted": len({client for entry in rounds for client in entry["counted"]}),
        "masks": len({entry["mask"] for entry in rounds} - {None}),
    }


def of_client(folder: RunFolder, entries: Sequence[Entry], client: int) -> Json:
    """Return the rounds that a client touched, with its bytes, samples and share, and the masks.

    `share` is the client's part of the samples of all whose replies counted in a round: its weight
    wherever models are averaged by samples. Raises ConfigError for an unknown client.
    """
    clients = folder.config.fleet.clients
    if not 0 <= client < clients:
        raise ConfigError(f"there is no client {client}; the run's are 0 to {clients - 1}")
    rows, weights = _rows_of(folder, client)
    rounds = [
        _round(entry, client, rows.get(entry["round"], []), weights)
        for entry in entries[1:]
        if client in entry["asked"] or client in entry["counted"]
    ]
    counted = [one["round"] for one in rounds if one["counted"]]
    root, samples = roots(entries).get(client, (None, None))
    return {
        "client": client,
        "rounds": rounds,
        "first_round": min(counted, default=None),
        "last_round": max(counted, default=None),
        "bytes_up": sum(one["bytes_up"] for one in rounds),
        "bytes_down": sum(one["bytes_down"] for one in rounds),
        "samples": samples,
        "root": root,
        "masks": list(dict.fromkeys(m for one in rounds if one["counted"] and (m := one["mask"]))),
    }


def _rows_of(folder: RunFolder, client: int) -> tuple[dict[int, list[Row]], dict[int, int]]:
    """Return a client's rows of training by round, and the samples of each round's replies."""
    own: dict[int, list[Row]] = {}
    weights: dict[int, int] = {}
    for row in folder.clients():
        if row["kind"] != "train":
            continue
        number = row["round"]
        if row["status"] == "ok":
            weights[number] = weights.get(number, 0) + (row["examples"] or 0)
        if row["client"] == client:
            own.setdefault(number, []).append(row)
    return own, weights


def _round(entry: Entry, client: int, rows: Sequence[Row], weights: dict[int, int]) -> Json:
    """Return what a client did in one round."""
    up, down = entry.get("bytes", {}).get(str(client), (0, 0))
    good = [row["examples"] or 0 for row in rows if row["status"] == "ok"]
    weight = weights.get(entry["round"], 0)
    return {
        "round": entry["round"],
        "counted": client in entry["counted"],
        "bytes_up": up + sum(row["bytes_up"] for row in rows),
        "bytes_down": down + sum(row["bytes_down"] for row in rows),
        "share": math.fsum(good) / weight if good and weight else None,
        "mask": entry["mask"],
        "mask_changed": entry["mask"] != entry["mask_before"],
        "model": entry["model"],
    }


def roots(entries: Sequence[Entry]) -> dict[int, tuple[str, int]]:
    """Return the Merkle root of each client that counted, and how many samples it stands for."""
    told: dict[int, tuple[str, int]] = {}
    for entry in entries[1:]:
        told.update({int(k): (root, count) for k, (root, count) in entry["samples"].items()})
    return told


def of_sample(
    folder: RunFolder, entries: Sequence[Entry], federated: FederatedData, sample: int
) -> Json:
    """Return the clients that hold a sample, their rounds, and the proofs that they trained on it.

    Raises DataError for a sample of no client, LedgerError where a root is not that of the data.
    """
    place = _place(federated, sample)
    asked = first_asked(entries)
    known = range(federated.clients) if federated.clients <= MOST_SEARCHED else sorted(asked)
    holders = [client for client in known if place in federated.partition[client]]
    if not holders and len(known) == federated.clients:
        raise DataError(f"sample {sample} belongs to no client of '{folder.path}'")
    told, key = roots(entries), Ledger(folder.path).key(folder.config.run.seed, entries)
    return {
        "sample": sample,
        "searched": len(known),
        "clients": [
            _holder(federated, entries, told, key, client, sample, place) for client in holders
        ],
    }


def _place(federated: FederatedData, sample: int) -> int:
    """Return the row of `federated.train` that holds a sample."""
    rows, size = federated.rows, len(federated.train)
    place = sample
    if rows is not None and 0 <= sample < 2**62:
        place = int(np.searchsorted(rows, sample))
    if not 0 <= place < size or (rows is not None and rows[place] != sample):
        raise DataError(
            f"sample {sample} belongs to no client; samples are named by their row in the data "
            "set's training set"
        )
    return place


def _holder(
    federated: FederatedData,
    entries: Sequence[Entry],
    told: dict[int, tuple[str, int]],
    key: bytes,
    client: int,
    sample: int,
    place: int,
) -> Json:
    """Return what a client did with a sample: `part` is train, test or forgotten."""
    ids = trained_ids(federated, client)
    gone = client in federated.absent or federated.is_forgotten(np.array([place]))[0]
    part = "forgotten" if gone else "train" if sample in ids else "test"
    trained = part == "train"
    counted = [e["round"] for e in entries[1:] if trained and client in e["counted"]]
    found: Json = {"client": client, "part": part, "rounds": counted, "proof": None}
    if counted:
        root = told[client][0]
        proof = merkle.proof(key, client, ids, sample)
        if not merkle.verify(bytes.fromhex(root), proof):
            raise LedgerError(
                f"the ledger's root of client {client} is not that of its samples now; the data "
                "were changed"
            )
        found["proof"] = {"root": root, **proof.to_json()}
    return found
