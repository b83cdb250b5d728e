"""What clears a deployment away when its command is gone: nothing of it outlives the command.

A process of its own holds the reading end of a pipe. When that closes, however the command ended
and wherever a second Ctrl-C caught it, it ends what is left and removes the folder, keys and all.
Linux alone: what is left is found by Flower's home in a process' environment.
"""

import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from simulations.deployment.processes import END_SECONDS, kill_strays


@contextmanager
def reaped(folder: Path) -> Iterator[None]:
    """End what uses `folder`, and remove it, when the context is left or this process is gone."""
    command = [sys.executable, "-m", "simulations.deployment.reaper", str(folder)]
    watcher = subprocess.Popen(
        command,
        stdin=subprocess.PIPE,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        start_new_session=True,  # Ctrl-C in a terminal is not for it
    )
    try:
        yield
    finally:
        if watcher.stdin is not None:
            watcher.stdin.close()
        with suppress(subprocess.TimeoutExpired):  # it goes on by itself
            watcher.wait(2 * END_SECONDS)


def main() -> None:
    """Wait for the pipe on stdin to close, and clear the folder away that the argument names."""
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, signal.SIG_IGN)
    folder = Path(sys.argv[1])
    sys.stdin.buffer.read()
    kill_strays(folder)
    shutil.rmtree(folder, ignore_errors=True)


if __name__ == "__main__":
    main()
