"""The Ray actors of a run, each in a place of its own, and what becomes of lost ones.

A place whose actor died is given a new one. Ray starts that when a node of the cluster has
room; until it reports, its place gets no work. So a place on a lost node is given up while
there is no room, and taken up again when there is.
"""

import os
import sys
from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import ray
from flwr.app import ArrayRecord, Metadata
from ray.exceptions import RayError

from simulations import flower_internals as internals
from simulations.grid import Task, TaskResult, perform
from simulations.state_cache import StateCache

ROOM_SECONDS = 120.0
"""How long a run waits for its first or its next worker when it has none at work."""

STARTS = 5
"""How often in a row a place's worker may fail to start before the place is given up."""

MEMORY_ERRORS = ("MemoryError", "DefaultCPUAllocator: can't allocate memory")
"""How the reason of an error reply tells that memory ran out: Python's way, and torch's."""


@dataclass(frozen=True)
class Parcel:
    """A task as it goes to a worker: models by number, everything else as it is.

    With a `digest` the state is left out, and taken from what the worker keeps.
    """

    client: int
    clients: int
    metadata: Metadata
    models: dict[str, int]
    records: dict[str, Any]
    state: dict[str, Any] | None
    run_config: dict[str, Any]
    digest: bytes | None = None


@dataclass(frozen=True)
class Answer:
    """A client's result, and the digest of its state if the worker keeps that.

    No result: the worker does not hold the state that the parcel's digest stands for.
    """

    result: TaskResult | None
    digest: bytes | None = None


class Worker:
    """Lives in a process of its own; answers a batch one client after another."""

    def __init__(self, client_app: str, cache_bytes: int) -> None:
        self.app = internals.load_app(client_app)
        self.states = StateCache(cache_bytes)
        self.models: dict[str, ArrayRecord] = {}
        if "torch" in sys.modules:
            sys.modules["torch"].set_num_threads(1)

    def ready(self) -> None:
        """Return when the worker has started."""

    def answer(self, parcels: list[Parcel], models: dict[int, Any]) -> Iterator[Answer]:
        """Yield each client's answer; a model that the last batch named is not fetched again."""
        names = {number: ref.hex() for number, ref in models.items()}
        missing = [number for number, name in names.items() if name not in self.models]
        fetched = ray.get([models[number] for number in missing])
        held = self.models | dict(zip([names[n] for n in missing], fetched, strict=True))
        self.models = {name: held[name] for name in names.values()}
        for parcel in parcels:
            yield self._answer(parcel, {n: held[name] for n, name in names.items()})

    def _answer(self, parcel: Parcel, models: dict[int, ArrayRecord]) -> Answer:
        state = parcel.state
        if parcel.digest is not None:
            state = self.states.get(parcel.client, parcel.digest)
            if state is None:
                return Answer(None)
        arrays = {name: models[number] for name, number in parcel.models.items()}
        message = internals.message_of(parcel.metadata, {**parcel.records, **arrays})
        task = Task(parcel.client, parcel.clients, message, state, parcel.run_config)
        result = perform(self.app, task)
        if result.reply.has_error() and _names_memory(result.reply.error.reason):
            raise MemoryError(result.reply.error.reason)
        return Answer(result, self.states.keep(parcel.client, result.state))


def _names_memory(reason: str | None) -> bool:
    return any(words in (reason or "") for words in MEMORY_ERRORS)


class WorkerPool:
    """`places` workers, of which those in `idle` have nothing to do."""

    def __init__(self, client_app: str, places: int, cache_bytes: int) -> None:
        self.client_app = client_app
        self.cache_bytes = cache_bytes
        self.actors: list[Any] = [None] * places
        self.idle: deque[int] = deque()
        self.starting: dict[Any, int] = {}
        """What a worker that has started reports, to its place's number."""
        self.reason = ""
        """Why a worker could not be started, the last time that one could not."""
        self._failed = [0] * places
        for number in range(places):
            self._start(number)

    def __len__(self) -> int:
        return len(self.actors)

    def _start(self, number: int) -> None:
        paths = os.pathsep.join(path or os.getcwd() for path in sys.path)
        variables = {"OMP_NUM_THREADS": "1", "PYTHONPATH": paths}
        options = {"num_cpus": 1, "max_restarts": 0, "runtime_env": {"env_vars": variables}}
        actor: Any = ray.remote(Worker).options(**options).remote(self.client_app, self.cache_bytes)
        self.actors[number] = actor
        self.starting[actor.ready.remote()] = number

    def started(self, report: Any) -> None:
        """Take up the place whose worker has reported; a worker that died is started again."""
        number = self.starting.pop(report)
        try:
            ray.get(report)
        except RayError as error:
            self._failed[number] += 1
            self.reason = str(error).strip().splitlines()[-1]
            if self._failed[number] < STARTS:
                self._start(number)
            return
        self._failed[number] = 0
        self.idle.append(number)

    def replace(self, number: int) -> None:
        """Start a worker in a dead or late one's place."""
        ray.kill(self.actors[number])
        self._start(number)

    def close(self) -> None:
        """Stop every worker."""
        for actor in self.actors:
            ray.kill(actor)
        self.actors, self.starting = [], {}
        self.idle.clear()
