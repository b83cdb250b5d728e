"""Flower's own simulation engine around our round loop, unchanged.

`run_simulation` runs the server side in a thread, swallows what it raises into its log,
and leaves it waiting when the engine itself ends; here the result and the error come back
to the caller, and nothing is left behind.
"""

import logging
import os
import sys
import tempfile
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, redirect_stdout
from typing import Any, Generic, TypeVar

import ray
from flwr.app import Context
from flwr.clientapp import ClientApp
from flwr.serverapp import Grid, ServerApp

from fedsparse.errors import GridError
from simulations import capacity
from simulations.flower_internals import abandon, load_app

T = TypeVar("T")

CLEAN_UP_SECONDS = 30.0
"""How long the server side may take to end once its engine is gone."""


def run_with_flower(
    server_main: Callable[[Grid, Context], T],
    client_app: ClientApp | str,
    *,
    clients: int,
    workers: int,
) -> T:
    """Run `server_main` over Flower's engine and return what it returns.

    `workers` clients run at once, one CPU each. Raises what `server_main` raises,
    KeyboardInterrupt after the engine has stopped, ConfigError when this machine has no room
    for so many workers, and GridError when the engine fails or Ray already runs in this
    process (the engine would take it over and shut it down).
    """
    capacity.check_workers(workers)
    loaded = load_app(client_app) if isinstance(client_app, str) else client_app
    if ray.is_initialized():
        raise GridError("Ray already runs in this process; close the other grid first")
    server = _Server(server_main)
    try:
        with _quiet():
            _simulate(server, loaded, clients, workers)
    except Exception as error:
        server.stop()
        raise GridError(f"Flower's engine failed: {_root(error)}") from error
    finally:
        server.stop()
    if server.errors:
        raise server.errors[0]
    if not server.results:
        raise GridError("Flower's engine ended before the run did; try --engine inline to see why")
    return server.results[0]


class _Server(Generic[T]):
    """The server side as it runs in Flower's thread, with its result or error kept."""

    def __init__(self, main: Callable[[Grid, Context], T]) -> None:
        self.main = main
        self.results: list[T] = []
        self.errors: list[BaseException] = []
        self.grid: Grid | None = None
        self.stopped = False
        self.idle = threading.Event()
        self.idle.set()
        self.lock = threading.Lock()

    def __call__(self, grid: Grid, context: Context) -> None:
        with self.lock:
            if self.stopped:
                return
            self.grid = grid
            self.idle.clear()
        try:
            self.results.append(self.main(grid, context))
        except BaseException as error:
            self.errors.append(error)
        finally:
            self.idle.set()

    def stop(self) -> None:
        """End a server side that still waits for clients, and wait for its clean-up."""
        with self.lock:
            self.stopped = True
            if self.grid is not None:
                abandon(self.grid)
        self.idle.wait(CLEAN_UP_SECONDS)


def _simulate(server: _Server[T], client_app: ClientApp, clients: int, workers: int) -> None:
    from flwr.simulation import run_simulation

    app = ServerApp()
    app.main()(server)
    run_simulation(app, client_app, num_supernodes=clients, backend_config=_backend(workers))


@contextmanager
def _quiet() -> Iterator[None]:
    """Keep Flower's state out of the user's home and its words off stdout.

    It also puts this process's import path into the environment for its workers; that is
    undone.
    """
    logger = logging.getLogger("flwr")
    level = logger.level
    before = {name: os.environ.get(name) for name in ("PYTHONPATH", "RAY_ADDRESS")}
    own_home = "FLWR_HOME" not in os.environ
    with tempfile.TemporaryDirectory(prefix="fedsparse-flwr-") as home:
        os.environ.setdefault("FLWR_HOME", home)
        # Flower would join whatever cluster runs on this machine, and then fail.
        os.environ["RAY_ADDRESS"] = "local"
        logger.setLevel(logging.CRITICAL)
        try:
            with redirect_stdout(sys.stderr):
                yield
        finally:
            logger.setLevel(level)
            if own_home:
                os.environ.pop("FLWR_HOME", None)
            for name, value in before.items():
                os.environ.pop(name, None)
                if value is not None:
                    os.environ[name] = value


def _root(error: BaseException) -> str:
    """Return the first cause of an error, on one line."""
    while error.__cause__ is not None:
        error = error.__cause__
    return " ".join(f"{type(error).__name__}: {error}".split())


def _backend(workers: int) -> dict[str, Any]:
    """Return the settings of Flower's Ray backend: quiet, one CPU a client."""
    return {
        "client_resources": {"num_cpus": 1, "num_gpus": 0.0},
        "init_args": {
            "num_cpus": workers,
            "include_dashboard": False,
            "log_to_driver": False,
            "logging_level": logging.ERROR,
        },
    }
