"""A run over real Flower nodes: the simulator's bits, strangers refused, nothing left behind."""

import os
import signal
import subprocess
import time
from contextlib import suppress
from pathlib import Path

import pytest

from fedsparse.runs import RunFolder
from fedsparse.runs.progress import Silent
from simulations.deployment import app, certificates
from simulations.deployment.local import Fleet, follow, settled, started
from simulations.deployment.processes import free_ports
from simulations.experiment import run_experiment
from tests.command_line import spawn
from tests.tiny_runs import model_bytes, tiny

NODES = 2
CHANGES = (f"fleet.clients={NODES}", "run.rounds=2", "engine.timeout=60")


def of_fleet(folder: Path) -> list[int]:
    """Return the processes whose Flower home is in a fleet's folder."""
    found = []
    for place in Path("/proc").glob("[0-9]*"):
        with suppress(OSError):
            if f"FLWR_HOME={folder}".encode() in (place / "environ").read_bytes():
                found.append(int(place.name))
    return found


def strangers(fleet: Fleet, folder: Path) -> dict[str, subprocess.Popen[bytes]]:
    """Start nodes that are no part of a fleet, one for each way of being none."""
    wrong, _ = certificates.write_node_key(folder, "wrong")
    known = fleet.folder / "node-1.key"
    expired = certificates.make_authority(days=-1)
    certificates.write_server(folder / "expired", expired)
    command = fleet.node_command(1, wrong)
    trusted = command.index("--root-certificates")
    plain = [*command[:trusted], *command[trusted + 2 :], "--insecure"]
    key = plain.index("--auth-supernode-private-key")
    others = {
        "wrong key": command,
        "no key": fleet.node_command(1, None),
        "expired authority": [
            str(folder / "expired" / "ca.crt") if place == trusted + 1 else word
            for place, word in enumerate(fleet.node_command(1, known))
        ],
        "plain HTTP": [*plain[:key], *plain[key + 2 :]],
    }
    for words, free in zip(others.values(), free_ports(len(others)), strict=True):
        words[words.index("--port") + 1] = str(free)
        words += ["--max-retries", "2"]
    return {
        name: fleet.processes.start(name.replace(" ", "-"), words).popen
        for name, words in others.items()
    }


@pytest.fixture(scope="module")
def deployed(tmp_path_factory):
    """A run of two rounds while four strangers knock: its folder, what they said, who is left."""
    folder = tmp_path_factory.mktemp("deployed")
    out = folder / "run"
    config = settled(tiny(*CHANGES), NODES, out)
    with started(NODES, out) as fleet:
        knocking = strangers(fleet, folder)
        app.write_app(fleet.folder / "app", config)
        follow(fleet, fleet.submit(fleet.folder / "app"), config, Silent())
        said = {
            name: (fleet.folder / f"{name.replace(' ', '-')}.log").read_text() for name in knocking
        }
        place = fleet.folder
    return out, said, place


def test_the_model_has_the_bits_of_the_simulation(deployed, tmp_path):
    run_experiment(tiny(*CHANGES), tmp_path / "inline", command="tiny")
    assert model_bytes(deployed[0]) == model_bytes(tmp_path / "inline")


@pytest.mark.parametrize("who", ["wrong key", "no key", "expired authority", "plain HTTP"])
def test_a_stranger_is_never_a_node(deployed, who):
    said = deployed[1][who]
    assert "Starting Flower SuperNode" in said
    assert "SuperNode ID" not in said


def test_no_process_and_no_file_is_left(deployed):
    assert not deployed[2].exists()
    assert of_fleet(deployed[2]) == []


def test_private_keys_are_their_owners_alone(tmp_path):
    files = certificates.write_server(tmp_path, certificates.make_authority(), ["example.org"])
    private, _ = certificates.write_node_key(tmp_path, "node")
    for path in (files.key, private):
        assert path.stat().st_mode & 0o077 == 0


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_an_interrupt_in_mid_run_leaves_nothing_and_frees_the_run(tmp_path, number):
    out = tmp_path / "run"
    command = spawn("deploy", "local", "--nodes", 1, "--quiet", "--out", out, TMPDIR=str(tmp_path))
    deadline = time.monotonic() + 120
    while not (out / "metrics.jsonl").exists() and time.monotonic() < deadline:
        time.sleep(0.1)
    os.kill(command.pid, number)
    _, told = command.communicate(timeout=60)
    assert command.returncode == 130, told
    assert of_fleet(tmp_path) == []
    assert not list(tmp_path.glob("fedsparse-*"))
    with RunFolder.open(out).lock():  # the ServerApp holds it while it lives
        pass
