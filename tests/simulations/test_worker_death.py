"""Ray workers that die, hang or are interrupted: only who is to blame is lost."""

import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import ray
from flwr.app import ConfigRecord, Message, RecordDict

from fedsparse.errors import GridError
from simulations import flower_internals as internals
from simulations.flower_engine import run_with_flower
from simulations.grid import CohortGrid
from simulations.ray_workers import RayExecutor

PATH = "tests.simulations.worker_app:app"
CLIENTS = 5
ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def grid() -> Iterator[CohortGrid]:
    with CohortGrid(clients=CLIENTS, executor=RayExecutor(PATH, workers=2)) as grid:
        yield grid


def ask(
    grid: CohortGrid, kind: str, client: int, timeout: float = 60, **config: str
) -> list[Message]:
    content = RecordDict({"config": ConfigRecord({"client": client, **config})})
    messages = [Message(content, node, f"query.{kind}") for node in grid.get_node_ids()]
    return list(grid.send_and_receive(messages, timeout=timeout))


def test_a_client_whose_worker_dies_once_is_asked_again(grid, tmp_path):
    replies = ask(grid, "exit_once", 1, marker=str(tmp_path / "died"))
    assert (tmp_path / "died").exists()
    assert [grid.client_of(r.metadata.src_node_id) for r in replies] == list(range(CLIENTS))
    assert not any(r.has_error() for r in replies)


def test_a_client_that_always_kills_its_worker_takes_only_itself_down(grid):
    grid.load_states({1: {"metrics": {"seen": {"n": 7}}}})
    replies = ask(grid, "exit_always", 1)
    assert [r.has_error() for r in replies] == [False, True, False, False, False]
    assert replies[1].error.code == internals.CRASHED
    assert replies[1].error.reason.startswith("client 1 lost its worker twice")
    assert {client: s["metrics"]["seen"]["n"] for client, s in grid.states().items()} == {
        0: 1,
        1: 7,
        2: 1,
        3: 1,
        4: 1,
    }


def test_a_worker_killed_from_outside_is_replaced(grid):
    ray.kill(grid.executor.pool.actors[0])
    assert not any(r.has_error() for r in ask(grid, "threads", 0))
    assert len(grid.executor.pool.actors) == 2


def test_a_reply_that_cannot_be_sent_is_an_error_reply(grid):
    replies = ask(grid, "unsendable", 3)
    assert [r.has_error() for r in replies] == [False, False, False, True, False]
    assert replies[3].error.code == internals.RAISED
    assert "client 3 cannot be sent" in replies[3].error.reason


def test_who_is_late_has_no_reply_and_the_next_round_has_all(grid):
    ask(grid, "threads", 0)  # both workers are up: only client 4 can be late
    replies = ask(grid, "sleep", 4, timeout=5)
    assert [grid.client_of(r.metadata.src_node_id) for r in replies] == [0, 1, 2, 3]
    assert len(ask(grid, "threads", 0)) == CLIENTS


def test_writing_into_a_message_does_not_depend_on_the_number_of_workers(grid):
    replies = ask(grid, "scribble", 0)
    assert [r.content["metrics"]["calls"] for r in replies] == [0] * CLIENTS


def test_workers_compute_on_one_thread(grid):
    replies = ask(grid, "threads", 0)
    assert [r.content["metrics"]["threads"] for r in replies] == [1] * CLIENTS


def test_workers_that_no_cpu_is_left_for_are_refused(grid):
    with pytest.raises(GridError, match=r"engine\.workers = 64"):
        RayExecutor(PATH, workers=64)


def test_flowers_engine_does_not_take_over_a_ray_that_runs(grid):
    with pytest.raises(GridError, match="Ray already runs"):
        run_with_flower(lambda grid, context: None, PATH, clients=1, workers=1)


INTERRUPTED = """
import sys
from tests.simulations.test_worker_death import CLIENTS, PATH, ask
from simulations.grid import CohortGrid
from simulations.ray_workers import RayExecutor

with CohortGrid(clients=CLIENTS, executor=RayExecutor(PATH, workers=2)) as grid:
    ask(grid, "exit_always", 1)
    grid.progress = lambda done, total: print(done, flush=True) if done == total - 1 else None
    try:
        ask(grid, "sleep", 4, timeout=600)
    finally:
        print("ended", flush=True)
"""


def test_ctrl_c_ends_the_run_and_stdout_holds_only_what_was_printed(tmp_path):
    driver = subprocess.Popen(
        [sys.executable, "-c", INTERRUPTED],
        cwd=ROOT,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    try:
        assert driver.stdout is not None
        first = driver.stdout.readline()
        os.killpg(driver.pid, signal.SIGINT)
        rest, errors = driver.communicate(timeout=180)
    finally:
        if driver.poll() is None:
            os.killpg(driver.pid, signal.SIGKILL)
            driver.wait()
    assert (first, rest) == ("4\n", "ended\n"), errors
    assert driver.returncode == -signal.SIGINT
    assert errors.rstrip().endswith("KeyboardInterrupt")
