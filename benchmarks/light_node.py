"""What a node takes with torch and without it: memory, and seconds of a round beyond training.

.venv/bin/python -m benchmarks.light_node --without LIGHT/bin/python

LIGHT is a virtual environment without torch (docs/light-node.md says how it is made). FedTiny
trains on digits over a real SuperLink and one real node on loopback: by Flower's own
`flower-supernode`, where torch trains and where the kernels do, and by our forking node, with torch
and without. Without, it is held to 512 MB: no process of the node may have more data (RLIMIT_DATA),
and the node is killed if all its processes together hold more. By the kernels the model must have
the bits of the run within one process. Writes benchmarks/results/light-node.json.
"""

import argparse
import json
import os
import signal
import statistics
import subprocess
import sys
import tempfile
import threading
import time
import tomllib
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path
from typing import Any

from benchmarks.machine import describe
from fedsparse.config import Config, override, resolve
from fedsparse.errors import FedSparseError
from fedsparse.runs.progress import Silent
from simulations.deployment import app, certificates
from simulations.deployment.local import Fleet, follow, rows_after, settled, started
from simulations.deployment.node import POLL
from simulations.deployment.processes import free_ports
from simulations.experiment import run_experiment

ROOT = Path(__file__).parents[1]
RESULT = ROOT / "benchmarks" / "results" / "light-node.json"
LIMIT = 512 * 10**6
LIMITED = (
    "import os, resource, sys; limit = int(sys.argv[1]); "
    "resource.setrlimit(resource.RLIMIT_DATA, (limit, limit)); os.execvp(sys.argv[2], sys.argv[2:])"
)
PRESET = """
[run]
rounds = {rounds}
[data]
name = "digits"
public_samples = 200
[model]
name = "cnn"
[strategy]
name = "fedtiny"
density = 0.1
candidates = 4
adjust_every = 2
stop_round = 8
[client]
lr = 0.05
batch_size = 16
local_epochs = 2
backend = "native"
[fleet]
clients = 1
"""


@dataclass
class Watch:
    """Looks at what the processes of one node hold, from its start on; a limit is enforced."""

    home: Path
    out: Path
    limit: int | None
    peak: int = 0
    cpu: float = 0.0
    marks: list[float] = field(default_factory=list)
    """The node's processor time at the end of each round, the one before training first."""
    torch: bool = False
    killed: bool = False
    done: threading.Event = field(default_factory=threading.Event)

    def run(self) -> None:
        """Look until told that all is done."""
        mark = f"FLWR_HOME={self.home}".encode()
        while not self.done.wait(0.05):
            found = [place for place in Path("/proc").glob("[0-9]*") if _has(place, mark)]
            held = sum(map(_proportional, found))
            self.peak = max(self.peak, held)
            self.cpu = max(self.cpu, sum(map(_processor_seconds, found)))
            ended = len(rows_after(self.out, -1))
            self.marks += [self.cpu] * (ended - len(self.marks))
            self.torch = self.torch or any(map(_maps_torch, found))
            if self.limit is not None and held > self.limit:
                self.killed = True
                for place in found:
                    with suppress(ProcessLookupError):
                        os.kill(int(place.name), signal.SIGKILL)


def _has(place: Path, variable: bytes) -> bool:
    with suppress(OSError):
        return variable in (place / "environ").read_bytes().split(b"\0")
    return False


def _proportional(place: Path) -> int:
    """Return the bytes that a process holds, shared ones divided among those who share them."""
    with suppress(OSError):
        for line in (place / "smaps_rollup").read_text().splitlines():
            if line.startswith("Pss:"):
                return 1024 * int(line.split()[1])
    return 0


def _processor_seconds(place: Path) -> float:
    """Return the processor's time that a process took, and those that it started and that ended."""
    with suppress(OSError):
        fields = (place / "stat").read_text().rpartition(")")[2].split()
        return sum(map(int, fields[11:15])) / os.sysconf("SC_CLK_TCK")
    return 0.0


def _maps_torch(place: Path) -> bool:
    with suppress(OSError):
        return "libtorch" in (place / "maps").read_text()
    return False


@dataclass(frozen=True)
class Way:
    """A way to run a node: whose Python, what trains, by our node or by Flower's, and a limit."""

    python: str
    trains: str
    ours: bool
    limit: int | None = None


def node_command(fleet: Fleet, way: Way) -> Sequence[str]:
    """Return what starts the one node: ours, or Flower's own; under a limit if there is one."""
    _, _, module, *options = fleet.node_command(0, fleet.folder / "node-0.key")
    command = [way.python, "-m", module, *options]
    if not way.ours:
        command = [str(Path(way.python).parent / "flower-supernode"), *options]
    if way.limit is not None:
        command = [way.python, "-c", LIMITED, str(way.limit), *command]
    return command


