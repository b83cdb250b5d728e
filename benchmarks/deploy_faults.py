"""Faults in a live fleet: what happens to a run over real nodes when something breaks in it.

    .venv/bin/python -m benchmarks.deploy_faults [--only NAME] [--json | --table]

Each scenario starts a SuperLink and three SuperNodes on loopback, over TLS and with node keys,
strikes in mid-round, and tells which rounds lost whom, why, at what cost, and whether the model has
the bits of a simulated run that lost the same replies. `disk-full-*` need the right to mount.
"""

import argparse
import json
import os
import re
import resource
import shutil
import signal
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

from benchmarks import fault_tools as tools
from benchmarks.machine import describe
from fedsparse.config import Config
from fedsparse.errors import GridError
from fedsparse.runs.atomic import write_file
from fedsparse.runs.progress import Silent
from simulations.deployment.local import Fleet, follow, settled, started
from tests.deployment import live_fleet as live
from tests.tiny_runs import model_bytes

RESULTS = Path(__file__).parent / "results" / "deploy-faults.json"
NODES = 3
RAISED = "ServerApp failed with exception: "
HIT = 1
"""The node that is struck."""
PLACE = re.compile(r"""(?<![\w.:/])(?:/[^\s/'"]+)+/([^\s/'"]+)""")
"""A path of this machine, such as one in a temporary folder."""


class Stage:
    """A fleet, a configuration, and what was seen."""

    def __init__(self, fleet: Fleet, config: Config, base: Path) -> None:
        self.fleet, self.config, self.base = fleet, config, base
        self.out = fleet.out
        self.seen: dict[str, Any] = {"ends": []}

    def play(self, strike: Callable[[], None] = lambda: None) -> None:
        """Run, or go on, and note how it ended."""
        run = live.submit(self.fleet, self.config)
        strike()
        try:
            follow(self.fleet, run, self.config, Silent())
            self.seen["ends"].append("completed")
        except GridError as error:
            said = live.said_of(self.fleet, run) or str(error)
            self.seen["ends"].append(without_places(said))

    def back(self, node: int, **more: str) -> None:
        """Start a node again, and note after how long its client trains."""
        begun, before = time.monotonic(), live.asked(self.fleet, node)
        command = self.fleet.node_command(node, self.fleet.folder / f"node-{node}.key")
        self.fleet.processes.start(f"node-{node}", command, {tools.POLL: "0.2", **more})
        live.wait("training again", lambda: live.asked(self.fleet, node) > before)
        self.seen["back_after"] = round(time.monotonic() - begun, 1)

    def result(self) -> dict[str, Any]:
        """Return the figures of the run."""
        rows = live.rounds(self.out)
        lost = live.lost(self.out)
        hurt = {number for number, _ in lost}
        plain = [r["seconds"] for r in rows[1:] if r["round"] not in hurt]
        usual = statistics.median(plain) if plain else 0.0
        found = {
            **self.seen,
            "rounds": {r["round"]: round(r["seconds"], 1) for r in rows},
            "lost": {f"round {n}, client {c}": without_places(why) for (n, c), why in lost.items()},
            "usual_round": round(usual, 1),
            "longest_round": round(max(r["seconds"] for r in rows), 1) if rows else None,
        }
        if (self.out / "summary.json").exists():
            replica = live.replica(self.config, self.base / "replica", lost)
            found["same_bits"] = model_bytes(self.out) == replica
        return found


def node_killed(stage: Stage) -> None:
    """A node is killed in round 2 and started again when that round is over."""

    def strike() -> None:
        live.training(stage.fleet, HIT, 2)
        stage.fleet.processes.kill(f"node-{HIT}")
        live.ended(stage.out, 2)
        stage.back(HIT)

    stage.play(strike)


def node_restarted(stage: Stage) -> None:
    """A node is killed in round 2 and started again at once, as a service manager does."""

    def strike() -> None:
        live.training(stage.fleet, HIT, 2)
        stage.fleet.processes.kill(f"node-{HIT}")
        stage.back(HIT)

    stage.play(strike)


def superlink_killed(stage: Stage) -> None:
    """The SuperLink is killed in round 2 and started again over its database; then --out again."""

    def strike() -> None:
        live.training(stage.fleet, HIT, 2)
        stage.seen["nodes_before"] = tools.pids(stage.fleet, NODES)
        os.killpg(stage.fleet.link.popen.pid, signal.SIGKILL)
        stage.fleet.link.popen.wait()
        stage.fleet.start_link()

    stage.play(strike)
    live.wait("the end of its ServerApp", lambda: not live.coordinators_of(stage.fleet))
    stage.play()
    stage.seen["same_nodes"] = stage.seen.pop("nodes_before") == tools.pids(stage.fleet, NODES)


