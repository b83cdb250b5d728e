"""A live fleet that is struck: who runs where, when a round has come to a node, what was lost.

For the tests of a deployment under faults and for `benchmarks/deploy_faults.py`. Everything is
waited for by what processes show, each time with a bound.
"""

import json
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

from fedsparse import messages
from fedsparse.config import Config
from fedsparse.errors import GridError
from fedsparse.runs import RunFolder
from fedsparse.runs.progress import Silent
from simulations import faults
from simulations.deployment import app
from simulations.deployment.local import NAME, Fleet
from simulations.experiment import CLIENT_APP
from simulations.faults import FaultyGrid, Schedule
from strategies import foreign
from strategies.execute import execute
from strategies.task import Task
from tests.tiny_runs import model_bytes, tiny

STRIKE_SECONDS = 120.0
"""How long a wait for a moment to strike in may take."""

SETTING = (
    *("model.name=mlp", "model.width=0.25", "data.samples=160", "data.public_samples=40"),
    *("data.test_samples=40", "strategy.name=static", "strategy.density=0.2"),
    *("strategy.pretrain_epochs=1", "client.backend=native", "fleet.evaluate_clients=0"),
)


def setting(nodes: int, rounds: int, *changes: str) -> Config:
    """Return a tiny run whose clients train long enough to be struck in the middle of it."""
    size = (f"fleet.clients={nodes}", f"run.rounds={rounds}", "engine.timeout=90")
    return tiny(*SETTING, *size, "client.local_epochs=400", *changes)


def wait(what: str, ready: Callable[[], object], seconds: float = STRIKE_SECONDS) -> float:
    """Wait until `ready()` is true and return the seconds that it took; raises GridError."""
    begun = time.monotonic()
    while not ready():
        if time.monotonic() - begun > seconds:
            raise GridError(f"waited {seconds:.0f} s for {what} in vain")
        time.sleep(0.02)
    return time.monotonic() - begun


def processes_of(home: Path) -> dict[int, tuple[int, str]]:
    """Return parent and command line of the processes that have `home` as Flower's home."""
    found = {}
    for place in Path("/proc").glob("[0-9]*"):
        with suppress(OSError, IndexError, ValueError):
            if f"FLWR_HOME={home}".encode() in (place / "environ").read_bytes().split(b"\0"):
                line = (place / "cmdline").read_bytes().replace(b"\0", b" ").decode()
                state, parent = (place / "stat").read_text().rpartition(")")[2].split()[:2]
                if state != "Z":
                    found[int(place.name)] = int(parent), line
    return found


def clients_of(fleet: Fleet, node: int) -> list[int]:
    """Return the processes that answer a message at a node just now."""
    running = processes_of(fleet.folder / f"node-{node}-home")
    forked = {pid for pid, (_, line) in running.items() if "deployment.executor" in line}
    return [pid for pid in forked if running[pid][0] in forked]


def coordinators_of(fleet: Fleet) -> list[int]:
    """Return the processes that run a ServerApp."""
    running = processes_of(fleet.folder / "superlink-home")
    return [pid for pid, (_, line) in running.items() if "flwr-serverapp" in line]


def asked(fleet: Fleet, node: int) -> int:
    """Return how many training messages have come to a node so far."""
    with suppress(OSError):
        return (fleet.folder / f"node-{node}.log").read_text().count("Receiving: train")
    return 0


def training(fleet: Fleet, node: int, times: int) -> None:
    """Wait until a node's client is at its `times`th training."""
    wait(
        f"training {times} at node {node}",
        lambda: asked(fleet, node) >= times and clients_of(fleet, node),
    )


def rounds(out: Path) -> list[dict[str, Any]]:
    """Return the rows of the rounds that are written down so far."""
    with suppress(OSError):
        lines = (out / "metrics.jsonl").read_text().splitlines(keepends=True)
        return [json.loads(line) for line in lines if line.endswith("\n")]
    return []


def ended(out: Path, number: int) -> float:
    """Wait until a round is written down and return the seconds that it took to come."""
    return wait(f"the end of round {number}", lambda: len(rounds(out)) > number)


def submit(fleet: Fleet, config: Config) -> str:
    """Hand the configuration in to a fleet and return the run's number."""
    place = fleet.folder / f"app-{len(list(fleet.folder.glob('app-*')))}"
    app.write_app(place, config)
    return fleet.submit(place)


def said_of(fleet: Fleet, run: str) -> str:
    """Return what Flower keeps of why a run ended, '' for nothing."""
    for row in fleet.flwr("list", NAME)["runs"]:
        if str(row["run-id"]) == run:
            return str(row.get("status-details") or "")
    return ""


def lost(out: Path) -> dict[tuple[int, int], str]:
    """Return the reason of every reply that did not count, by round and client."""
    rows = RunFolder.open(out).clients()
    return {(r["round"], r["client"]): r["reason"] for r in rows if r["status"] != "ok"}


def replica(config: Config, out: Path, without: Mapping[tuple[int, int], str]) -> bytes:
    """Return the model of the same run in this process, without the replies that were lost."""
    task = Task.of(config)
    folder = RunFolder.create(out, config, command="replica")
    schedule = Schedule(0, {(messages.TRAIN, *place): faults.LOST for place in without})
    clients = config.fleet.clients
    with FaultyGrid(CLIENT_APP, clients=clients, schedule=schedule) as grid, folder.lock():
        execute(task, foreign.make(task), grid, folder, Silent())
    return model_bytes(out)
