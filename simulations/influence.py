"""From which round on a target touched a run, by the run's ledger: how far a deletion goes back.

A client touches a round when it is asked in it: the model takes in its reply only if that counted,
but without the client another would have been asked. A sample touches what the clients touch that
train on it. The test of clients on their own samples at the end of a run touches nothing.
"""

import hashlib
from collections.abc import Iterator, Sequence
from itertools import islice
from typing import Any

import numpy as np

from fedsparse import registry
from fedsparse.config import Config, ForgetConfig
from fedsparse.data import FederatedData
from fedsparse.errors import LedgerError, RunFolderError
from fedsparse.runs import RunFolder
from fedsparse.runs.ledger import Entry, Ledger, digest_of
from strategies.base import SparseStrategy
from strategies.ledger_rows import ids_at, trained_positions

Json = dict[str, Any]


# -- is the ledger what was written ----------------------------------------------------------


def checked(folder: RunFolder) -> list[Entry]:
    """Return a run's ledger once it is known to be whole and to agree with the rest of the folder.

    Raises LedgerError that names what was changed or lacks.
    """
    entries, path = Ledger(folder.path).verified(), Ledger(folder.path).path
    if entries[0]["configuration"] != digest_of(folder.config):
        raise LedgerError(f"'{path}' is the ledger of a run with another configuration")
    last = entries[-1].get("round", entries[0]["begins"] - 1)
    covered = folder.config.run.rounds if folder.finished else max([-1, *folder.checkpoints()])
    if last < covered:
        raise LedgerError(f"'{path}' lacks the entry of round {last + 1}")
    _check_rows(folder, entries, covered)
    model = folder.path / "model.safetensors"
    if folder.finished and len(entries) > 1 and model.is_file():
        found = hashlib.sha256(model.read_bytes()).hexdigest()
        if found != entries[-1]["model"]:
            raise LedgerError(f"'{model}' is not the model that the last entry of '{path}' names")
    return entries


def _check_rows(folder: RunFolder, entries: Sequence[Entry], covered: int) -> None:
    """Raise LedgerError where the rows of clients tell of others than the ledger."""
    counted: dict[int, set[int]] = {}
    for row in folder.clients():
        if row["kind"] == "train" and row["status"] == "ok":
            counted.setdefault(row["round"], set()).add(row["client"])
    for entry in entries[1:]:
        number = entry["round"]
        if 0 < number <= covered and counted.get(number, set()) != set(entry["counted"]):
            raise LedgerError(
                f"the rows of clients in '{folder.path}' and its ledger do not name the same "
                f"clients in round {number}"
            )


# -- what a deletion needs -------------------------------------------------------------------


def first_influence(
    folder: RunFolder, federated: FederatedData, forget: ForgetConfig
) -> int | None:
    """Return the first round that a target touched, None if it never did.

    A run that goes back to the end of the round before and goes on without the target is the one
    that never had it. 0 where that cannot be told: before training, or without a ledger of the
    whole run. `federated` is the run's own data. Raises LedgerError for a ledger that does not
    verify.
    """
    if not Ledger(folder.path).path.exists():
        return 0
    return first_touched(folder, checked(folder), federated, forget)


def first_touched(
    folder: RunFolder,
    entries: Sequence[Entry],
    federated: FederatedData | None,
    forget: ForgetConfig,
) -> int | None:
    """Return `first_influence` by checked entries; clients are told without any data."""
    if _unknown(folder, entries, forget):
        return 0
    asked = first_asked(entries)
    found = [asked[client] for client in forget.client_set if client in asked]
    if federated is not None and (forget.classes or forget.samples):
        found += islice(_held(federated, forget, asked), 1)
    if not _draws_alike(folder.config):
        found.append(1)
    return min(found, default=None)


def _unknown(folder: RunFolder, entries: Sequence[Entry], forget: ForgetConfig) -> bool:
    """Whether more touched the model than the ledger tells, or other clients could have.

    A device may hold the training on fewer samples that it was refused with on all.
    """
    first = entries[0]
    elsewhere = first.get("parent", {}).get("spliced") or folder.config.strategy.get("parent")
    refused = any(row.get("clients_refused") for row in folder.metrics())
    return bool(first["begins"] or elsewhere or (refused and (forget.classes or forget.samples)))


def first_asked(entries: Sequence[Entry]) -> dict[int, int]:
    """Return the first round in which each client was asked, in the order of rounds."""
    found: dict[int, int] = {}
    for entry in entries[1:]:
        for client in (*entry["asked"], *entry["counted"]):
            found.setdefault(client, entry["round"])
    return found


def _held(federated: FederatedData, forget: ForgetConfig, asked: dict[int, int]) -> Iterator[int]:
    """Yield the first round of each client that trains on what is forgotten, the earliest first.

    The server's own samples come before any round.
    """
    classes, samples = sorted(forget.class_set), sorted(forget.sample_set)
    if classes and np.isin(federated.public.y, classes).any():
        yield 0
    for client, number in asked.items():
        rows = trained_positions(federated, client)
        of_class = np.isin(federated.train.y[rows], classes)
        if (of_class | np.isin(ids_at(federated, rows), samples)).any():
            yield number


def _draws_alike(config: Config) -> bool:
    """Whether rounds ask the same clients whoever else is registered, as strategies of ours do."""
    cls = registry.load("strategies", config.strategy["name"])
    return isinstance(cls, type) and issubclass(cls, SparseStrategy)


def back(folder: RunFolder, config: Config, kind: str, first: int) -> int | None:
    """Return the checkpoint from which a rerun without a target can begin; None for the start.

    That is the newest whole one before round `first`, which the target touched first. None without
    a class, which nearly every client holds; where other makers' strategies keep numbers of nodes,
    or devices are given a share of the model by how many samples they hold; and where clients kept
    what an engine does not give back.
    """
    sized = kind == "samples" and config.fleet.profile is not None
    if kind == "class" or sized or not _draws_alike(config):
        return None
    keeps = bool(registry.load("strategies", config.strategy["name"]).program)
    lost = keeps and folder.config.engine.name == "flower"
    for number in reversed([saved for saved in folder.checkpoints() if saved < first]):
        try:
            tree = folder.checkpoint(number)
        except RunFolderError:
            continue
        if number == 0 or tree["clients"] or not lost:
            return number
    return None


def deletion(folder: RunFolder, kind: str, first: int | None) -> Json:
    """Return what it takes to delete a target exactly that touched round `first` first.

    `rewind_to` is the checkpoint to go on from, None to start again; `repeat` counts rounds.
    """
    begin = None if first is None else back(folder, folder.config, kind, first)
    last = folder.config.run.rounds
    repeat = 0 if first is None else last - (begin or 0)
    return {"first_influence": first, "rewind_to": begin, "repeat": repeat}
