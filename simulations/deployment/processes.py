"""Processes of a deployment: started with a log each, waited for with a bound, ended whole.

Each process leads a group of its own, so that what it starts ends with it. Nothing calls home:
telemetry, update checks and installing at run time are off.
"""

import os
import re
import signal
import socket
import subprocess
import sysconfig
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from fedsparse.errors import GridError

QUIET = {
    "FLWR_TELEMETRY_ENABLED": "0",
    "FLWR_DISABLE_UPDATE_CHECK": "1",
    "FLWR_DISABLE_RUNTIME_DEPENDENCY_INSTALLATION": "1",
    "FLWR_SUPEREXEC_TASK_POLL_INTERVAL": "0.1",
    "PYTHONUNBUFFERED": "1",
}
"""What every process of Flower's finds in its environment."""

END_SECONDS = 5.0
"""How long a process may take to end before it is killed."""
QUOTED_LINES = 4
COLOURS = re.compile(r"\x1b\[[0-9;]*m")
NOTHING = {"", "INFO"}


@dataclass(frozen=True)
class Process:
    """A process of the deployment, its name for messages, and its log."""

    name: str
    popen: "subprocess.Popen[bytes]"
    log: Path

    @property
    def alive(self) -> bool:
        """Whether it still runs."""
        return self.popen.poll() is None

    def said(self) -> str:
        """Return the last lines of its log, on one line."""
        return quoted(self.log)


class Processes:
    """All processes of a deployment; leaving it as a context ends every one of them."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.running: dict[str, Process] = {}

    def __enter__(self) -> "Processes":
        return self

    def __exit__(self, *reason: object) -> None:
        self.end()

    def start(
        self, name: str, command: Sequence[str], more: Mapping[str, str] | None = None
    ) -> Process:
        """Start a process with Flower's home and a log under its name; raises GridError."""
        log = self.folder / f"{name}.log"
        try:
            with log.open("ab") as output:
                popen = subprocess.Popen(
                    list(command),
                    stdin=subprocess.DEVNULL,
                    stdout=output,
                    stderr=output,
                    env=environment(self.folder / f"{name}-home", more),
                    start_new_session=True,
                )
        except OSError as error:
            raise GridError(f"'{command[0]}' cannot be started: {error.strerror}") from None
        self.running[name] = Process(name, popen, log)
        return self.running[name]

    def kill(self, name: str) -> None:
        """Kill one process and all that it started, at once, as a power cut would."""
        end_groups([self.running.pop(name)], grace=0.0)
        kill_strays(self.folder / f"{name}-home")

    def end(self) -> None:
        """End every process with all that it started; those that linger are killed."""
        end_groups(list(self.running.values()))
        for name in self.running:
            kill_strays(self.folder / f"{name}-home")
        self.running.clear()

    def wait(
        self, what: str, ready: Callable[[], object], seconds: float, *watched: Process
    ) -> None:
        """Wait until `ready()` is true; raises GridError after `seconds`, or if a process ends."""
        deadline = time.monotonic() + seconds
        while not ready():
            for process in watched:
                if not process.alive:
                    raise GridError(f"{process.name} ended before {what}: {process.said()}")
            if time.monotonic() > deadline:
                heard = "; ".join(f"{p.name}: {p.said()}" for p in watched)
                raise GridError(f"waited {seconds:.0f} s for {what} in vain; {heard}")
            time.sleep(0.1)


def environment(home: Path, more: Mapping[str, str] | None = None) -> dict[str, str]:
    """Return the environment of a process of Flower's, with its home in a folder of its own.

    The scripts of this installation come first on the path: Flower starts its own by name.
    """
    home.mkdir(parents=True, exist_ok=True)
    inherited = {k: v for k, v in os.environ.items() if not k.startswith("FLWR_")}
    return {**inherited, **QUIET, "PATH": search_path(), "FLWR_HOME": str(home), **(more or {})}


