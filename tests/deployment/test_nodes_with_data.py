"""Real nodes on data of their own, one of which is started anew between two rounds."""

import os
import signal
import time

from clients import kept_state
from fedsparse.runs import RunFolder
from fedsparse.runs.progress import Silent
from simulations.deployment import app
from simulations.deployment.local import follow, settled, started
from simulations.deployment.processes import end_groups
from simulations.experiment import run_experiment
from tests.data.test_node_data import write_csv
from tests.node_grid import parts
from tests.tiny_runs import model_bytes, rows, tiny

NODES = 2
SETTING = (
    *("model.name=mlp", "model.width=0.25", "data.samples=200", "data.public_samples=40"),
    *("data.client_test_fraction=0.3", "strategy.name=ditto", "run.rounds=4"),
    *(f"fleet.clients={NODES}", "engine.timeout=120"),
)
WAIT_SECONDS = 120.0


def wait(ready):
    deadline = time.monotonic() + WAIT_SECONDS
    while not ready():
        assert time.monotonic() < deadline, "waited in vain"
        time.sleep(0.05)


def write_parts(folder):
    """Write each client's samples into a file of its own, under its number."""
    for client, samples in enumerate(parts(tiny(*SETTING))):
        write_csv(folder, samples).rename(folder / f"own-{client}.csv")


def restart_between_rounds(fleet, states):
    """End the first node once it has answered the round that is on, and start it again.

    The second node stands still meanwhile, so that this round cannot end.
    """
    log, still = fleet.folder / "node-0.log", fleet.processes.running["node-1"].popen.pid
    os.killpg(still, signal.SIGSTOP)
    try:
        (state,) = states.glob("run-*-client-0.state")
        reached = len(rows(fleet.out))  # rows begin with round 0
        wait(lambda: kept_state.read(state).round >= reached)
        wait(lambda: log.read_text().count("Sent succ") == log.read_text().count("Received succ"))
        end_groups([fleet.processes.running.pop("node-0")], grace=30.0)
        before = log.read_text().count("SuperNode ID")
        fleet.start_node(0)
        wait(lambda: log.read_text().count("SuperNode ID") > before)
    finally:
        os.killpg(still, signal.SIGCONT)
    return reached


def test_a_run_on_nodes_data_with_a_restart_has_the_bits_of_the_simulation(tmp_path):
    """Each node reads its own file; what Ditto's clients keep is on their disks."""
    write_parts(tmp_path)
    out, struck = tmp_path / "run", []
    config = settled(tiny(*SETTING), NODES, out)
    told = f'data-path="{tmp_path}/own-{{client}}.csv" state-path="{tmp_path}/states"'
    with started(NODES, out, f'{told} cache-path="{tmp_path}/kept"') as fleet:

        def strike(number):
            if number == 1:
                struck.append(restart_between_rounds(fleet, tmp_path / "states"))

        app.write_app(fleet.folder / "app", config)
        follow(fleet, fleet.submit(fleet.folder / "app"), config, Silent(), strike)
    assert 2 <= struck[0] <= 3
    told = RunFolder.open(out).clients()
    lost = {(row["round"], row["client"]): row["reason"] for row in told if row["status"] != "ok"}
    assert lost == {}
    run_experiment(tiny(*SETTING), tmp_path / "inline", command="tiny")
    assert model_bytes(out) == model_bytes(tmp_path / "inline")
    deployed, inline = (RunFolder.open(place).summary() for place in (out, tmp_path / "inline"))
    assert deployed["accuracy_personal_mean"] == inline["accuracy_personal_mean"]
