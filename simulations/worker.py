"""What runs in a Ray worker: it answers batches of messages and reports what is done.

A worker fetches a model once a round, and adds replies up where the server says how to read
them.
"""

import sys
import time
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor, wait
from threading import Lock
from typing import Any

import ray

from simulations import flower_internals as internals
from simulations import garbage, heap
from simulations.adding import Adder
from simulations.chunks import Chunk
from simulations.cohorts import answer_all, train_together
from simulations.parcels import Flat, Letter, Parcel, unflat
from simulations.state_cache import StateCache
from simulations.tasks import Part, TaskResult, answer
from strategies.replies import Reader

MEMORY_ERRORS = ("MemoryError", "DefaultCPUAllocator: can't allocate memory")
"""How the reason of an error reply tells that memory ran out: Python's way, and torch's."""


REPORT_SECONDS = 0.1
"""How often a worker reports what it has done."""

SUM_CLIENTS, SUM_LEAST_SECONDS, SUM_SECONDS = 16, 0.5, 30.0
"""Clients in a sum that is worth sending before its batch is done, what it waits for more of them,
and when it is sent anyway: it is as long with one client as with a thousand."""


class Desk:
    """What a worker has done and not yet reported; one thread works, another reports."""

    def __init__(self, reader: Reader | None) -> None:
        self._lock = Lock()
        self._adder = None if reader is None else Adder(reader, at_once=False)
        self._results: list[TaskResult] = []
        self._digests: dict[int, bytes] = {}
        self._missing: list[int] = []
        self._began = time.perf_counter()

    def done(self, result: TaskResult, digest: bytes | None) -> None:
        """Put down a client's result, and the digest of its state if that is kept."""
        with self._lock:
            if digest is not None:
                self._digests[result.client] = digest
            if self._adder is None:
                self._results.append(result)
            else:
                self._adder.take(result)

    def miss(self, client: int) -> None:
        """Put down that a client's state is not here."""
        with self._lock:
            self._missing.append(client)

    def clear(self, last: bool) -> Chunk | None:
        """Return what was put down since the last time, None for nothing.

        A sum waits for more clients unless it is the batch's `last`.
        """
        with self._lock:
            missing, self._missing = self._missing, []
            if not (last or self._worth_sending()):
                return Chunk([], {}, missing, 0.0) if missing else None
            results = self._results if self._adder is None else self._adder.finish()
            digests, self._results, self._digests = self._digests, [], {}
            began, self._began = self._began, time.perf_counter()
            if not results and not missing:
                return None
            return Chunk(results, digests, missing, self._began - began)

    def _worth_sending(self) -> bool:
        if self._adder is None:
            return True
        waited = time.perf_counter() - self._began
        least = SUM_LEAST_SECONDS if self._adder.waiting >= SUM_CLIENTS else SUM_SECONDS
        return waited > least


class Worker:
    """Lives in a process of its own; answers a batch one client after another."""

    def __init__(self, client_app: str, cache_bytes: int) -> None:
        heap.keep_freed()
        self.app = internals.load_app(client_app)
        self.states = StateCache(cache_bytes)
        self.held: dict[str, Any] = {}
        self.hands = ThreadPoolExecutor(max_workers=1)
        """Works while this thread reports, so that no result waits for a slow client's."""
        if "torch" in sys.modules:
            sys.modules["torch"].set_num_threads(1)
        garbage.leave_out_what_is_there()

    def ready(self) -> None:
        """Return when the worker has started."""

    def answer(
        self,
        parcels: list[Flat],
        letters: dict[int, Letter],
        models: dict[int, Any],
        reader: list[Any],
    ) -> Iterator[Chunk]:
        """Yield what is done, now and then, until all is.

        Of `reader` there is one or none. What the last batch named, too, is not fetched again.
        """
        fetched = self._fetch([*models.values(), *reader])
        held = dict(zip(models, fetched, strict=False))
        desk = Desk(fetched[-1] if reader else None)
        contents = {number: letter.contents(held) for number, letter in letters.items()}
        work = self.hands.submit(self._work, unflat(parcels), letters, contents, desk)
        working = True
        while working:
            _, unfinished = wait([work], REPORT_SECONDS)
            working = bool(unfinished)
            if (chunk := desk.clear(last=not working)) is not None:
                yield chunk
        work.result()

    def _fetch(self, refs: list[Any]) -> list[Any]:
        """Return what references stand for, and hold it until the next batch."""
        missing = [ref for ref in refs if ref.hex() not in self.held]
        new = dict(zip([ref.hex() for ref in missing], ray.get(missing), strict=True))
        known = self.held | new
        self.held = {ref.hex(): known[ref.hex()] for ref in refs}
        return [known[ref.hex()] for ref in refs]

    def _work(
        self,
        parcels: Iterable[Parcel],
        letters: dict[int, Letter],
        contents: dict[int, dict[str, Any]],
        desk: Desk,
    ) -> None:
        together: dict[int, bool] = {}
        cohort: list[Part] = []
        for parcel in parcels:
            state = parcel.state
            if parcel.digest is not None:
                state = self.states.get(parcel.client, parcel.digest)
                if state is None:
                    desk.miss(parcel.client)
                    continue
            letter, records = letters[parcel.letter], contents[parcel.letter]
            part = Part(
                parcel.client,
                letter.clients,
                internals.addressed(letter.metadata, parcel.address),
                records,
                state,
                letter.run_config,
            )
            if parcel.letter not in together:
                kind = letter.metadata.message_type
                together[parcel.letter] = train_together(self.app, kind, records)
            if together[parcel.letter]:
                cohort.append(part)
            else:
                self._report(answer(self.app, part), desk)
        for result in answer_all(cohort):
            self._report(result, desk)

    def _report(self, result: TaskResult, desk: Desk) -> None:
        if result.reply.has_error() and _names_memory(result.reply.error.reason):
            raise MemoryError(result.reply.error.reason)
        desk.done(result, self.states.keep(result.client, result.state))


def _names_memory(reason: str | None) -> bool:
    return any(words in (reason or "") for words in MEMORY_ERRORS)
