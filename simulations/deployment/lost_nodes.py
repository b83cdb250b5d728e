"""Nodes of a local deployment that end by themselves: which, why, and whether the run may go on.

The server cannot tell a node that crashed from one that is late, and waits for it. Here the
processes are our own, so their ends are seen at once.
"""

import signal

from fedsparse.config import FleetConfig
from fedsparse.errors import GridError
from fedsparse.runs.progress import Progress
from simulations.deployment.processes import Process, Processes
from strategies.addressing import least_replies, round_size

LINK = "superlink"
NODE = "node-"
AGAIN = "then start again with the same --out"


class LostNodes:
    """The nodes that have ended while a run went on, each told of once."""

    def __init__(self, processes: Processes, fleet: FleetConfig, progress: Progress) -> None:
        self.processes, self.fleet, self.progress = processes, fleet, progress
        self._told: set[str] = set()

    def look(self, joined: bool) -> None:
        """Tell of nodes that ended since the last look; `joined` once all have joined the run.

        Raises GridError where the SuperLink has ended, or a node before all had joined, since a run
        begins with all; later where fewer are left than `fleet.min_replies` asks for. Processes
        that were killed through `Processes` are no concern of ours.
        """
        running = self.processes.running
        if LINK in running and not running[LINK].alive:
            raise GridError(f"{fate(running[LINK])}; mend that, {AGAIN}")
        ended = {name: p for name, p in running.items() if _is_node(name) and not p.alive}
        for name in sorted(ended.keys() - self._told):
            self._told.add(name)
            self._judge(ended, ended[name], joined)
        self._told &= ended.keys()  # one that was started anew may end anew

    def _judge(self, ended: dict[str, Process], newest: Process, joined: bool) -> None:
        everyone = self.fleet.training_clients
        left = everyone - sum(int(name.removeprefix(NODE)) < everyone for name in ended)
        needed = least_replies(round_size(self.fleet), self.fleet.min_replies)
        if not joined:
            raise GridError(
                f"{fate(newest)}, before all nodes had joined the run; mend that, {AGAIN}"
            )
        if left < needed:
            raise GridError(
                f"too few nodes, {left} of {everyone}, where fleet.min_replies = "
                f"{self.fleet.min_replies:g} asks for {needed}: {fate(newest)}; mend that, {AGAIN}"
            )
        self.progress.note(f"{fate(newest)}; the run goes on with {left} of {everyone} nodes")


def fate(process: Process) -> str:
    """Return in a line how a process ended and the last that it said."""
    code = process.popen.poll() or 0
    if code == -signal.SIGKILL:
        how = "was ended by SIGKILL, as where memory runs out"
    elif code < 0:
        how = f"was ended by {_signal(-code)}"
    else:
        how = f"ended by itself with exit status {code}"
    return f"{process.name} {how} ({process.said()})"


def _signal(number: int) -> str:
    """Return a signal's name; real-time signals between the first and the last have none."""
    try:
        return signal.Signals(number).name
    except ValueError:
        return f"signal {number}"


def _is_node(name: str) -> bool:
    return name.startswith(NODE) and name.removeprefix(NODE).isdecimal()
