"""What this machine and a Ray cluster can carry, looked at before anything is started.

Ray itself would wait for ever for a cluster that is not there, and crawl under more workers
than its machine has room for.
"""

import os
import socket

from fedsparse.config import EngineConfig
from fedsparse.errors import ConfigError, GridError

WORKERS_PER_CORE = 4
"""Workers for each core of this machine up to which oversubscription is put up with."""

CONNECT_SECONDS = 3.0
"""How long a cluster may take to accept a connection."""


def check(engine: EngineConfig) -> None:
    """Refuse an engine that could not start; raises ConfigError and GridError."""
    if engine.name in ("auto", "ray") and engine.ray_address is not None:
        check_address(engine.ray_address)
    elif engine.name != "inline" and engine.workers is not None:
        check_workers(engine.workers)


def check_workers(workers: int) -> None:
    """Refuse more workers than this machine has room for; raises ConfigError."""
    cores = len(os.sched_getaffinity(0))
    most = WORKERS_PER_CORE * cores
    if workers > most:
        raise ConfigError(
            f"engine.workers = {workers}: this machine has {cores} core(s) and takes "
            f"{WORKERS_PER_CORE} workers on each; set {most} or fewer"
        )


def check_address(address: str) -> None:
    """Refuse a cluster that does not answer; raises GridError.

    What is no `host:port`, such as `auto`, is left to Ray.
    """
    host, _, port = address.removeprefix("ray://").rpartition(":")
    if not (host and port.isdecimal()):
        return
    try:
        socket.create_connection((host.strip("[]"), int(port)), CONNECT_SECONDS).close()
    except (OSError, OverflowError, UnicodeError):
        raise GridError(
            f"no Ray cluster answers at engine.ray_address = '{address}'; start one with "
            "`ray start --head`, or leave engine.ray_address out"
        ) from None
