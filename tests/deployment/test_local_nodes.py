"""A run over real Flower nodes: the simulator's bits, strangers refused, nothing left behind."""

import os
import signal
import time
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import pytest

from fedsparse.errors import GridError
from fedsparse.runs import RunFolder
from fedsparse.runs.progress import Silent
from simulations.deployment import app, certificates
from simulations.deployment.local import Fleet, follow, settled, started
from simulations.deployment.processes import Processes, free_ports, listens
from simulations.deployment.reaper import reaped
from simulations.experiment import run_experiment
from strategies.task import Task
from tests.command_line import spawn, tiny_toml
from tests.tiny_runs import model_bytes, rows, tiny

NODES = 2
CHANGES = (f"fleet.clients={NODES}", "run.rounds=2", "engine.timeout=60")
LONG = 300.0
"""Seconds within which a process has said or done what it was started for."""
MEMBER = "SuperNode ID"
REFUSED = {
    "wrong key": "[code: 2004] Failed to activate SuperNode",
    "no key": "[code: 2001] SuperNode authentication is enabled",
    "other authority": "certificate verify failed: unable to get local issuer certificate",
    "expired certificate": "certificate verify failed: certificate has expired",
    "plain HTTP": "Connection attempt failed",
}
"""Strangers, and what each says of its end: what the SuperLink answered, or why it trusts none.

Who speaks plain HTTP gets no answer; how the system tells that depends on who closes first.
"""
pytestmark = pytest.mark.timeout(900)  # a dozen processes import Flower; a busy machine takes long


def with_word(word: str) -> list[int]:
    """Return the processes in whose environment a word stands."""
    found = []
    for place in Path("/proc").glob("[0-9]*"):
        with suppress(OSError):
            if word.encode() in (place / "environ").read_bytes():
                found.append(int(place.name))
    return found


class Strangers:
    """Nodes that are no part of a fleet, each for a reason of its own, started alike."""

    def __init__(self, fleet: Fleet, folder: Path) -> None:
        self.fleet, self.folder = fleet, folder
        self.wrong, self.wrong_public = certificates.write_node_key(folder, "wrong")
        known, root, at = fleet.folder / "node-1.key", fleet.files.authority, fleet.address
        other = certificates.write_server(folder / "other", certificates.make_authority())
        expired = self.expired_link()
        self.commands = {
            "wrong key": self.node(at, root, self.wrong),
            "no key": self.node(at, root, None),
            "other authority": self.node(at, other.authority, known),
            "expired certificate": self.node(expired, root, known),
            "plain HTTP": self.node(at, None, None),
        }
        for name, command in self.commands.items():
            fleet.processes.start(name, command)

    def node(self, address: str, root: Path | None, key: Path | None) -> list[str]:
        command = ["flower-supernode", "--superlink", address, "--max-retries", "1"]
        command += ["--host", "127.0.0.1", "--port", str(free_ports(1)[0])]
        command += ["--root-certificates", str(root)] if root else ["--insecure"]
        return [*command, *(["--auth-supernode-private-key", str(key)] if key else [])]

    def expired_link(self) -> str:
        """Start a SuperLink that the fleet's authority vouches for, but no longer."""
        files = certificates.write_server(self.folder / "expired", self.fleet.authority, days=-1)
        port = free_ports(1)[0]
        command = ["flower-superlink", "--host", "127.0.0.1", "--port", str(port)]
        command += ["--ssl-ca-certfile", str(files.authority), "--ssl-keyfile", str(files.key)]
        command += ["--ssl-certfile", str(files.certificate), "--enable-supernode-auth"]
        link = self.fleet.processes.start("expired link", command)
        self.fleet.processes.wait("the expired SuperLink", lambda: listens(port), LONG, link)
        return f"127.0.0.1:{port}"

    def said(self, name: str) -> str:
        """Return what a stranger said until it gave up."""
        process = self.fleet.processes.running[name]
        self.fleet.processes.wait(f"{name}'s end", lambda: not process.alive, LONG)
        return " ".join(process.log.read_text().split())

    def admitted(self) -> str:
        """Register the wrong key, start its node anew, and return what that says."""
        self.fleet.register(self.wrong_public)
        again = self.fleet.processes.start("now known", self.commands["wrong key"])
        self.fleet.processes.wait("entry", lambda: MEMBER in again.log.read_text(), LONG, again)
        return again.log.read_text()


@dataclass
class Deployed:
    """What a run of two rounds left while five strangers knocked."""

    out: Path
    place: Path
    said: dict[str, str]
    admitted: str
    failure: str


