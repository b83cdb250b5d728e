"""Nodes of a local deployment that end by themselves: which, why, and whether the run may go on.

The server cannot tell a node that crashed from one that is late, and waits for it. Here the
processes are our own, so their ends are seen at once.
"""

import signal
from collections.abc import Collection

from fedsparse import data
from fedsparse.config import Config
from fedsparse.errors import GridError
from fedsparse.runs.progress import Progress
from simulations.deployment.processes import Process, Processes, signal_name
from strategies.addressing import least_replies, pool, round_size

LINK = "superlink"
NODE = "node-"
AGAIN = "then start again with the same --out"


class LostNodes:
    """The nodes that have ended while a run went on, each told of once."""

    def __init__(self, processes: Processes, config: Config, progress: Progress) -> None:
        self.processes, self.config, self.progress = processes, config, progress
        self.absent = data.of(config).absent
        """Clients that are never asked; the server waits for the nodes of all others."""
        self.left_out: Collection[int] = ()
        """Clients whose nodes have joined the run with data that do not fit."""
        self._told: set[str] = set()

    @property
    def there(self) -> list[int]:
        """The clients that a round may ask, as the server sees it, whether their nodes live."""
        gone = {*self.absent, *self.left_out}
        drawn = pool(self.config.fleet, self.config.run.seed)
        return [client for client in drawn if client not in gone]

    def look(self, joined: bool, done: bool = False) -> None:
        """Tell of nodes that ended since the last look; `joined` once all have joined the run.

        Raises GridError where the SuperLink has ended, or a node that the server waits for before
        all had joined; later where fewer are left than `fleet.min_replies` asks for, unless all
        rounds are `done`: what comes then does without nodes. Processes that were killed through
        `Processes` are no concern of ours.
        """
        running = self.processes.running
        if LINK in running and not running[LINK].alive:
            raise GridError(f"{fate(running[LINK])}; mend that, {AGAIN}")
        ended = {name: p for name, p in running.items() if _is_node(name) and not p.alive}
        for name in sorted(ended.keys() - self._told):
            self._told.add(name)
            self._judge({_client(other) for other in ended}, ended[name], joined, done)
        self._told &= ended.keys()  # one that was started anew may end anew

    def _judge(self, ended: set[int], newest: Process, joined: bool, done: bool) -> None:
        if not joined and _client(newest.name) not in self.absent:
            raise GridError(
                f"{fate(newest)}, before all nodes had joined the run; mend that, {AGAIN}"
            )
        fleet, there = self.config.fleet, self.there
        left = len(set(there) - ended)
        needed = least_replies(min(round_size(fleet), len(there)), fleet.min_replies)
        if done:
            self.progress.note(f"{fate(newest)}; all rounds are done")
        elif left < needed:
            raise GridError(
                f"too few nodes, {left} of {len(there)}, where fleet.min_replies = "
                f"{fleet.min_replies:g} asks for {needed}: {fate(newest)}; mend that, {AGAIN}"
            )
        else:
            self.progress.note(f"{fate(newest)}; the run goes on with {left} of {len(there)} nodes")


def fate(process: Process) -> str:
    """Return in a line how a process ended and the last that it said."""
    code = process.popen.poll() or 0
    if code == -signal.SIGKILL:
        how = "was ended by SIGKILL, as where memory runs out"
    elif code < 0:
        how = f"was ended by {signal_name(-code)}"
    else:
        how = f"ended by itself with exit status {code}"
    return f"{process.name} {how} ({process.said()})"


def _client(node: str) -> int:
    """Return the client whose node has a name."""
    return int(node.removeprefix(NODE))


def _is_node(name: str) -> bool:
    return name.startswith(NODE) and name.removeprefix(NODE).isdecimal()
