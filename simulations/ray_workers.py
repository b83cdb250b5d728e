"""Ray workers: persistent actors that hold data and models and answer batches of messages.

Clients go to workers by their number, so that a worker meets the same clients, and their
data and states, round after round; an idle worker takes over from the busiest. A client
that was lost with its worker or node is retried once, in a call of its own, so that one that
kills its worker takes only itself down.
"""

import logging
import os
import time
from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

# Ray prints to the driver's stdout, log_to_driver or not, that a worker or a node died or that
# there is no room for one, with the tail of a log; what is to be said of it is in the client's
# reply. This skips every line of it; Ray reads it when it is imported.
os.environ.setdefault("RAY_DEDUP_LOGS_SKIP_REGEX", "^")

import ray
from flwr.app import ArrayRecord
from ray.exceptions import RayError, RayTaskError

from fedsparse.errors import GridError
from simulations import capacity, worker_pool
from simulations import flower_internals as internals
from simulations.grid import Task, TaskResult, failure
from simulations.state_cache import CACHE_BYTES, digest
from simulations.worker_pool import Answer, Parcel, WorkerPool


@dataclass
class _Call:
    """A batch at work: whose actor has it, and what it has not answered yet."""

    number: int
    waiting: deque[Parcel]


class RayExecutor:
    """Carries tasks to `workers` Ray actors, on this machine or on the cluster at `address`.

    Each keeps the states of its clients up to `cache_bytes`. Raises GridError when the
    ClientApp cannot be imported, or Ray cannot be started, does not answer or has no room;
    ConfigError when this machine has no room for so many. A client that is at work when the
    time limit comes is stopped with its worker.
    """

    def __init__(
        self,
        client_app: str,
        *,
        workers: int,
        address: str | None = None,
        cache_bytes: int = CACHE_BYTES,
    ) -> None:
        if workers < 1:
            raise GridError(f"engine.workers = {workers}: at least one worker is needed")
        internals.load_app(client_app)
        self.started = not ray.is_initialized()
        if self.started:
            _start_ray(workers, address)
        _check_cpus(workers, least=workers if address is None else 1)
        self.pool = WorkerPool(client_app, workers, cache_bytes)
        self._kept: dict[int, tuple[Any, bytes]] = {}
        """Which actor keeps a client's state, and the state's digest."""

    def run(self, tasks: Sequence[Task], timeout: float | None) -> Iterator[TaskResult]:
        """Yield results as they come; lost clients are retried once, then reported.

        Raises GridError when no worker is left and the cluster has no room for another.
        """
        end = None if timeout is None else time.monotonic() + timeout
        parcels, models = _pack(tasks)
        by_client = {task.client: task for task in tasks}
        work = Work(parcels, len(self.pool))
        seen: dict[int, bytes] = {}
        calls: dict[Any, _Call] = {}
        try:
            while work or calls:
                self._hand_out(work, models, calls, seen)
                ready = self._next(calls, end)
                if not ready:
                    return
                for source in ready:
                    if source in self.pool.starting:
                        self.pool.started(source)
                    else:
                        yield from self._take(source, calls, work, by_client)
        finally:
            for call in calls.values():
                self.pool.replace(call.number)

    def _hand_out(
        self, work: "Work", models: list[Any], calls: dict[Any, _Call], seen: dict[int, bytes]
    ) -> None:
        """Give every idle worker a batch while there is work."""
        while work and self.pool.idle:
            number = self.pool.idle.popleft()
            batch = work.take(number)
            actor = self.pool.actors[number]
            sent = [self._without_state(parcel, actor, seen) for parcel in batch]
            answer = actor.answer.options(num_returns="streaming")
            calls[answer.remote(sent, _named(batch, models))] = _Call(number, deque(batch))

    def _take(
        self, stream: Any, calls: dict[Any, _Call], work: "Work", by_client: dict[int, Task]
    ) -> Iterator[TaskResult]:
        """Yield a worker's next result, or the reports of clients that were lost again."""
        call = calls[stream]
        try:
            answer: Answer = ray.get(next(stream))
        except StopIteration:
            del calls[stream]
            self.pool.idle.append(call.number)
            return
        except RayError as error:
            del calls[stream]
            self._mend(call.number, error)
            for parcel in work.lost(call.waiting):
                yield _report(by_client[parcel.client], error)
            return
        parcel = call.waiting.popleft()
        if answer.result is None:
            self._kept.pop(parcel.client, None)
            work.again(parcel)
            return
        self._note(parcel.client, call.number, answer)
        yield answer.result

    def _without_state(self, parcel: Parcel, actor: Any, seen: dict[int, bytes]) -> Parcel:
        """Put the digest in the state's place where the worker should hold that state."""
        keeper, name = self._kept.get(parcel.client, (None, b""))
        if keeper is not actor or parcel.state is None or digest(parcel.state, seen) != name:
            return parcel
        return replace(parcel, state=None, digest=name)

    def _note(self, client: int, number: int, answer: Answer) -> None:
        """Remember who keeps a client's state now."""
        self._kept.pop(client, None)
        if answer.digest is not None:
            self._kept[client] = self.pool.actors[number], answer.digest

    def _next(self, calls: dict[Any, _Call], end: float | None) -> list[Any]:
        """Return the answers and the started workers that are there; wait for a first.

        All at once, as asking Ray takes as long as there are calls; none: the time is over.
        """
        left = None if end is None else max(0.0, end - time.monotonic())
        room = worker_pool.ROOM_SECONDS
        stuck = not calls and (left is None or left > room)
        waited = [*calls, *self.pool.starting]
        if not waited:
            raise GridError(f"no worker can be started: {self.pool.reason}")
        ready, _ = ray.wait(waited, num_returns=1, timeout=room if stuck else left)
        if stuck and not ready:
            raise GridError(
                f"no worker is left, and the cluster had no room for one within {room:g} s; "
                "add nodes with `ray start --address`, then go on with `fedsparse resume`"
            )
        return ray.wait(waited, num_returns=len(waited), timeout=0)[0] if ready else []

    def _mend(self, number: int, error: RayError) -> None:
        """Replace a worker that died or ran out of memory; one whose reply is bad goes on."""
        if isinstance(error, RayTaskError) and not isinstance(error.cause, MemoryError):
            self.pool.idle.append(number)
        else:
            self.pool.replace(number)

    def close(self) -> None:
        """Stop the actors, and Ray if it was started here."""
        if ray.is_initialized():
            self.pool.close()
            if self.started:
                ray.shutdown()