def coordinator_killed(stage: Stage) -> None:
    """The ServerApp is killed in round 2; the same fleet goes on with its --out."""

    def strike() -> None:
        live.training(stage.fleet, HIT, 2)
        for pid in live.coordinators_of(stage.fleet):
            os.kill(pid, signal.SIGKILL)

    stage.play(strike)
    stage.play()


def slow_node(stage: Stage) -> None:
    """A client stands still past engine.timeout, 15 s, and goes on when the round is over."""

    def strike() -> None:
        live.training(stage.fleet, HIT, 2)
        pids = live.clients_of(stage.fleet, HIT)
        for pid in pids:
            os.kill(pid, signal.SIGSTOP)
        live.ended(stage.out, 2)
        for pid in pids:
            os.kill(pid, signal.SIGCONT)

    stage.play(strike)


def client_killed(stage: Stage) -> None:
    """A client's process is killed in round 2."""

    def strike() -> None:
        live.training(stage.fleet, HIT, 2)
        for pid in live.clients_of(stage.fleet, HIT):
            os.kill(pid, signal.SIGKILL)

    stage.play(strike)


def cut(stage: Stage, seconds: float) -> None:
    """Cut a node's network in round 2 for some seconds."""
    fleet = stage.fleet
    with tools.Proxy(fleet.port) as proxy:
        fleet.processes.kill(f"node-{HIT}")
        command = fleet.node_command(HIT, fleet.folder / f"node-{HIT}.key")
        command[command.index("--superlink") + 1] = f"127.0.0.1:{proxy.port}"
        fleet.processes.start(f"node-{HIT}", command, {tools.POLL: "0.2"})

        def strike() -> None:
            live.training(fleet, HIT, 2)
            proxy.cut()
            time.sleep(seconds)
            proxy.heal()
            before = live.asked(fleet, HIT)
            took = live.wait("training again", lambda: live.asked(fleet, HIT) > before)
            stage.seen["back_after"] = round(took, 1)

        stage.play(strike)


def short_cut(stage: Stage) -> None:
    """A node's network is cut for 6 seconds in round 2."""
    cut(stage, 6)


def long_cut(stage: Stage) -> None:
    """A node's network is cut for 40 seconds in round 2."""
    cut(stage, 40)


def disk_full_server(stage: Stage) -> None:
    """The disk of the run folder is full from round 2 on; later there is space again."""
    filler = stage.out.parent / "filler"

    def strike() -> None:
        live.training(stage.fleet, HIT, 2)
        tools.fill(filler)

    stage.play(strike)
    filler.unlink()
    stage.play()


def disk_full_node(stage: Stage) -> None:
    """A node loses its app in round 1, and its disk is full until round 2 is over."""
    home = stage.fleet.folder / f"node-{HIT}-home"

    with ExitStack() as mounted:

        def strike() -> None:
            live.training(stage.fleet, HIT, 1)
            mounted.enter_context(tools.tiny_disk(home, "256k"))
            tools.fill(home / "filler")
            live.ended(stage.out, 2)
            (home / "filler").unlink()

        stage.play(strike)


