"""The Ray actors of a run, each in a place of its own, and what becomes of lost ones.

A place whose actor died is given a new one. Ray starts that when a node of the cluster has
room; until it reports, its place gets no work. So a place on a lost node is given up while
there is no room, and taken up again when there is.
"""

from collections import deque
from typing import Any

import ray
from ray.exceptions import RayError

from simulations.ray_session import environment
from simulations.worker import Worker

ROOM_SECONDS = 120.0
"""How long a run waits for its first or its next worker when it has none at work."""

STARTS = 5
"""How often in a row a place's worker may fail to start before the place is given up."""


class WorkerPool:
    """`places` workers, of which those in `idle` have nothing to do.

    With `ready_made`, Ray's processes have the workers' environment from the start: those that
    it keeps ready can be used, else each is started anew once Ray has made its environment.
    """

    def __init__(
        self, client_app: str, places: int, cache_bytes: int, *, ready_made: bool = False
    ) -> None:
        self.client_app = client_app
        self._options: dict[str, Any] = {"num_cpus": 1, "max_restarts": 0}
        if not ready_made:
            self._options["runtime_env"] = {"env_vars": environment()}
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
        make: Any = ray.remote(Worker).options(**self._options)
        actor: Any = make.remote(self.client_app, self.cache_bytes)
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
