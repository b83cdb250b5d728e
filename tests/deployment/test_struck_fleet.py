"""A live fleet is struck in mid-round: its run goes on, names what was lost, and keeps its bits.

`benchmarks/deploy_faults.py` plays more, one at a time.
"""

import os
import signal

import pytest

from fedsparse.runs import RunFolder
from fedsparse.runs.progress import Silent
from simulations.deployment.local import follow, settled, started
from tests.deployment import live_fleet as live
from tests.tiny_runs import model_bytes

NODES, ROUNDS = 2, 4
pytestmark = pytest.mark.timeout(900)  # where others keep the machine busy


@pytest.fixture(scope="module")
def struck(tmp_path_factory):
    """A run whose node and coordinator are killed in round 2, and a client in round 3.

    Returns the folder, the configuration, and the checkpoints that the second coordinator found.
    """
    out = tmp_path_factory.mktemp("struck") / "run"
    config = settled(live.setting(NODES, ROUNDS), NODES, out)
    with started(NODES, out) as fleet:
        live.submit(fleet, config)
        live.training(fleet, 1, 2)
        fleet.processes.kill("node-1")
        (coordinator,) = live.coordinators_of(fleet)
        os.kill(coordinator, signal.SIGKILL)
        begun = RunFolder.open(out).checkpoints()
        fleet.start_node(1)
        run = live.submit(fleet, config)
        live.training(fleet, 1, 4)
        for client in live.clients_of(fleet, 1):
            os.kill(client, signal.SIGKILL)
        follow(fleet, run, config, Silent())
    return out, config, begun


def test_a_killed_node_finds_its_place_again_and_a_killed_coordinator_its_round(struck):
    out, _, begun = struck
    assert begun == [0, 1]
    assert [row["round"] for row in live.rounds(out)] == list(range(ROUNDS + 1))


def test_a_client_whose_process_is_killed_is_named_and_the_run_goes_on(struck):
    assert live.lost(struck[0]) == {(3, 1): "the client's process was ended by SIGKILL"}


def test_the_bits_are_those_of_a_simulated_run_that_lost_the_same(struck, tmp_path):
    out, config, _ = struck
    assert model_bytes(out) == live.replica(config, tmp_path / "replica", live.lost(out))
