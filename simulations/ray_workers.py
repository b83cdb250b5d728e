"""Ray workers: persistent actors that hold data and models and answer batches of messages.

Clients go to workers by their number, so that a worker meets the same clients, and their
data and states, round after round; an idle worker takes over from the busiest. A client
that was lost with its worker or node is retried once, in a call of its own, so that one that
kills its worker takes only itself down.
"""

import math
import os
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

# Ray prints to the driver's stdout, log_to_driver or not, that a worker or a node died or that
# there is no room for one, with the tail of a log; what is to be said of it is in the client's
# reply. This skips every line of it; Ray reads it when it is imported.
os.environ.setdefault("RAY_DEDUP_LOGS_SKIP_REGEX", "^")

import ray
from ray.exceptions import RayError, RayTaskError

from fedsparse.errors import GridError
from simulations import flower_internals as internals
from simulations import garbage, heap, worker_pool
from simulations.chunks import Chunk
from simulations.parcels import Letter, Parcel, enclosed, flat, pack
from simulations.ray_session import RaySession
from simulations.state_cache import CACHE_BYTES, digest
from simulations.tasks import Task, TaskResult, failure
from simulations.work import Weigh, Work, alike
from simulations.worker import SUM_CLIENTS
from simulations.worker_pool import WorkerPool
from strategies.replies import Reader

LEAST_SECONDS, SUM_BATCH_SECONDS = 0.1, 1.0
"""Work that a batch should hold at least: handing one out costs some milliseconds. Where replies
are added up, also up to so much of it as makes a sum that is worth sending."""


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

    Ray is started unless it is there as `session`; it ends with this either way. Each worker
    keeps the states of its clients up to `cache_bytes`; `weigh` tells which clients take long.
    Raises GridError when the ClientApp cannot be imported, or Ray cannot be started, does not
    answer or has no room; ConfigError when this machine has no room for so many. A client that is
    at work when the time limit comes is stopped with its worker.
    """

    def __init__(
        self,
        client_app: str,
        *,
        workers: int,
        address: str | None = None,
        cache_bytes: int = CACHE_BYTES,
        session: RaySession | None = None,
        weigh: Weigh = alike,
    ) -> None:
        heap.keep_freed()
        internals.load_app(client_app)
        self.weigh = weigh
        self.session = session or RaySession(workers, address)
        ready_made = self.session.ready_made
        self.pool = WorkerPool(client_app, workers, cache_bytes, ready_made=ready_made)
        self._kept: dict[int, tuple[Any, bytes]] = {}
        """Which actor keeps a client's state, and the state's digest."""
        self._seconds = math.inf
        """What a unit of weight took of late."""

    def run(
        self, tasks: Sequence[Task], timeout: float | None, reader: Reader | None = None
    ) -> Iterator[TaskResult]:
        """Yield results as they come; lost clients are retried once, then reported.

        With a reader, workers add replies up where that is less to send. Raises GridError when
        no worker is left and the cluster has no room for another.
        """
        end = None if timeout is None else time.monotonic() + timeout
        with garbage.kept():
            parcels, letters, models = pack(tasks)
        stored = [] if reader is None else [ray.put(reader)]
        post = _Post({task.client: task for task in tasks}, letters, models, stored, {})
        work = Work(parcels, len(self.pool), self.weigh)
        work.least = self._least(work.mean, adds=reader is not None)
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

    def _least(self, mean: float, adds: bool) -> float:
        """Return what a batch should weigh at least, if clients weigh so much."""
        least = LEAST_SECONDS / self._seconds
        if not adds:
            return least
        return max(least, min(SUM_CLIENTS * mean, SUM_BATCH_SECONDS / self._seconds))

    def _hand_out(self, work: Work, post: _Post, calls: dict[Any, _Call]) -> None:
        """Give every idle worker a batch while there is work."""
        while work and self.pool.idle:
            number = self.pool.idle.popleft()
            batch = work.take(number)
            actor = self.pool.actors[number]
            sent = flat([self._without_state(parcel, actor, post.seen) for parcel in batch])
            named = enclosed(batch, post.letters, post.models)
            answer = actor.answer.options(num_returns="streaming")
            waiting = {parcel.client: parcel for parcel in batch}
            calls[answer.remote(sent, *named, post.reader)] = _Call(number, waiting)

    def _take(
        self, stream: Any, calls: dict[Any, _Call], work: Work, post: _Post
    ) -> Iterator[TaskResult]:
        """Yield a worker's next results, or the reports of clients that were lost again."""
        call = calls[stream]
        try:
            with garbage.kept():
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
            weight = sum(work.weight(result.client) for result in chunk.results)
            self._seconds = max(1e-9, chunk.seconds / weight)
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
            self.session.close()


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
