"""Ray workers: persistent actors that hold data and models and answer batches of messages.

A round's messages reach each worker as one batch, and each distinct model is put into
Ray's object store once. A dead worker is replaced; the clients that it had not answered
are retried once, each alone on a fresh worker, so that one that kills its worker takes
only itself down.
"""

import logging
import os
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import ray
from flwr.app import ArrayRecord, Metadata

from fedsparse.errors import GridError
from simulations import flower_internals as internals
from simulations.grid import Task, TaskResult, perform


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


class _Worker:
    """Lives in a process of its own; answers a batch one client after another."""

    def __init__(self, client_app: str) -> None:
        self.app = internals.load_app(client_app)

    def answer(self, parcels: list[_Parcel], models: list[Any]) -> Iterator[TaskResult]:
        """Yield each client's result; every model is fetched from the store once."""
        held: list[ArrayRecord] = ray.get(models)
        for parcel in parcels:
            arrays = {name: held[number] for name, number in parcel.models.items()}
            message = internals.message_of(parcel.metadata, {**parcel.records, **arrays})
            task = Task(parcel.client, parcel.clients, message, parcel.state, parcel.run_config)
            yield perform(self.app, task)


class RayExecutor:
    """Carries tasks to `workers` Ray actors, on this machine or on the cluster at `address`."""

    def __init__(self, client_app: str, *, workers: int, address: str | None = None) -> None:
        if workers < 1:
            raise GridError(f"engine.workers = {workers}: at least one worker is needed")
        self.client_app = client_app
        self.started = not ray.is_initialized()
        if self.started:
            _start_ray(workers, address)
        self.actors = [self._new_actor() for _ in range(workers)]

    def _new_actor(self) -> Any:
        return ray.remote(_Worker).options(num_cpus=1, max_restarts=0).remote(self.client_app)

    def run(self, tasks: Sequence[Task], timeout: float | None) -> Iterator[TaskResult]:
        """Yield results as they come; lost clients are retried once, then reported."""
        end = None if timeout is None else time.monotonic() + timeout
        by_client = {task.client: task for task in tasks}
        parcels, models = _pack(tasks)
        waiting: dict[int, list[_Parcel]] = {
            number: batch
            for number in range(len(self.actors))
            if (batch := parcels[number :: len(self.actors)])
        }
        lost: list[_Parcel] = []
        for number, result in self._collect(waiting, models, lost, end):
            waiting[number] = [p for p in waiting[number] if p.client != result.client]
            yield result
        for parcel in lost:
            yield self._retry(parcel, by_client[parcel.client], models, end)

    def _collect(
        self,
        waiting: dict[int, list[_Parcel]],
        models: list[Any],
        lost: list[_Parcel],
        end: float | None,
    ) -> Iterator[tuple[int, TaskResult]]:
        """Yield (worker, result) from all workers; a dead worker's remainder goes to `lost`."""
        streams = {
            self.actors[number].answer.options(num_returns="streaming").remote(batch, models): number
            for number, batch in waiting.items()
        }
        while streams:
            ready, _ = ray.wait(list(streams), num_returns=1, timeout=_left(end))
            if not ready:
                for number in streams.values():
                    self._replace(number)
                return
            stream = ready[0]
            number = streams[stream]
            try:
                yield number, ray.get(next(stream))
            except StopIteration:
                del streams[stream]
            except ray.exceptions.RayActorError:
                del streams[stream]
                self._replace(number)
                lost += waiting[number]

    def _retry(
        self, parcel: _Parcel, task: Task, models: list[Any], end: float | None
    ) -> TaskResult:
        """Ask one client alone, on a fresh worker."""
        actor = self._new_actor()
        try:
            stream = actor.answer.options(num_returns="streaming").remote([parcel], models)
            ray.wait([stream], num_returns=1, timeout=_left(end))
            result: TaskResult = ray.get(next(stream), timeout=_left(end))
            return result
        except (ray.exceptions.RayActorError, ray.exceptions.GetTimeoutError, StopIteration):
            reason = f"client {parcel.client} lost its worker twice; see its memory and its code"
            reply = internals.error_reply(task.message, internals.CRASHED, reason)
            return TaskResult(parcel.client, reply, parcel.state or {})
        finally:
            ray.kill(actor)

    def _replace(self, number: int) -> None:
        """Put a new actor in a dead or late one's place."""
        ray.kill(self.actors[number])
        self.actors[number] = self._new_actor()

    def close(self) -> None:
        """Stop the actors, and Ray if it was started here."""
        for actor in self.actors:
            ray.kill(actor)
        self.actors = []
        if self.started:
            ray.shutdown()


def _left(end: float | None) -> float | None:
    return None if end is None else max(0.0, end - time.monotonic())


def _start_ray(workers: int, address: str | None) -> None:
    """Start Ray here, quietly, or join the cluster at `address`."""
    paths = os.pathsep.join(path for path in sys.path if path)
    environment = {"env_vars": {"OMP_NUM_THREADS": "1", "PYTHONPATH": paths}}
    common = {"log_to_driver": False, "logging_level": logging.ERROR}
    try:
        if address is not None:
            ray.init(address=address, **common)
        else:
            ray.init(
                num_cpus=workers, include_dashboard=False, runtime_env=environment, **common
            )
    except (ConnectionError, RuntimeError, ValueError, OSError) as error:
        where = f"at '{address}'" if address else "on this machine"
        raise GridError(f"Ray cannot be started {where}: {error}") from error


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
