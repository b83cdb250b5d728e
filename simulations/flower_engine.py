"""Flower's own simulation engine around our round loop, unchanged.

`run_simulation` runs the server side in a thread and swallows what it raises into its
log; here the result and the error come back to the caller.
"""

import logging
import os
import sys
import tempfile
from collections.abc import Callable
from contextlib import redirect_stdout
from typing import TypeVar

from flwr.app import Context
from flwr.clientapp import ClientApp
from flwr.serverapp import Grid, ServerApp

from fedsparse.errors import GridError
from simulations.flower_internals import load_app

T = TypeVar("T")


def run_with_flower(
    server_main: Callable[[Grid, Context], T],
    client_app: ClientApp | str,
    *,
    clients: int,
    workers: int,
) -> T:
    """Run `server_main` over Flower's engine and return what it returns.

    `workers` clients run at once, one CPU each. Raises what `server_main` raises, and
    GridError when the engine ends before it.
    """
    from flwr.simulation import run_simulation

    results: list[T] = []
    errors: list[BaseException] = []
    app = ServerApp()

    @app.main()
    def main(grid: Grid, context: Context) -> None:
        try:
            results.append(server_main(grid, context))
        except BaseException as error:
            errors.append(error)

    loaded = load_app(client_app) if isinstance(client_app, str) else client_app
    logging.getLogger("flwr").setLevel(logging.CRITICAL)
    with tempfile.TemporaryDirectory(prefix="fedsparse-flwr-") as home:
        os.environ.setdefault("FLWR_HOME", home)
        try:
            with redirect_stdout(sys.stderr):
                run_simulation(
                    app, loaded, num_supernodes=clients, backend_config=_backend(workers)
                )
        finally:
            if os.environ.get("FLWR_HOME") == home:
                del os.environ["FLWR_HOME"]
    if errors:
        raise errors[0]
    if not results:
        raise GridError("Flower's engine ended before the run did; try --engine inline to see why")
    return results[0]


def _backend(workers: int) -> dict[str, object]:
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