def failure(fleet: Fleet, config) -> str:
    """Hand in an app with a value out of range and return what is said of its end."""
    folder = fleet.folder / "bad"
    path = app.write_app(folder, config)
    path.write_text(path.read_text().replace("density = 0.1", "density = 7.0"))
    with pytest.raises(GridError) as told:
        follow(fleet, fleet.submit(folder), config, Silent())
    return str(told.value)


@pytest.fixture(scope="module")
def deployed(tmp_path_factory):
    folder = tmp_path_factory.mktemp("deployed")
    out = folder / "run"
    config = settled(tiny(*CHANGES), NODES, out)
    with started(NODES, out) as fleet:
        knocking = Strangers(fleet, folder)
        app.write_app(fleet.folder / "app", config)
        follow(fleet, fleet.submit(fleet.folder / "app"), config, Silent())
        said = {name: knocking.said(name) for name in REFUSED}
        admitted, why = knocking.admitted(), failure(fleet, config)
    return Deployed(out, fleet.folder, said, admitted, why)


def test_the_model_and_the_rounds_are_those_of_the_simulation(deployed, tmp_path):
    run_experiment(tiny(*CHANGES), tmp_path / "inline", command="tiny")
    assert model_bytes(deployed.out) == model_bytes(tmp_path / "inline")
    told = len(Task.of(tiny(*CHANGES)).described)  # for nodes without torch
    for real, simulated in zip(rows(deployed.out), rows(tmp_path / "inline"), strict=True):
        more = real.pop("bytes_down") - simulated.pop("bytes_down")
        assert real == simulated
        assert more in range(NODES * told, 99 * NODES * told, NODES * told)


def test_every_client_took_part_in_every_round_while_strangers_knocked(deployed):
    trained = [row for row in rows(deployed.out) if row["round"] > 0]
    assert [(row["clients_replied"], row["clients_failed"]) for row in trained] == [(NODES, 0)] * 2


@pytest.mark.parametrize("who", REFUSED)
def test_a_stranger_is_refused_for_its_reason(deployed, who):
    assert REFUSED[who] in deployed.said[who]
    assert MEMBER not in deployed.said[who]


def test_a_stranger_whose_key_is_registered_is_none(deployed):
    assert MEMBER in deployed.admitted


def test_a_failed_run_ends_with_what_the_server_raised(deployed):
    assert "strategy.density = 7.0" in deployed.failure
    assert "\n" not in deployed.failure


def test_no_process_and_no_file_is_left(deployed):
    assert not deployed.place.exists()
    assert with_word(str(deployed.place)) == []


def test_private_keys_are_their_owners_alone(tmp_path):
    files = certificates.write_server(tmp_path, certificates.make_authority(), ["example.org"])
    private, _ = certificates.write_node_key(tmp_path, "node")
    for path in (files.key, private):
        assert path.stat().st_mode & 0o077 == 0


def test_a_second_interruption_while_all_is_ended_leaves_nothing(tmp_path):
    """Whoever sees nothing happen presses Ctrl-C again: that must not stop the clearing away."""
    folder = tmp_path / "fleet"
    folder.mkdir()
    with suppress(KeyboardInterrupt), reaped(folder):
        left = Processes(folder).start("superlink", ["sleep", "600"])
        raise KeyboardInterrupt  # before the processes were ended
    assert left.popen.wait(LONG) == -signal.SIGKILL
    deadline = time.monotonic() + LONG
    while folder.exists() and time.monotonic() < deadline:
        time.sleep(0.1)
    assert not folder.exists()


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGKILL])
def test_ended_in_mid_run_it_leaves_nothing_and_frees_the_run(tmp_path, number):
    """SIGINT takes SIGTERM's way; of SIGKILL the command hears nothing, its reaper does."""
    out, made = tmp_path / "run", tmp_path / "tmp"
    made.mkdir()
    asked = ("--nodes", 1, tiny_toml(tmp_path), "--set", "run.rounds=50", "--quiet", "--out", out)
    command = spawn("deploy", "local", *asked, TMPDIR=str(made))
    deadline = time.monotonic() + LONG
    while not (out / "metrics.jsonl").exists() and time.monotonic() < deadline:
        assert command.poll() is None, command.communicate()[1]
        time.sleep(0.1)
    os.kill(command.pid, number)
    _, told = command.communicate(timeout=LONG)
    assert command.returncode == (-number if number == signal.SIGKILL else 130), told
    deadline = time.monotonic() + LONG
    while (with_word(str(made)) or any(made.iterdir())) and time.monotonic() < deadline:
        time.sleep(0.1)
    assert with_word(str(made)) == []
    assert list(made.iterdir()) == []
    with RunFolder.open(out).lock():  # the ServerApp holds it while it lives
        pass
