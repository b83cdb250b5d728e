"""On an accelerator the clients of one process train at once; here the CPU stands for it."""

import numpy as np
import pytest
import torch

from clients import cohort as clients_cohort
from clients.client_app import app
from fedsparse.training import cohort
from simulations.grid import CohortGrid, InlineExecutor
from strategies import foreign
from strategies.addressing import Directory, MeteredGrid
from strategies.task import Task
from tests.tiny_runs import tiny

SETTINGS = ("strategy.name=fedavg", "model.name=mlp", "client.backend=torch", "client.lr=0.01")


def after_a_round(*assignments):
    """Return the model that one round over the grid makes, and what its clients failed by."""
    task = Task.of(tiny(*SETTINGS, *assignments))
    strategy = foreign.make(task)
    clients = task.config.fleet.clients
    with CohortGrid(clients=clients, executor=InlineExecutor(app)) as inner:
        strategy.directory = Directory.of(inner, clients)
        grid = MeteredGrid(inner, strategy.directory)
        strategy.prepare(grid)
        asked = list(strategy.configure_train(1, strategy.arrays(), {}, grid))
        strategy.learn(1, grid.send_and_receive(asked))
    return strategy.state, strategy.failures


@pytest.fixture
def asked_at_once(monkeypatch):
    """Let the CPU be the accelerator; return how many clients each call trained."""
    monkeypatch.setattr(cohort, "device_of", lambda engine: torch.device("cpu"))
    calls = []

    def train_many(messages, contexts, real=clients_cohort.train_many):
        calls.append(len(messages))
        return real(messages, contexts)

    monkeypatch.setattr(clients_cohort, "train_many", train_many)
    return calls


def test_all_clients_of_a_round_are_trained_in_one_call(asked_at_once):
    alone, _ = after_a_round()
    assert asked_at_once == []
    together, failures = after_a_round("engine.device=cuda")
    assert len(asked_at_once) == 1
    assert asked_at_once[0] > 1
    assert not failures
    for name, value in alone.items():
        np.testing.assert_allclose(together[name], value, rtol=1e-4, atol=1e-5)


def test_a_client_that_diverges_fails_alone(asked_at_once):
    with pytest.raises(Exception, match="replied"):
        after_a_round("engine.device=cuda", "client.lr=1e30")
