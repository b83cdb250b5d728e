"""Ray workers: persistent actors that hold data and models and answer batches of messages.

A round's messages reach each worker as one batch, and each distinct model is put into
Ray's object store once. A dead worker is replaced; the clients that it had not answered
are retried once, each in a call of its own, so that one that kills its worker takes only
itself down.
"""

import logging
import os
import sys
import time
from collections import deque
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

# Ray prints the death of a worker to the driver's stdout, log_to_driver or not; what is
# to be said of it is in the client's reply. Ray reads this when it is imported.
os.environ.setdefault(
    "RAY_DEDUP_LOGS_SKIP_REGEX",
    r"^(A worker died or was killed|WARNING: \d+ PYTHON worker)|killed due to memory pressure",
)

import ray
from flwr.app import ArrayRecord, Metadata
from ray.exceptions import RayError, RayTaskError

from fedsparse.errors import GridError
from simulations import capacity
from simulations import flower_internals as internals
from simulations.grid import Task, TaskResult, failure, perform


@dataclass(frozen=True)
class _Parcel:
    """A task as it goes to a worker: models by number, everything else as it is."""

    client: int
    clients: int
    metadata: Metadata
    models: dict[str, int]
    records: dict[str, Any]
    state: dict[str, Any] | None
    run_config: dict[str, Any]


@dataclass
class _Call:
    """A batch at work: whose actor has it, and what it has not answered yet."""

    number: int
    waiting: deque[_Parcel]


Losses = list[tuple[_Parcel, RayError]]


class _Worker:
    """Lives in a process of its own; answers a batch one client after another."""

    def __init__(self, client_app: str) -> None:
        self.app = internals.load_app(client_app)
        if "torch" in sys.modules:
            sys.modules["torch"].set_num_threads(1)

    def answer(self, parcels: list[_Parcel], models: dict[int, Any]) -> Iterator[TaskResult]:
        """Yield each client's result; every model is fetched from the store once."""
        fetched: list[ArrayRecord] = ray.get(list(models.values()))
        held = dict(zip(models, fetched, strict=True))
        for parcel in parcels:
            arrays = {name: held[number] for name, number in parcel.models.items()}
            message = internals.message_of(parcel.metadata, {**parcel.records, **arrays})
            task = Task(parcel.client, parcel.clients, message, parcel.state, parcel.run_config)
            yield perform(self.app, task)


class RayExecutor:
    """Carries tasks to `workers` Ray actors, on this machine or on the cluster at `address`.

    Raises GridError when the ClientApp cannot be imported, or Ray cannot be started, does not
    answer or has fewer CPUs than `workers`; ConfigError when this machine has no room for so
    many. A client that is at work when the time limit comes is stopped
    with its worker.
    """

    def __init__(self, client_app: str, *, workers: int, address: str | None = None) -> None:
        if workers < 1:
            raise GridError(f"engine.workers = {workers}: at least one worker is needed")
        internals.load_app(client_app)
        self.client_app = client_app
        self.started = not ray.is_initialized()
        if self.started:
            _start_ray(workers, address)
        _check_cpus(workers)
        self.actors = [self._new_actor() for _ in range(workers)]

    def _new_actor(self) -> Any:
        paths = os.pathsep.join(path or os.getcwd() for path in sys.path)
        variables = {"OMP_NUM_THREADS": "1", "PYTHONPATH": paths}
        options = {"num_cpus": 1, "max_restarts": 0, "runtime_env": {"env_vars": variables}}
        return ray.remote(_Worker).options(**options).remote(self.client_app)

    def run(self, tasks: Sequence[Task], timeout: float | None) -> Iterator[TaskResult]:
        """Yield results as they come; lost clients are retried once, then reported."""
        end = None if timeout is None else time.monotonic() + timeout
        parcels, models = _pack(tasks)
        lost: Losses = []
        yield from self._carry(_chunks(parcels, len(self.actors)), models, end, lost)
        lost_again: Losses = []
        yield from self._carry([[parcel] for parcel, _ in lost], models, end, lost_again)
        by_client = {task.client: task for task in tasks}
        for parcel, error in lost_again:
            yield _report(by_client[parcel.client], error)

    def _carry(
        self, batches: Sequence[list[_Parcel]], models: list[Any], end: float | None, lost: Losses
    ) -> Iterator[TaskResult]:
        """Yield what workers answer, a batch at a time each; what a dead one left is `lost`."""
        batches = deque(batches)
        idle = deque(range(len(self.actors)))
        calls: dict[Any, _Call] = {}
        while batches or calls:
            while batches and idle:
                batch, number = batches.popleft(), idle.popleft()
                answer = self.actors[number].answer.options(num_returns="streaming")
                call = _Call(number, deque(batch))
                calls[answer.remote(batch, _named(batch, models))] = call
            ready, _ = ray.wait(list(calls), num_returns=1, timeout=_left(end))
            if not ready:
                for call in calls.values():
                    self._replace(call.number)
                return
            stream: Any = ready[0]
            call = calls[stream]
            try:
                result: TaskResult = ray.get(next(stream))
                call.waiting.popleft()
                yield result
            except StopIteration:
                del calls[stream]
                idle.append(call.number)
            except RayError as error:
                del calls[stream]
                lost += [(parcel, error) for parcel in call.waiting]
                if not isinstance(error, RayTaskError):
                    self._replace(call.number)
                idle.append(call.number)

    def _replace(self, number: int) -> None:
        """Put a new actor in a dead or late one's place."""
        ray.kill(self.actors[number])
        self.actors[number] = self._new_actor()

    def close(self) -> None:
        """Stop the actors, and Ray if it was started here."""
        if ray.is_initialized():
            for actor in self.actors:
                ray.kill(actor)
            if self.started:
                ray.shutdown()
        self.actors = []