def deployed(config: Config, folder: Path, way: Way) -> dict[str, Any]:
    """Run over one node and return its figures, and the run's."""
    out = folder / "run"
    config = settled(config, 1, out)
    with started(0, out) as fleet:
        fleet.ports = [*fleet.ports, *free_ports(1)]
        _, public = certificates.write_node_key(fleet.folder, "node-0")
        fleet.register(public)
        watch = Watch(fleet.folder / "node-0-home", out, way.limit)
        looking = threading.Thread(target=watch.run)
        looking.start()
        try:
            path = os.pathsep.join([str(Path(way.python).parent), os.environ["PATH"]])
            more = {POLL: "0.2", "PATH": path, "PYTHONPATH": str(ROOT)}
            begun = time.monotonic()
            fleet.processes.start("node-0", node_command(fleet, way), more)
            app.write_app(fleet.folder / "app", config)
            follow(fleet, fleet.submit(fleet.folder / "app"), config, Silent())
            took = time.monotonic() - begun
        except FedSparseError as error:
            logs = {name: _end(fleet.folder / f"{name}.log") for name in ("node-0", "superlink")}
            return {"failed": str(error), "logs": logs, "peak_bytes": watch.peak}
        finally:
            watch.done.set()
            looking.join()
    return {
        "peak_bytes": watch.peak,
        "limit_bytes": way.limit,
        "load": [round(each, 1) for each in os.getloadavg()],
        "killed": watch.killed,
        "torch": watch.torch,
        "seconds": round(took, 2),
        "round_seconds": rounds_of(out),
        "round_cpu_seconds": [round(b - a, 2) for a, b in pairwise(watch.marks)],
        "model": (out / "model.safetensors").read_bytes(),
    }


def _end(log: Path) -> str:
    return log.read_text(errors="replace")[-4000:] if log.exists() else ""


def rounds_of(out: Path) -> list[float]:
    """Return the seconds of each round that trained."""
    rows = [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]
    return [round(row["seconds"], 4) for row in rows if row["round"] > 0]


def main() -> None:
    """Measure every way to run a node, and write and print what came out."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--without", required=True, help="Python of an environment without torch")
    parser.add_argument("--rounds", type=int, default=10)
    parser.add_argument("--only", help="Part of the name of the ways to measure; the rest stays")
    asked = parser.parse_args()
    tree = tomllib.loads(PRESET.format(rounds=asked.rounds))
    config = resolve(override(tree, ()))
    light = str(Path(asked.without).absolute())
    here = sys.executable
    ways = {
        "flower-supernode, torch trains": Way(here, "torch", ours=False),
        "flower-supernode, kernels train": Way(here, "native", ours=False),
        "forking node, torch preloaded": Way(here, "native", ours=True),
        "forking node, no torch, 512 MB": Way(light, "native", ours=True, limit=LIMIT),
    }
    if not limit_holds(light):
        sys.exit("this system does not hold processes to RLIMIT_DATA; the limit would mean nothing")
    with tempfile.TemporaryDirectory() as made:
        inline = Path(made) / "inline"
        run_experiment(settled(config, 1, inline), inline, command="benchmark")
        model, trains = (inline / "model.safetensors").read_bytes(), rounds_of(inline)
        print(f"within one process: a round {statistics.median(trains):.3f} s", flush=True)
        found: dict[str, Any] = {}
        for number, (name, way) in enumerate(ways.items()):
            if asked.only and asked.only not in name:
                continue
            folder = Path(made) / str(number)
            folder.mkdir()
            one = deployed(override_backend(config, way.trains), folder, way)
            one["same_bits"] = one.pop("model", None) == model
            found[name] = one
            print(line(name, one, trains), flush=True)
    before = json.loads(RESULT.read_text())["nodes"] if asked.only and RESULT.exists() else {}
    told = {"machine": describe(), "inline_rounds": trains, "nodes": {**before, **found}}
    RESULT.write_text(json.dumps(told, indent=1) + "\n")


def override_backend(config: Config, backend: str) -> Config:
    """Return the configuration with another backend of its clients."""
    client = config.client.model_copy(update={"backend": backend})
    return config.model_copy(update={"client": client})


def limit_holds(python: str) -> bool:
    """Tell whether a process under the limit is refused more."""
    more = f"bytearray({LIMIT + 10**6})"
    ended = subprocess.run(
        [python, "-c", LIMITED, str(LIMIT), python, "-c", more], capture_output=True, check=False
    )
    return b"MemoryError" in ended.stderr


def line(name: str, one: dict[str, Any], trains: list[float]) -> str:
    """Return a node's figures as a line."""
    peak = one["peak_bytes"] / 1e6
    if "failed" in one or one["killed"]:
        return f"{name:32} does not train; held {peak:4.0f} MB: {one.get('failed', 'killed')[:120]}"
    median = statistics.median(one["round_seconds"])
    beyond = median - statistics.median(trains)
    cpu = statistics.median(one["round_cpu_seconds"])
    torch = "loaded" if one["torch"] else "not loaded"
    return (
        f"{name:32} peak {peak:4.0f} MB, torch {torch}, a round "
        f"{median:5.2f} s, beyond training {beyond:5.2f} s, of the node's processor {cpu:5.2f} s, "
        f"same bits: {one['same_bits']}"
    )


if __name__ == "__main__":
    main()
