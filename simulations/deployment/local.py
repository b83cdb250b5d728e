"""A run over a real SuperLink and real SuperNodes on loopback, from keys to summary.

Everything that is made for it lies in one temporary folder and in process groups of its own;
both are gone when the run has ended, however it ends.
"""

import json
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import tomli_w

from fedsparse.config import Config
from fedsparse.errors import ConfigError, FedSparseError, GridError, RunFolderError, one_line
from fedsparse.runs import RunFolder
from fedsparse.runs.progress import Progress, Silent
from simulations.deployment import app, certificates
from simulations.deployment.certificates import Authority, ServerFiles
from simulations.deployment.lost_nodes import LINK, NODE, LostNodes
from simulations.deployment.node import POLL
from simulations.deployment.processes import (
    Process,
    Processes,
    environment,
    free_ports,
    listens,
    quoted,
)
from simulations.deployment.reaper import reaped
from simulations.deployment.room import roomy
from strategies import foreign, server_app
from strategies.execute import check_clock
from strategies.task import Task

START_SECONDS = 90.0
CALL_SECONDS = 60.0
STATE_EVERY = 10.0
"""Seconds between looks at the run's state, each of which is a process of Flower's."""
RAISED = "ServerApp failed with exception: "
"""How Flower begins what it keeps of an exception."""
UNTOLD = "N/A"
NAME = "local"


@dataclass
class Fleet:
    """A SuperLink on loopback, its nodes, and the keys of both; made by `started`."""

    folder: Path
    processes: Processes
    authority: Authority
    files: ServerFiles
    port: int
    ports: Sequence[int]
    out: Path
    told: str = ""
    """What else nodes are told, as `--node-config` has it; {client} stands for the client."""
    link: Process = field(init=False)
    _joined: int | None = field(init=False, default=None)

    @property
    def joined(self) -> bool:
        """Whether every node has joined the run that was handed in last."""
        return self._last_joined() not in (None, self._joined)

    def _last_joined(self) -> int | None:
        """Return when the server last wrote down who holds what; it does so once all are there."""
        try:
            return (self.out / "partition.json").stat().st_mtime_ns
        except OSError:
            return None

    @property
    def address(self) -> str:
        """Where the SuperLink listens."""
        return f"127.0.0.1:{self.port}"

    def start_link(self) -> None:
        """Start the SuperLink, over its database where it has one, and wait until it listens."""
        files = self.files
        command = [sys.executable, "-m", "simulations.deployment.link"]
        command += ["--host", "127.0.0.1", "--port", str(self.port)]
        command += ["--ssl-ca-certfile", str(files.authority)]
        command += ["--ssl-certfile", str(files.certificate), "--ssl-keyfile", str(files.key)]
        command += ["--enable-supernode-auth", "--database", str(self.folder / "link.db")]
        self.link = self.processes.start(LINK, command, {"FEDSPARSE_OUT": str(self.out)})
        self.processes.wait("the SuperLink", lambda: listens(self.port), START_SECONDS, self.link)

    def register(self, public: Path) -> None:
        """Make a node's public key known at the SuperLink."""
        self.flwr("supernode", "register", str(public), NAME)

    def node_command(self, client: int, key: Path | None, *more: str) -> list[str]:
        """Return the command of the node that holds a client's data."""
        command = [sys.executable, "-m", "simulations.deployment.node"]
        command += ["--superlink", self.address, "--root-certificates", str(self.files.authority)]
        command += ["--auth-supernode-private-key", str(key)] if key is not None else []
        command += ["--host", "127.0.0.1", "--port", str(self.ports[client])]
        own = self.told.replace("{client}", str(client))
        config = f"partition-id={client} num-partitions={len(self.ports)} {own}".strip()
        return [*command, "--node-config", config, *more]

    def start_node(self, client: int) -> Process:
        """Start the node of a client with its registered key; it connects by itself."""
        key = self.folder / f"node-{client}.key"
        command = self.node_command(client, key)
        return self.processes.start(f"{NODE}{client}", command, {POLL: "0.2"})

    def flwr(self, *arguments: str) -> dict[str, Any]:
        """Ask Flower's own command line for JSON; raises GridError where it refuses."""
        home = self.folder / "flwr-home"
        try:
            done = subprocess.run(
                ["flwr", *arguments, "--format", "json"],
                env=environment(home),
                capture_output=True,
                text=True,
                timeout=CALL_SECONDS,
                stdin=subprocess.DEVNULL,
            )
        except subprocess.TimeoutExpired:
            raise GridError(
                f"`flwr {arguments[0]}` took more than {CALL_SECONDS:.0f} s; "
                f"superlink: {self.link.said()}"
            ) from None
        found = _json_in(done.stdout)
        if done.returncode or not found.get("success", False):
            why = found.get("error-message") or (done.stderr or done.stdout).strip()
            raise GridError(f"`flwr {' '.join(arguments[:2])}` failed: {' '.join(why.split())}")
        return found

    def submit(self, where: Path) -> str:
        """Hand an app in and return its run's number."""
        self._joined = self._last_joined()  # to an earlier life of the run
        return str(self.flwr("run", str(where), NAME)["run-id"])

    def state(self, run: str) -> str:
        """Return a run's state as Flower names it, such as `running` or `finished:completed`."""
        return str(self.listed(run).get("status", "unknown"))

    def reason(self, run: str) -> str:
        """Return why a run failed: what its ServerApp raised, else what the SuperLink logged.

        The exception reaches no log of the SuperLink; Flower keeps its text with the run.
        """
        said = str(self.listed(run).get("status-details") or UNTOLD)
        return reason_in(self.link.log) if said == UNTOLD else one_line(said.removeprefix(RAISED))

    def listed(self, run: str) -> dict[str, Any]:
        """Return what Flower lists of a run, {} for one that it doesn't know."""
        runs = self.flwr("list", NAME)["runs"]
        return next((dict(row) for row in runs if str(row["run-id"]) == run), {})