def _left(end: float | None) -> float | None:
    return None if end is None else max(0.0, end - time.monotonic())


def _chunks(parcels: list[_Parcel], workers: int) -> list[list[_Parcel]]:
    """Deal clients out in their order, as evenly as can be; empty batches are left out."""
    size, over = divmod(len(parcels), workers)
    ends = [number * size + min(number, over) for number in range(workers + 1)]
    chunks = [parcels[a:b] for a, b in pairwise(ends)]
    return [chunk for chunk in chunks if chunk]


def _named(batch: Sequence[_Parcel], models: Sequence[Any]) -> dict[int, Any]:
    """Return the models that a batch names, by number: its worker fetches no others."""
    numbers = {number for parcel in batch for number in parcel.models.values()}
    return {number: models[number] for number in sorted(numbers)}


def _report(task: Task, error: RayError) -> TaskResult:
    """Return the error reply of a client that was lost twice."""
    if isinstance(error, RayTaskError):
        reason = f"the reply of client {task.client} cannot be sent: {error.cause}"
        return failure(task, internals.RAISED, reason)
    reason = f"client {task.client} lost its worker twice; see its memory and its code"
    return failure(task, internals.CRASHED, reason)


def _start_ray(workers: int, address: str | None) -> None:
    """Start Ray here, quietly, or join the cluster at `address`."""
    if address is None:
        capacity.check_workers(workers)
    else:
        capacity.check_address(address)
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    quiet: dict[str, Any] = {"log_to_driver": False, "logging_level": logging.ERROR}
    try:
        if address is not None:
            ray.init(address=address, **quiet)
        else:
            # "local": never join a cluster that RAY_ADDRESS or an earlier `ray start` names.
            ray.init(address="local", num_cpus=workers, include_dashboard=False, **quiet)
    except (ConnectionError, RuntimeError, ValueError, OSError) as error:
        where = f"at '{address}'" if address else "on this machine"
        raise GridError(f"Ray cannot be started {where}: {error}") from error


def _check_cpus(workers: int) -> None:
    """Refuse workers that would wait for ever for a CPU."""
    cpus = int(ray.cluster_resources().get("CPU", 0))  # type: ignore[no-untyped-call]
    if cpus < workers:
        raise GridError(f"engine.workers = {workers}, but Ray has {cpus} CPUs; lower it")


def _pack(tasks: Sequence[Task]) -> tuple[list[_Parcel], list[Any]]:
    """Take the models out of the messages and put each distinct one into the store once."""
    numbers: dict[int, int] = {}
    stored: list[Any] = []
    parcels = []
    for task in tasks:
        models: dict[str, int] = {}
        records: dict[str, Any] = {}
        for name, record in task.message.content.items():
            if not isinstance(record, ArrayRecord):
                records[name] = record
                continue
            if id(record) not in numbers:
                numbers[id(record)] = len(stored)
                stored.append(ray.put(record))
            models[name] = numbers[id(record)]
        parcels.append(
            _Parcel(
                task.client,
                task.clients,
                task.message.metadata,
                models,
                records,
                task.state,
                dict(task.run_config),
            )
        )
    return parcels, stored
