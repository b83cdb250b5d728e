"""What a run's loop writes into its ledger: who was asked in a round, whose replies counted.

A client's samples enter when it first counts, as the Merkle root over their ids: they stay the
same for the whole run. It is worked out while clients are at work, and nothing is done for those
that are never asked.
"""

import hashlib
from collections.abc import Iterable, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from weakref import WeakKeyDictionary

import numpy as np
import safetensors.numpy

from fedsparse.data import FederatedData
from fedsparse.data.samples import Indices
from fedsparse.runs import RunFolder, merkle
from fedsparse.runs.ledger import Entry, Ledger
from fedsparse.sparsity import Mask, State
from strategies.addressing import Traffic
from strategies.task import Task

Samples = list[str | int]
"""The Merkle root of a client's samples, and how many these are."""


class LedgerWriter:
    """Writes the entries of a run."""

    def __init__(self, task: Task, folder: RunFolder) -> None:
        self.task = task
        self.folder = folder
        self.ledger = Ledger(folder.path)
        self.told: set[int] = set()
        """Clients whose samples are in the ledger."""
        self.elsewhere: Mapping[int, int] = {}
        """Samples that clients' nodes say they have of their own; the server knows no ids."""
        self._key = b""
        self._hand: ThreadPoolExecutor | None = None
        self._coming: Future[dict[int, Samples]] | None = None
        self._known: dict[int, Samples] = {}
        """Samples of clients that were asked and have not counted yet."""
        self._masks: WeakKeyDictionary[Mask, str] = WeakKeyDictionary()

    def go_on(self, kept: list[Entry], number: int) -> None:
        """Go on after round `number` with the entries of `Ledger.until`, or begin."""
        seed = self.task.config.run.seed
        if kept and number >= 0:
            self._key = self.ledger.key(seed, kept)
            self.ledger.go_on(kept)
            self.told = {int(client) for entry in kept[1:] for client in entry["samples"]}
        else:
            self._key = self.ledger.key(seed)
            self.ledger.begin(self.folder.config, begins=number + 1)

    def write(
        self,
        number: int,
        asked: Iterable[int],
        counted: Iterable[int],
        masks: tuple[Mask | None, Mask | None],
        state: State,
        traffic: Traffic | None = None,
    ) -> None:
        """Write what happened in a round: `masks` before and after, and the model after it.

        `traffic` goes in where the round has no rows of clients.
        """
        replied = sorted(set(counted))
        entry: Entry = {
            "entry": "round",
            "round": number,
            "asked": sorted(set(asked)),
            "counted": replied,
            "samples": self.samples(replied),
            "mask_before": self.mask_hash(masks[0]),
            "mask": self.mask_hash(masks[1]),
            "model": model_hash(state),
        }
        if traffic is not None:
            clients = sorted(traffic.down.keys() | traffic.up.keys())
            entry["bytes"] = {
                str(client): [traffic.up.get(client, 0), traffic.down.get(client, 0)]
                for client in clients
            }
        self.ledger.append(entry)

    def expect(self, asked: Iterable[int]) -> None:
        """Begin to work out the samples of clients that may count in this round."""
        self._settle()
        new = [k for k in asked if k not in self.told and k not in self._known]
        if new:
            self._hand = self._hand or ThreadPoolExecutor(1, "ledger")
            self._coming = self._hand.submit(self._samples_of, new)

    def samples(self, clients: Iterable[int]) -> dict[str, Samples]:
        """Return root and number of the samples of each client that is new in the ledger."""
        self._settle()
        new = [client for client in clients if client not in self.told]
        self._known |= self._samples_of([k for k in new if k not in self._known])
        self.told.update(new)
        return {str(client): self._known.pop(client) for client in new}

    def _settle(self) -> None:
        coming, self._coming = self._coming, None
        if coming is not None:
            self._known |= coming.result()

    def _samples_of(self, clients: Iterable[int]) -> dict[int, Samples]:
        found: dict[int, Samples] = {}
        for client in clients:
            if client in self.elsewhere:
                found[client] = [merkle.root([]).hex(), self.elsewhere[client]]
                continue
            ids = trained_ids(self.task.data, client)
            found[client] = [merkle.root(merkle.leaves(self._key, client, ids)).hex(), len(ids)]
        return found

    def mask_hash(self, mask: Mask | None) -> str | None:
        """Return the SHA-256 of a mask's file; None where there is no mask for all clients."""
        if mask is None:
            return None
        if mask not in self._masks:
            self._masks[mask] = hashlib.sha256(mask.to_bytes()).hexdigest()
        return self._masks[mask]


def model_hash(state: State) -> str:
    """Return the SHA-256 that a model's file would have."""
    whole = {n: v if v.flags.c_contiguous else v.copy(order="C") for n, v in state.items()}
    return hashlib.sha256(safetensors.numpy.save(whole)).hexdigest()


def trained_positions(federated: FederatedData, client: int) -> Indices:
    """Return the rows of `federated.train` that a client trains on, rising."""
    ids = federated.ids(client)
    rows = ids if federated.rows is None else np.searchsorted(federated.rows, ids)
    return rows[~federated.is_forgotten(rows)] if federated.forget.kind else rows


def trained_ids(federated: FederatedData, client: int) -> Indices:
    """Return the ids of the samples that a client trains on, rising."""
    if not federated.forget.kind:
        return federated.ids(client)
    return federated.ids(client)[~federated.gone(client)]


def ids_at(federated: FederatedData, rows: Indices) -> Indices:
    """Return the ids of the samples at some rows of `federated.train`."""
    return rows if federated.rows is None else federated.rows[rows]