@contextmanager
def started(nodes: int, out: Path, told: str = "") -> Iterator[Fleet]:
    """Start a SuperLink and `nodes` nodes on loopback over TLS, each with a key of its own.

    `told` is more for their `--node-config`, {client} in it the client. The folder, the keys and
    every process are gone when the context is left, also when that is by Ctrl-C, SIGTERM or an
    error. Raises GridError for a process that doesn't start in time, RunFolderError where the disk
    has no room.
    """
    certificates.require_library()
    with (
        ended_by_sigterm(),
        tempfile.TemporaryDirectory(prefix="fedsparse-", ignore_cleanup_errors=True) as made,
        reaped(Path(made)),
        roomy(Path(made)),
        Processes(Path(made)) as processes,
    ):
        folder = Path(made)
        authority = certificates.make_authority()
        files = certificates.write_server(folder, authority)
        port, *ports = free_ports(nodes + 1)
        fleet = Fleet(folder, processes, authority, files, port, ports, out.absolute(), told)
        home = folder / "flwr-home"
        home.mkdir()
        link = {"address": fleet.address, "root-certificates": str(files.authority)}
        config = tomli_w.dumps({"superlink": {"default": NAME, NAME: link}})
        (home / "config.toml").write_text(config, encoding="utf-8")
        fleet.start_link()
        for client in range(nodes):
            _, public = certificates.write_node_key(folder, f"node-{client}")
            fleet.register(public)
            fleet.start_node(client)
        yield fleet


def settled(config: Config, nodes: int, out: Path) -> Config:
    """Return the configuration with a client for each node and nothing left to be chosen.

    Raises ConfigError for what a run over real nodes cannot do, RunFolderError for a folder
    that holds another run, one that is finished, or one that is in use.
    """
    if (out / "summary.json").exists():
        raise RunFolderError(f"the run in '{out}' is finished; choose another folder with --out")
    if (out / "run.json").exists():
        with RunFolder.open(out).lock():  # else its server would say so, half a minute later
            pass
    config = config.model_copy(update={"fleet": config.fleet.model_copy(update={"clients": nodes})})
    check_real(config)
    task = Task.of(server_app.settled_before(out, config))
    check_clock(task.config, foreign.make(task))
    app.sayable(task.config.model_dump())
    return task.config


def check_real(config: Config) -> None:
    """Raise ConfigError for what real nodes cannot do: play devices, train on a GPU."""
    if config.fleet.profile is not None:
        raise ConfigError(
            f"fleet.profile = '{config.fleet.profile}': real nodes run in real time; leave it out, "
            "or simulate devices with `fedsparse run`"
        )
    if config.engine.device != "cpu":
        raise ConfigError("engine.device = cuda: nodes train on the CPU; leave it out")


