"""Ray as a run uses it: started on this machine for the run, joined, or found running.

It stands below the workers, and imports nothing heavy, so that Ray's processes can start while
the simulator is imported.
"""

import logging
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

# As in ray_workers: Ray reads it when it is imported.
os.environ.setdefault("RAY_DEDUP_LOGS_SKIP_REGEX", "^")

import ray

from fedsparse.errors import GridError
from simulations import capacity

PRELOADED = "simulations.preload"
"""What Ray's processes import while Ray still starts, before anyone asks them to work."""


class RaySession:
    """Ray with room for `workers`, on this machine or on the cluster at `address`.

    Raises GridError when Ray cannot be started, does not answer or has no room, ConfigError when
    this machine has no room for so many.
    """

    def __init__(self, workers: int, address: str | None = None) -> None:
        if workers < 1:
            raise GridError(f"engine.workers = {workers}: at least one worker is needed")
        self.started = not ray.is_initialized()
        """Whether it was started or joined here, and not before by someone else."""
        self.ready_made = self.started and address is None
        """Whether Ray's processes have a worker's environment from the start."""
        try:
            if self.started:
                _start(workers, address)
            _check_cpus(workers, least=workers if address is None else 1)
        except BaseException:
            if self.started:
                ray.shutdown()  # also of what was started by half
            raise

    def close(self) -> None:
        """Stop Ray if it was started here; a second time does nothing."""
        if self.started and ray.is_initialized():
            ray.shutdown()


def _start(workers: int, address: str | None) -> None:
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
            early = {"RAY_preload_python_modules": PRELOADED}
            with changed(environment() | early):
                ray.init(address="local", num_cpus=workers, include_dashboard=False, **quiet)
    except Exception as error:  # Ray raises it bare where a node does not start in time
        where = f"at '{address}'" if address else "on this machine"
        raise GridError(f"Ray cannot be started {where}: {error}") from error


def environment() -> dict[str, str]:
    """Return the environment variables of workers: one thread, this process's import path."""
    paths = os.pathsep.join(path or os.getcwd() for path in sys.path)
    return {"OMP_NUM_THREADS": "1", "PYTHONPATH": paths}


@contextmanager
def changed(variables: dict[str, str]) -> Iterator[None]:
    """Start processes with these variables; this one's own are put back."""
    before = {name: os.environ.get(name) for name in variables}
    os.environ.update(variables)
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                os.environ.pop(name, None)
            else:
                os.environ[name] = value


def _check_cpus(workers: int, least: int) -> None:
    """Refuse workers that would wait for ever; a cluster may have lost nodes, or gain some."""
    cpus = int(ray.cluster_resources().get("CPU", 0))  # type: ignore[no-untyped-call]
    if cpus < least:
        raise GridError(f"engine.workers = {workers}, but Ray has {cpus} CPUs; lower it")
