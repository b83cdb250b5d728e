"""One run of a sweep, in a process of its own: `python -m simulations.point`.

The first line of stdin says what to run. stdin then stays open: that it ends means that
whoever started the point is gone or wants it to stop, and the process ends, resumable.
"""

import json
import logging
import os
import signal
import sys
import threading
import time
from pathlib import Path
from typing import Any

from fedsparse.cli import INTERRUPTED, exit_code

_GRACE = 5.0
"""Seconds that an interrupted run has to stop its workers."""

_MAIN = threading.main_thread().ident or 0


def main() -> int:
    """Do what the first line of stdin says, and return the exit code."""
    signal.signal(signal.SIGINT, signal.default_int_handler)
    order = json.loads(_first_line())
    threading.Thread(target=_end_with_stdin, daemon=True).start()
    return exit_code(lambda: _run(order))


def _first_line() -> bytes:
    """Read one line and not a byte more, for the thread that waits for the end."""
    line = b""
    while not line.endswith(b"\n") and (byte := os.read(0, 65536)):
        line += byte
    return line


def _end_with_stdin() -> None:
    while os.read(0, 1):
        pass
    signal.pthread_kill(_MAIN, signal.SIGINT)
    time.sleep(_GRACE)
    os._exit(INTERRUPTED)


def _run(order: dict[str, Any]) -> None:
    """Run the configuration into its folder, or go on with what is there."""
    from flwr.common.logger import FLOWER_LOGGER

    from fedsparse.config import from_json
    from simulations.experiment import resume_experiment, run_experiment

    FLOWER_LOGGER.setLevel(logging.ERROR)
    folder = Path(order["folder"])
    if (folder / "run.json").exists():
        resume_experiment(folder)
    else:
        run_experiment(from_json(order["config"]), folder, command=order["command"])


if __name__ == "__main__":
    sys.exit(main())
