"""A Ray cluster of several nodes: what is lost with one costs time, never a bit of the result."""

import json
import shlex
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
import ray
from ray.cluster_utils import Cluster

from fedsparse.errors import GridError, TooFewRepliesError
from simulations import experiment, worker_pool
from simulations.grid import CohortGrid
from simulations.ray_workers import RayExecutor
from tests.command_line import invoke, tiny_toml
from tests.simulations.test_worker_death import CLIENTS, PATH, ask
from tests.simulations.worker_app import EVERYBODY
from tests.tiny_runs import model_bytes, rows, run

FRAIL = "tests.simulations.frail_app:app"
NODE = {"num_cpus": 1, "object_store_memory": 80 * 2**20}


class Field:
    """A cluster of a head without CPUs and two nodes of one, and what is planned for clients."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        head = {**NODE, "num_cpus": 0, "include_dashboard": False}
        self.cluster = Cluster(initialize_head=True, head_node_args=head)
        self.nodes = [self.cluster.add_node(**NODE) for _ in range(2)]

    @property
    def address(self) -> str:
        return str(self.cluster.address)

    def plan(self, kind: str, round_number: int = 2, clients: tuple[int, ...] = (1,), **more: bool):
        """Say what happens to which clients in which round; nothing has happened yet."""
        for name in ("done", "node"):
            (self.folder / name).unlink(missing_ok=True)
        plan = {"kind": kind, "round": round_number, "clients": clients, **more}
        (self.folder / "plan.json").write_text(json.dumps(plan))

    def lose(self, node_id: str) -> None:
        """Kill every process of a node at once."""
        lost = next(node for node in self.nodes if node.node_id == node_id)
        self.nodes.remove(lost)
        self.cluster.remove_node(lost, allow_graceful=False)

    def fill(self) -> None:
        """Bring the cluster back to two nodes."""
        while len(self.nodes) < 2:
            self.nodes.append(self.cluster.add_node(**NODE))


@pytest.fixture(scope="module")
def field(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Field]:
    folder = tmp_path_factory.mktemp("frail")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("FRAIL_FOLDER", str(folder))
        patch.setattr(experiment, "CLIENT_APP", FRAIL)
        field = Field(folder)
        try:
            yield field
        finally:
            ray.shutdown()
            field.cluster.shutdown()


@pytest.fixture(scope="module")
def sound(field: Field, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return the folder of the same run where nothing happens, in this process."""
    field.plan("nothing", 0)
    out = tmp_path_factory.mktemp("sound") / "run"
    run(out)
    return out


def run_on(field: Field, out: Path, workers: int = 2) -> None:
    run(out, "engine.name=ray", f"engine.workers={workers}", f"engine.ray_address={field.address}")


def check_same(out: Path, sound: Path) -> None:
    assert model_bytes(out) == model_bytes(sound)
    assert (out / "mask.safetensors").read_bytes() == (sound / "mask.safetensors").read_bytes()
    assert rows(out) == rows(sound)


def test_a_run_on_the_address_of_a_cluster_repeats_by_its_command(field, tmp_path):
    field.plan("nothing", 0)
    out = tmp_path / "run"
    options = ("--ray-address", field.address, "--seed", 3, "--out", out)
    result = invoke("run", tiny_toml(tmp_path), *options, "--quiet", "--no-report")
    assert result.exit_code == 0, result.output
    record = json.loads((out / "run.json").read_text())
    words = shlex.split(record["command"])
    assert words[words.index("--ray-address") + 1] == field.address
    assert 'name = "ray"' in (out / "config.toml").read_text()


def test_clients_of_a_node_that_is_lost_in_mid_round_are_asked_elsewhere(field, sound, tmp_path):
    field.plan("wait")

    def lose_where_client_1_waits() -> None:
        while not (field.folder / "done").exists():
            time.sleep(0.05)
        field.lose((field.folder / "node").read_text())

    watch = threading.Thread(target=lose_where_client_1_waits, daemon=True)
    watch.start()
    run_on(field, tmp_path / "run")
    watch.join()
    assert len(field.nodes) == 1
    check_same(tmp_path / "run", sound)


@pytest.mark.parametrize("kind", ["kill", "memory"])
def test_a_worker_that_is_killed_or_has_no_memory_once_costs_no_bit(field, sound, tmp_path, kind):
    field.fill()
    field.plan(kind)
    run_on(field, tmp_path / "run", workers=3)  # one more than there are CPUs
    assert (field.folder / "done").exists()
    check_same(tmp_path / "run", sound)


def test_a_run_whose_workers_always_die_ends_with_a_count_and_a_reason(field, tmp_path):
    field.fill()
    field.plan("memory", 1, clients=(0, 1, 2), always=True)
    with pytest.raises(TooFewRepliesError, match=r"client . (lost|ran out)") as caught:
        run_on(field, tmp_path / "run")
    assert "1 of 4" in str(caught.value)


def test_without_a_node_the_run_ends_and_with_one_again_it_goes_on(field, monkeypatch):
    field.fill()
    executor = RayExecutor(PATH, workers=2, address=field.address)
    with CohortGrid(clients=CLIENTS, executor=executor) as grid:
        assert not any(reply.has_error() for reply in ask(grid, "threads", 0))
        for node in list(field.nodes):
            field.lose(node.node_id)
        monkeypatch.setattr(worker_pool, "ROOM_SECONDS", 3.0)
        with pytest.raises(GridError, match=r"no worker is left.*`fedsparse resume`"):
            ask(grid, "sleep", EVERYBODY)  # so that nobody has answered before its node ends
        field.fill()
        monkeypatch.setattr(worker_pool, "ROOM_SECONDS", 120.0)
        assert not any(reply.has_error() for reply in ask(grid, "threads", 0, timeout=120))
