"""Ray workers: persistent actors that hold data and models and answer batches of messages.

Clients go to workers by their number, so that a worker meets the same clients, and their
data and states, round after round; an idle worker takes over from the busiest. A client
that was lost with its worker or node is retried once, in a call of its own, so that one that
kills its worker takes only itself down.
"""

import logging
import math
import os
import time
from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

# Ray prints to the driver's stdout, log_to_driver or not, that a worker or a node died or that
# there is no room for one, with the tail of a log; what is to be said of it is in the client's
# reply. This skips every line of it; Ray reads it when it is imported.
os.environ.setdefault("RAY_DEDUP_LOGS_SKIP_REGEX", "^")

import ray
from ray.exceptions import RayError, RayTaskError

from fedsparse.errors import GridError
from simulations import capacity, heap, worker_pool
from simulations import flower_internals as internals
from simulations.parcels import Chunk, Letter, Parcel, enclosed, pack
from simulations.state_cache import CACHE_BYTES, digest
from simulations.tasks import Task, TaskResult, failure
from simulations.worker_pool import WorkerPool
from strategies.replies import Reader

LEAST_SECONDS = 0.1
"""Work that a batch should hold at least: handing one out costs some milliseconds."""


@dataclass
class _Call:
    """A batch at work: whose actor has it, and what it has not answered yet, by client."""

    number: int
    waiting: dict[int, Parcel]


@dataclass
class _Post:
    """What is to be carried in a round: parcels' letters, models and reader, and to whom."""

    tasks: dict[int, Task]
    letters: list[Letter]
    models: list[Any]
    reader: list[Any]
    seen: dict[int, bytes]
    """Digests of states, by identity."""


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
        heap.keep_freed()
        internals.load_app(client_app)
        self.started = not ray.is_initialized()
        if self.started:
            _start_ray(workers, address)
        _check_cpus(workers, least=workers if address is None else 1)
        ours = self.started and address is None
        self.pool = WorkerPool(client_app, workers, cache_bytes, ready_made=ours)
        self._kept: dict[int, tuple[Any, bytes]] = {}
        """Which actor keeps a client's state, and the state's digest."""
        self._seconds = math.inf
        """What a client took of late."""

    def run(
        self, tasks: Sequence[Task], timeout: float | None, reader: Reader | None = None
    ) -> Iterator[TaskResult]:
        """Yield results as they come; lost clients are retried once, then reported.

        With a reader, workers add replies up where that is less to send. Raises GridError when
        no worker is left and the cluster has no room for another.
        """
        end = None if timeout is None else time.monotonic() + timeout
        parcels, letters, models = pack(tasks)
        stored = [] if reader is None else [ray.put(reader)]
        post = _Post({task.client: task for task in tasks}, letters, models, stored, {})
        work = Work(parcels, len(self.pool), math.ceil(LEAST_SECONDS / self._seconds))
        calls: dict[Any, _Call] = {}
        try:
            while work or calls:
                self._hand_out(work, post, calls)
                ready = self._next(calls, end)
                if not ready:
                    return
                for source in ready:
                    if source in self.pool.starting:
                        self.pool.started(source)
                    else:
                        yield from self._take(source, calls, work, post)
        finally:
            for call in calls.values():
                self.pool.replace(call.number)

    def _hand_out(self, work: "Work", post: _Post, calls: dict[Any, _Call]) -> None:
        """Give every idle worker a batch while there is work."""
        while work and self.pool.idle:
            number = self.pool.idle.popleft()
            batch = work.take(number)
            actor = self.pool.actors[number]
            sent = [self._without_state(parcel, actor, post.seen) for parcel in batch]
            named = enclosed(batch, post.letters, post.models)
            answer = actor.answer.options(num_returns="streaming")
            waiting = {parcel.client: parcel for parcel in batch}
            calls[answer.remote(sent, *named, post.reader)] = _Call(number, waiting)

    def _take(
        self, stream: Any, calls: dict[Any, _Call], work: "Work", post: _Post
    ) -> Iterator[TaskResult]:
        """Yield a worker's next results, or the reports of clients that were lost again."""
        call = calls[stream]
        try:
            chunk: Chunk = ray.get(next(stream))
        except StopIteration:
            del calls[stream]
            self.pool.idle.append(call.number)
            return
        except RayError as error:
            del calls[stream]
            self._mend(call.number, error)
            for parcel in work.lost(call.waiting.values()):
                yield _report(post.tasks[parcel.client], error)
            return
        for client in chunk.missing:
            self._kept.pop(client, None)
            work.again(call.waiting.pop(client))
        if chunk.results:
            self._seconds = max(1e-6, chunk.seconds / len(chunk.results))
        for result in chunk.results:
            del call.waiting[result.client]
            self._note(result.client, call.number, chunk.digests.get(result.client))
        yield from chunk.results

    def _without_state(self, parcel: Parcel, actor: Any, seen: dict[int, bytes]) -> Parcel:
        """Put the digest in the state's place where the worker should hold that state."""
        keeper, name = self._kept.get(parcel.client, (None, b""))
        if keeper is not actor or parcel.state is None or digest(parcel.state, seen) != name:
            return parcel
        return parcel._replace(state=None, digest=name)

    def _note(self, client: int, number: int, name: bytes | None) -> None:
        """Remember who keeps a client's state now."""
        self._kept.pop(client, None)
        if name is not None:
            self._kept[client] = self.pool.actors[number], name

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
    rest; one whose queue is empty takes half of the longest, from the end. Batches are no
    smaller than `least`.
    """

    def __init__(self, parcels: Sequence[Parcel], workers: int, least: int = 1) -> None:
        self.least = least
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
            return [queue.popleft() for _ in range(self._share(queue))]
        queue = max(self._queues, key=len)
        if queue:
            return [queue.pop() for _ in range(self._share(queue))][::-1]
        return [self._alone.popleft()]

    def _share(self, queue: deque[Parcel]) -> int:
        return min(len(queue), max(self.least, (len(queue) + 1) // 2))

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
            with _environment(worker_pool.environment()):
                ray.init(address="local", num_cpus=workers, include_dashboard=False, **quiet)
    except Exception as error:  # Ray raises it bare where a node does not start in time
        where = f"at '{address}'" if address else "on this machine"
        raise GridError(f"Ray cannot be started {where}: {error}") from error


@contextmanager
def _environment(variables: dict[str, str]) -> Iterator[None]:
    """Start processes with these variables; this one's own are put back."""
    before = {name: os.environ.get(name) for name in variables}
    os.environ.update(variables)
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                del os.environ[name]
            else:
                os.environ[name] = value


def _check_cpus(workers: int, least: int) -> None:
    """Refuse workers that would wait for ever; a cluster may have lost nodes, or gain some."""
    cpus = int(ray.cluster_resources().get("CPU", 0))  # type: ignore[no-untyped-call]
    if cpus < least:
        raise GridError(f"engine.workers = {workers}, but Ray has {cpus} CPUs; lower it")