def run_locally(
    config: Config, nodes: int, out: Path, progress: Progress | None = None, *, told: str = ""
) -> dict[str, Any]:
    """Run a configuration over `nodes` real nodes and return its summary.

    `told` is as in `started`. An unfinished run of a deployment in `out` goes on. Raises GridError
    with the reason when the run fails; the folder can then be gone on with.
    """
    progress = progress or Silent()
    config = settled(config, nodes, out)
    with started(nodes, out, told) as fleet:
        progress.note(f"engine: SuperLink and {nodes} SuperNodes at {fleet.address}, over TLS")
        app.write_app(fleet.folder / "app", config)
        run = fleet.submit(fleet.folder / "app")
        follow(fleet, run, config, progress)
    return RunFolder.open(out).summary()


def follow(
    fleet: Fleet,
    run: str,
    config: Config,
    progress: Progress,
    meanwhile: Callable[[int], None] | None = None,
) -> None:
    """Wait until a run has completed, and show its rounds; raises GridError where it fails.

    A node that ends early is told of, and ends the run where that cannot do without it; so are
    those that are left out. No wait is without a bound: a round may take `engine.timeout` and what
    surrounds it. `meanwhile` is told the number of each round that has ended.
    """
    seen, progressed, asked = -1, time.monotonic(), time.monotonic()
    refused: dict[str, str] | None = None
    limit = config.engine.timeout + 2 * START_SECONDS
    nodes = LostNodes(fleet.processes, config, progress)
    progress.start(config.run.rounds, 0)
    while True:
        time.sleep(0.2)
        now, joined = time.monotonic(), fleet.joined
        if joined and refused is None:
            refused = left_out(fleet.out)
            nodes.left_out = [int(client) for client in refused]
            for client, why in refused.items():
                progress.note(f"the node of client {client} is left out: {why}")
        for row in rows_after(fleet.out, seen):
            seen, progressed = int(row["round"]), now
            progress.round_done(row)
            if meanwhile is not None:
                meanwhile(seen)
        finished = (fleet.out / "summary.json").exists()
        if finished or now - asked > STATE_EVERY:
            asked = now
            state = fleet.state(run)
            if state == "finished:completed":
                return
            if state.startswith("finished"):
                raise GridError(f"the run ended as {state}: {fleet.reason(run)}")
        if not finished:
            nodes.look(joined, done=seen >= config.run.rounds)
        if now - progressed > limit:
            raise GridError(
                f"no round ended within {limit:.0f} s; superlink: {fleet.link.said()}; "
                "lower engine.timeout or look at the nodes, then start again with the same --out"
            )


def rows_after(out: Path, number: int) -> list[dict[str, Any]]:
    """Return the figures of the rounds after one, as far as they are written."""
    try:
        text = (out / "metrics.jsonl").read_text(encoding="utf-8")
    except OSError:
        return []
    lines = text.splitlines(keepends=True)
    rows = [json.loads(line) for line in lines if line.endswith("\n")]
    return [row for row in rows if row["round"] > number]


def left_out(out: Path) -> dict[str, str]:
    """Return why nodes are left out, by client, as the server wrote when all had joined."""
    try:
        told = json.loads((out / "partition.json").read_text(encoding="utf-8"))
    except OSError:
        return {}
    return dict(told.get("left_out", {}))


def reason_in(log: Path) -> str:
    """Return the error that a log names: one of ours if there is any, else its last lines."""
    names = tuple(f"{kind.__name__}: " for kind in _family(FedSparseError))
    try:
        lines = log.read_text(errors="replace").splitlines()
    except OSError:
        lines = []
    for line in reversed(lines):
        for name in names:
            if name in line:
                return line.partition(name)[2].strip()
    return quoted(log)


def _family(kind: type[Exception]) -> list[type[Exception]]:
    return [kind, *(sub for child in kind.__subclasses__() for sub in _family(child))]


def _json_in(text: str) -> dict[str, Any]:
    """Return the JSON object that a text holds, {} for none; Flower says more around it."""
    begin, end = text.find("{"), text.rfind("}")
    try:
        found = json.loads(text[begin : end + 1])
    except ValueError:
        return {}
    return found if isinstance(found, dict) else {}


@contextmanager
def ended_by_sigterm() -> Iterator[None]:
    """Let SIGTERM end the work as Ctrl-C does, so that everything is cleared away."""

    def interrupt(number: int, frame: object) -> None:
        raise KeyboardInterrupt

    try:
        before = signal.signal(signal.SIGTERM, interrupt)
    except ValueError:  # not in the main thread, which alone receives signals
        yield
        return
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)