def disk_full_superlink(stage: Stage) -> None:
    """The SuperLink's database cannot grow for 15 seconds in round 2."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)

    def strike() -> None:
        live.training(stage.fleet, HIT, 2)
        pid = stage.fleet.link.popen.pid
        resource.prlimit(pid, resource.RLIMIT_FSIZE, (4096, hard))
        time.sleep(15)
        resource.prlimit(pid, resource.RLIMIT_FSIZE, (soft, hard))

    stage.play(strike)
    if stage.seen["ends"] != ["completed"]:
        stage.play()
    stage.seen["nodes_alive"] = len(tools.pids(stage.fleet, NODES))


def clock_wrong(stage: Stage) -> None:
    """A node is started again in round 2 with a clock two hours ahead, then with 200 s behind."""
    fleet = stage.fleet

    def strike() -> None:
        live.training(fleet, HIT, 2)
        fleet.processes.kill(f"node-{HIT}")
        command = fleet.node_command(HIT, fleet.folder / f"node-{HIT}.key")
        wrong = fleet.processes.start(f"node-{HIT}", command, tools.skewed(stage.base, 7200))
        live.wait("the end of the node", lambda: not wrong.alive)
        lines = wrong.log.read_text().splitlines()
        told = [line.partition("this node")[2] for line in lines if "this node's clock" in line]
        stage.seen["told"] = f"this node{told[0]}" if told else wrong.said()
        fleet.processes.kill(f"node-{HIT}")
        stage.back(HIT, **tools.skewed(stage.base, -200))

    stage.play(strike)


def below_minimum(stage: Stage) -> None:
    """Two of three nodes are killed in round 2; they are started again, then --out again."""

    def strike() -> None:
        live.training(stage.fleet, HIT, 2)
        stage.fleet.processes.kill("node-1")
        stage.fleet.processes.kill("node-2")

    stage.play(strike)
    for node in (1, 2):
        stage.fleet.start_node(node)
    stage.play()


SCENARIOS: dict[str, tuple[Callable[[Stage], None], tuple[str, ...]]] = {
    "node-killed": (node_killed, ("run.rounds=9",)),
    "node-restarted": (node_restarted, ("run.rounds=5",)),
    "superlink-killed": (superlink_killed, ()),
    "coordinator-killed": (coordinator_killed, ()),
    "slow-node": (slow_node, ("engine.timeout=15",)),
    "client-killed": (client_killed, ()),
    "short-cut": (short_cut, ()),
    "long-cut": (long_cut, ("run.rounds=40",)),
    "disk-full-server": (disk_full_server, ()),
    "disk-full-node": (disk_full_node, ("run.rounds=5",)),
    "disk-full-superlink": (disk_full_superlink, ()),
    "clock-wrong": (clock_wrong, ("run.rounds=12",)),
    "below-minimum": (below_minimum, ("fleet.min_replies=0.6",)),
}


def played(name: str) -> dict[str, Any]:
    """Play one scenario on a fleet of its own and return what was seen."""
    act, changes = SCENARIOS[name]
    with folder_for(name) as base:
        out = base / "disk" / "run"
        config = settled(live.setting(NODES, 4, *changes), NODES, out)
        with started(NODES, out) as fleet:
            stage = Stage(fleet, config, base)
            try:
                act(stage)
            except GridError as error:  # a strike waited in vain
                stage.seen["ends"].append(without_places(str(error)))
            finally:
                if keep := os.environ.get("KEEP_LOGS"):
                    for log in fleet.folder.glob("*.log"):
                        shutil.copy(log, keep)
            return {"what": one_line(act), **stage.result()}


@contextmanager
def folder_for(name: str) -> Iterator[Path]:
    """Make a folder whose `disk` is a tiny one where the scenario fills it."""
    with tempfile.TemporaryDirectory(prefix="fedsparse-faults-") as made:
        disk = Path(made) / "disk"
        disk.mkdir()
        if name == "disk-full-server":
            with tools.tiny_disk(disk, "4m"):
                yield Path(made)
        else:
            yield Path(made)


def without_places(text: str) -> str:
    """Return what was said with `.../NAME` for each path of this machine."""
    return PLACE.sub(r".../\1", text)


def one_line(act: Callable[[Stage], None]) -> str:
    """Return what a scenario says of itself."""
    return str(act.__doc__).strip()


def table(scenarios: dict[str, dict[str, Any]]) -> str:
    """Return what was seen as a table: who was lost in which rounds and why, seconds, bits."""
    lines = ["| What happens | Lost | Longest round, others (s) | The run | Bits |"]
    lines += ["| --- | --- | --- | --- | --- |"]
    for found in scenarios.values():
        rounds: dict[str, list[str]] = {}
        for place, reason in found["lost"].items():
            number, _, client = place.removeprefix("round ").partition(", ")
            rounds.setdefault(f"{client}: {reason}", []).append(number)
        lost = "; ".join(f"{why} (round {', '.join(n)})" for why, n in rounds.items())
        ends = "; then ".join(text.removeprefix(RAISED) for text in found["ends"])
        seconds = f"{found['longest_round']}, {found['usual_round']}"
        bits = "same" if found.get("same_bits") else "**other**"
        lines.append(f"| {found['what']} | {lost or 'nobody'} | {seconds} | {ends} | {bits} |")
    return "\n".join(lines)


def main() -> None:
    """Play the scenarios, print what was seen, and leave with 1 where bits differ."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--only", choices=list(SCENARIOS), action="append")
    parser.add_argument("--json", action="store_true", help="print the figures as JSON")
    parser.add_argument("--table", action="store_true", help="print the figures on record")
    given = parser.parse_args()
    if given.table:
        print(table(json.loads(RESULTS.read_text())["scenarios"]))
        return
    bad = []
    for name in given.only or SCENARIOS:
        found = played(name)
        if not given.json:
            print(f"{name}: {json.dumps(found, indent=1)}", flush=True)
        known = json.loads(RESULTS.read_text()) if RESULTS.exists() else {"scenarios": {}}
        done = {**known["scenarios"], name: found}
        known["scenarios"] = {name: done[name] for name in SCENARIOS if name in done}
        known["machine"] = describe()
        write_file(RESULTS, (json.dumps(known, indent=1) + "\n").encode())
        bad += [] if found.get("same_bits") else [name]
    if given.json:
        print(json.dumps(known, indent=1))
    if bad:
        print(f"not as it should be: {', '.join(bad)}", file=sys.stderr)
    sys.exit(bool(bad))


if __name__ == "__main__":
    main()
