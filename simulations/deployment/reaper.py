"""What clears a deployment away when its command is killed: nothing of it outlives the command.

A process of its own holds the reading end of a pipe. It hears `DONE` when everything was ended in
order; when the pipe closes without that, the command is gone, and it ends what is left, keys and
all. Linux alone: what is left is found by Flower's home in a process' environment.
"""

import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from simulations.deployment.processes import END_SECONDS, kill_strays

DONE = b"done"


@contextmanager
def reaped(folder: Path) -> Iterator[None]:
    """End what uses `folder`, and remove it, if this process is killed meanwhile."""
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
        try:
            watcher.communicate(DONE, timeout=END_SECONDS)
        except subprocess.TimeoutExpired:
            watcher.kill()
            watcher.wait()


def main() -> None:
    """Wait for the pipe on stdin to close, and clear the folder away that the argument names."""
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, signal.SIG_IGN)
    folder = Path(sys.argv[1])
    if sys.stdin.buffer.read() != DONE:
        kill_strays(folder)
        shutil.rmtree(folder, ignore_errors=True)


if __name__ == "__main__":
    main()