def search_path() -> str:
    """Return the path on which this installation's scripts come first."""
    return os.pathsep.join([sysconfig.get_path("scripts"), os.environ.get("PATH", os.defpath)])


def quieten() -> None:
    """Have this process and what it starts call nobody, and find this installation's scripts.

    Called before Flower is imported, which reads some of it then. What is set stays.
    """
    os.environ.update({**QUIET, **os.environ, "PATH": search_path()})


def end_groups(processes: Sequence[Process], grace: float = END_SECONDS) -> None:
    """End groups of processes: asked first, killed after `grace` seconds.

    A leader that has ended is waited for only after its group was killed, so that its number
    cannot have gone to somebody else.
    """
    if grace:
        for process in processes:
            _signal(process, signal.SIGTERM)
        deadline = time.monotonic() + grace
        while any(_group_lives(p) for p in processes) and time.monotonic() < deadline:
            time.sleep(0.05)
    for process in processes:
        _signal(process, signal.SIGKILL)
    for process in processes:
        process.popen.wait()
    deadline = time.monotonic() + END_SECONDS
    while any(_group_lives(p) for p in processes) and time.monotonic() < deadline:
        time.sleep(0.05)


def kill_strays(home: Path, seconds: float = END_SECONDS) -> None:
    """Kill whatever has Flower's home at `home` or in it, and outlived its group.

    A SuperLink starts what runs its ServerApp in a session of its own, and that goes on when the
    SuperLink has ended. The home is a folder of this deployment alone, so nobody else has it.
    """
    deadline = time.monotonic() + seconds
    while _kill_once(f"FLWR_HOME={home}".encode()) and time.monotonic() < deadline:
        time.sleep(0.05)


def _kill_once(variable: bytes) -> int:
    """Kill the processes that have a variable, or a path in it; return how many there were."""
    found = 0
    for place in Path("/proc").glob("[0-9]*"):
        with suppress(OSError):
            number = os.pidfd_open(int(place.name))  # stays that process's, whatever ends meanwhile
            try:
                variables = (place / "environ").read_bytes().split(b"\0")
                if any(v == variable or v.startswith(variable + b"/") for v in variables):
                    signal.pidfd_send_signal(number, signal.SIGKILL)
                    found += 1
            finally:
                os.close(number)
    return found


def _signal(process: Process, number: int) -> None:
    with suppress(ProcessLookupError, PermissionError):
        os.killpg(process.popen.pid, number)


def _group_lives(process: Process) -> bool:
    """Tell whether anybody of the group runs; a leader that has ended is no longer counted."""
    process.popen.poll()
    try:
        os.killpg(process.popen.pid, 0)
    except (ProcessLookupError, PermissionError):
        return False
    return True


def signal_name(number: int) -> str:
    """Return a signal's name; real-time signals between the first and the last have none."""
    try:
        return signal.Signals(number).name
    except ValueError:
        return f"signal {number}"


def quoted(log: Path, lines: int = QUOTED_LINES) -> str:
    """Return the last lines of a log on one line; says so where there are none.

    Colours are left out, and lines of Flower's that hold a level alone.
    """
    with suppress(OSError):
        told = COLOURS.sub("", log.read_text(errors="replace"))
        found = [" ".join(line.split()) for line in told.splitlines()]
        if last := [line for line in found if line.strip(": ") not in NOTHING][-lines:]:
            return " | ".join(last)
    return "its log is empty"


def free_ports(count: int) -> list[int]:
    """Return ports of loopback that nobody listens on."""
    sockets = [socket.socket() for _ in range(count)]
    try:
        for bound in sockets:
            bound.bind(("127.0.0.1", 0))
        return [int(bound.getsockname()[1]) for bound in sockets]
    finally:
        for bound in sockets:
            bound.close()


def listens(port: int) -> bool:
    """Tell whether somebody listens on a port of loopback."""
    with socket.socket() as probe:
        probe.settimeout(0.5)
        return probe.connect_ex(("127.0.0.1", port)) == 0
