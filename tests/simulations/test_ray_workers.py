"""Ray workers and Flower's own strategies: unmodified, the same bits, and no client lost."""

import re
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import ray
from flwr.app import ArrayRecord, Message, RecordDict
from flwr.serverapp import strategy as flower

from simulations import flower_internals as internals
from simulations.grid import CohortGrid
from simulations.parcels import enclosed, pack
from simulations.ray_workers import RayExecutor
from simulations.tasks import Task
from tests.simulations.test_grid import ask, kept
from tests.simulations.third_party_app import app

PATH = "tests.simulations.third_party_app:app"
CLIENTS = 6


@pytest.fixture(scope="module")
def grid() -> Iterator[CohortGrid]:
    with CohortGrid(clients=CLIENTS, executor=RayExecutor(PATH, workers=2)) as grid:
        yield grid


def start() -> ArrayRecord:
    return ArrayRecord([np.linspace(-1, 1, 50, dtype=np.float32).reshape(5, 10)])


STRATEGIES = {
    "FedAvg": lambda: flower.FedAvg(),
    "FedAdam": lambda: flower.FedAdam(),
    "Krum": lambda: flower.Krum(num_malicious_nodes=1),
    "private": lambda: flower.DifferentialPrivacyServerSideFixedClipping(
        flower.FedAvg(), noise_multiplier=0.1, clipping_norm=1.0, num_sampled_clients=CLIENTS
    ),
}


def two_rounds(grid: CohortGrid, name: str) -> np.ndarray:
    np.random.seed(0)
    result = STRATEGIES[name]().start(grid=grid, initial_arrays=start(), num_rounds=2, timeout=60)
    assert result.arrays is not None
    return result.arrays.to_numpy_ndarrays()[0]


@pytest.mark.parametrize("name", STRATEGIES)
def test_flowers_strategies_and_a_foreign_app_run_unmodified(grid, name):
    with CohortGrid(app, clients=CLIENTS) as inline:
        here = two_rounds(inline, name)
    there = two_rounds(grid, name)
    assert np.isfinite(here).all()
    assert not np.array_equal(here, start().to_numpy_ndarrays()[0])
    np.testing.assert_array_equal(here, there)


def test_clients_are_spread_over_workers_and_their_state_travels(grid):
    starting = list(grid.executor.pool.starting)
    if starting:  # else the first worker would do it all
        ray.wait(starting, num_returns=len(starting), timeout=60)
    replies = ask(grid, "count") and ask(grid, "count")
    assert [reply.content["metrics"]["n"] for reply in replies] == [2] * CLIENTS
    assert len({reply.content["metrics"]["pid"] for reply in replies}) == 2


def test_one_model_is_put_into_the_store_once(grid, monkeypatch):
    puts = []
    put = ray.put
    monkeypatch.setattr(ray, "put", lambda value: puts.append(value) or put(value))
    two_rounds(grid, "FedAvg")
    assert len(puts) == 4  # one for training and one for evaluation, in each of two rounds


def test_what_comes_back_from_workers_is_held_once(grid):
    ask(grid, "remember", number="3")
    ask(grid, "count")
    assert len(kept(grid)) == CLIENTS
    assert len({id(content) for content in kept(grid)}) == 1


def test_a_batch_is_sent_with_the_letters_and_models_that_it_names_alone(grid):
    nodes = list(grid.get_node_ids())[:3]
    first, second = start(), start()
    messages = [
        Message(RecordDict({"arrays": model}), node, "train")
        for model, node in zip((first, second, first), nodes, strict=True)
    ]
    config = {"lr": 0.1}
    tasks = [Task(i, CLIENTS, m, None, config) for i, m in enumerate(messages)]
    parcels, letters, models = pack(tasks)
    assert [parcel.letter for parcel in parcels] == [0, 1, 0]
    assert [letter.models for letter in letters] == [{"arrays": 0}, {"arrays": 1}]
    named = {0: letters[0], 1: letters[1]}
    assert enclosed(parcels, letters, models) == (named, {0: models[0], 1: models[1]})
    assert enclosed(parcels[1:2], letters, models) == ({1: letters[1]}, {1: models[1]})
    assert enclosed(parcels[::2], letters, models) == ({0: letters[0]}, {0: models[0]})


def test_clients_of_unlike_models_each_train_their_own(grid):
    models = [ArrayRecord([np.full(3, client, np.float32)]) for client in range(CLIENTS)]
    nodes = grid.get_node_ids()
    sent = [
        Message(RecordDict({"arrays": model}), node, "train")
        for model, node in zip(models, nodes, strict=True)
    ]
    replies = list(grid.send_and_receive(sent, timeout=60))
    trained = [reply.content["arrays"].to_numpy_ndarrays()[0].tolist() for reply in replies]
    assert trained == [[client] * 3 for client in range(CLIENTS)]  # each is at its number already


def test_the_pages_example_of_a_foreign_app_runs_as_it_stands(grid, tmp_path, monkeypatch):
    page = (Path(__file__).parents[2] / "docs/extending.md").read_text()
    blocks = {
        text.partition("\n")[0]: text for text in re.findall(r"```python\n(# .*?)```", page, re.S)
    }
    (tmp_path / "my_client.py").write_text(blocks["# my_client.py"])
    monkeypatch.syspath_prepend(tmp_path)
    scope = {}
    exec(blocks["# in this process"], scope)
    mean = np.mean(range(20)) * (1 - 0.5**3)  # half the way that is left in each of three rounds
    np.testing.assert_allclose(scope["result"].arrays.to_numpy_ndarrays()[0], np.full(5, mean))
    compile(blocks["# on Ray"], "on Ray", "exec")


def test_a_dead_worker_is_replaced_and_its_clients_are_asked_again(grid, tmp_path):
    replies = ask(grid, "die", marker=str(tmp_path / "died"))
    assert [reply.has_error() for reply in replies] == [False, True, False, False, False, False]
    assert replies[1].error.code == internals.CRASHED
    assert "client 1 lost its worker twice" in replies[1].error.reason
    assert not any(reply.has_error() for reply in ask(grid, "count"))