class Work:
    """What is still to be handed out: a queue for each worker, and what is asked for again.

    A worker takes half of what is left in its queue, so that the others can take over the
    rest; one whose queue is empty takes half of the longest, from the end.
    """

    def __init__(self, parcels: Sequence[Parcel], workers: int) -> None:
        self._queues: list[deque[Parcel]] = [deque() for _ in range(workers)]
        for parcel in parcels:
            self._queues[parcel.client % workers].append(parcel)
        self._alone: deque[Parcel] = deque()
        self._lost: set[int] = set()

    def __bool__(self) -> bool:
        return bool(self._alone) or any(self._queues)

    def take(self, number: int) -> list[Parcel]:
        """Return a worker's next batch; retries come last, each alone."""
        queue = self._queues[number]
        if queue:
            return [queue.popleft() for _ in range((len(queue) + 1) // 2)]
        queue = max(self._queues, key=len)
        if queue:
            return [queue.pop() for _ in range((len(queue) + 1) // 2)][::-1]
        return [self._alone.popleft()]

    def again(self, parcel: Parcel) -> None:
        """Hand a parcel out once more: its state must be sent after all."""
        self._queues[parcel.client % len(self._queues)].append(parcel)

    def lost(self, parcels: Iterable[Parcel]) -> list[Parcel]:
        """Hand out again what a lost worker had not answered; return what was lost twice."""
        twice: list[Parcel] = []
        once: list[Parcel] = []
        for parcel in parcels:
            (twice if parcel.client in self._lost else once).append(parcel)
        self._lost |= {parcel.client for parcel in once}
        self._alone.extend(once)
        return twice


def _named(batch: Sequence[Parcel], models: Sequence[Any]) -> dict[int, Any]:
    """Return the models that a batch names, by number: its worker fetches no others."""
    numbers = {number for parcel in batch for number in parcel.models.values()}
    return {number: models[number] for number in sorted(numbers)}


def _report(task: Task, error: RayError) -> TaskResult:
    """Return the error reply of a client that was lost twice."""
    client = f"client {task.client}"
    if not isinstance(error, RayTaskError):
        reason = f"{client} lost its worker twice; see its memory and its code"
        return failure(task, internals.CRASHED, reason)
    if isinstance(error.cause, MemoryError):
        return failure(task, internals.RAISED, f"{client} ran out of memory twice: {error.cause}")
    if isinstance(error.cause, RayError):
        reason = f"{client} twice could not fetch its model: {error.cause}"
        return failure(task, internals.CRASHED, reason)
    reason = f"the reply of {client} cannot be sent: {error.cause}"
    return failure(task, internals.RAISED, reason)


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


def _check_cpus(workers: int, least: int) -> None:
    """Refuse workers that would wait for ever; a cluster may have lost nodes, or gain some."""
    cpus = int(ray.cluster_resources().get("CPU", 0))  # type: ignore[no-untyped-call]
    if cpus < least:
        raise GridError(f"engine.workers = {workers}, but Ray has {cpus} CPUs; lower it")


def _pack(tasks: Sequence[Task]) -> tuple[list[Parcel], list[Any]]:
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
            Parcel(
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
