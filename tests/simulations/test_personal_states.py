"""What clients keep of their own models: little on the disk, the same bits on every engine."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import nn

from fedsparse import devices
from fedsparse.errors import ConfigError, RunFolderError
from fedsparse.messages import Plan
from fedsparse.runs import RunFolder
from simulations.enrolment import Enrolment
from simulations.experiment import resume_experiment
from simulations.grid import CohortGrid
from strategies import foreign
from strategies.task import Task
from tests.command_line import error_line, invoke, tiny_toml
from tests.device_files import fleet_file
from tests.tiny_runs import model_bytes, rows, run, run_and_interrupt, tiny

PRUNED = (
    "strategy.name=sub-fedavg",
    "strategy.density=0.05",
    "strategy.prune_rate=0.95",
    "strategy.accuracy_threshold=0",
    "strategy.distance_threshold=0",
    "model.name=mlp",
    "model.width=4",
    "client.local_epochs=2",
    "run.rounds=1",
    "run.keep_checkpoints=1",
    "fleet.clients=20",
    "data.min_per_client=8",
)
GATED = (
    "strategy.name=pfedgate",
    "strategy.density=0.5",
    "run.rounds=2",
    "fleet.clients=6",
    "fleet.clients_per_round=3",
    "data.client_test_fraction=0.3",
)


def test_personal_models_at_five_per_cent_take_less_than_an_eighth_of_dense_ones(tmp_path):
    run(tmp_path / "run", *PRUNED)
    dense = 4 * (64 * 256 + 256 + 256 * 256 + 256 + 256 * 10 + 10)
    kept = (tmp_path / "run" / "clients.sqlite").stat().st_size / 20
    assert 0.05 * dense < kept <= 0.12 * dense


@pytest.fixture(scope="module")
def inline(tmp_path_factory):
    out = tmp_path_factory.mktemp("inline") / "run"
    run(out, *GATED)
    return out


@pytest.mark.parametrize("engine", ["ray", "flower"])
def test_gates_and_models_are_the_same_on_every_engine(inline, tmp_path, engine):
    out = tmp_path / "run"
    run(out, *GATED, f"engine.name={engine}", "engine.workers=2")
    assert model_bytes(out) == model_bytes(inline)
    assert rows(out) == rows(inline)
    assert RunFolder.open(out).clients() == RunFolder.open(inline).clients()


def test_where_an_engine_gives_no_state_back_a_run_is_not_gone_on_with(tmp_path, monkeypatch):
    out = tmp_path / "run"
    run_and_interrupt(monkeypatch, out, 3, *GATED, "run.rounds=4")
    monkeypatch.delattr(CohortGrid, "restore_states")
    with pytest.raises(RunFolderError, match="have models of their own, which this engine"):
        resume_experiment(out)


@pytest.mark.parametrize("name", ["pfedgate", "ditto", "local", "sub-fedavg", "heterofl"])
def test_an_optimizer_that_would_be_lost_each_round_is_refused(tmp_path, name):
    density = ("strategy.density=0.5",) if name in ("pfedgate", "sub-fedavg") else ()
    density += ("strategy.own_labels=true",) if name == "heterofl" else ()
    with pytest.raises(ConfigError, match=r"client\.keep_optimizer: clients of"):
        run(tmp_path / "run", f"strategy.name={name}", *density, "client.keep_optimizer=true")


def test_an_accelerator_that_would_not_be_used_is_refused():
    task = Task.of(tiny("strategy.name=ditto"))
    config = task.config.model_copy(
        update={"engine": task.config.engine.model_copy(update={"device": "cuda"})}
    )
    with pytest.raises(ConfigError, match="clients of 'ditto' train on the CPU"):
        foreign.make(replace(task, config=config))


def test_novel_clients_are_never_drawn_and_always_tested(tmp_path):
    out = tmp_path / "run"
    done = run(out, *GATED, "fleet.novel_clients=2", "run.rounds=4")
    told = RunFolder.open(out).clients()
    assert {row["client"] for row in told if row["kind"] == "train"} == {0, 1, 2, 3}
    assert {row["client"] for row in told if row["kind"] == "evaluate"} == set(range(6))
    novel = [r for r in told if r["kind"] == "evaluate" and r["client"] > 3]
    samples = sum(row["examples"] for row in novel)
    mean = sum(row["accuracy"] * row["examples"] for row in novel) / samples
    assert done["accuracy_novel_mean"] == pytest.approx(mean)


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        (("fleet.novel_clients=4",), r"leaves none of fleet\.clients = 4 to train"),
        (("fleet.novel_clients=2", "fleet.clients_per_round=3"), "more than the 2 clients"),
    ],
)
def test_too_many_novel_clients_are_refused(settings, said):
    with pytest.raises(ConfigError, match=said):
        tiny(*settings)


def test_a_strategy_that_draws_by_itself_knows_no_novel_clients(tmp_path):
    with pytest.raises(ConfigError, match="draws from all nodes by itself"):
        run(
            tmp_path / "run",
            "strategy.name=flwr.serverapp.strategy:FedAvg",
            "fleet.novel_clients=1",
        )


@pytest.mark.parametrize("name", ["local", "fedper", "dispfl"])
def test_a_target_that_no_global_model_could_reach_is_refused(tmp_path, name):
    with pytest.raises(ConfigError, match="has no global model that could reach it"):
        run(tmp_path / "run", f"strategy.name={name}", "run.target_accuracy=0.5")


def test_a_search_for_what_no_strategy_measures_is_refused(tmp_path):
    config = tiny_toml(tmp_path)
    asked = ("--strategies", "fedper", "--trials", 1, "--space", "client.lr=0.1:0.2")
    line = error_line(invoke("tune", config, *asked, "--metric", "accuracy"))
    assert line == (
        "--metric accuracy: 'fedper' has no global model to test; use --metric client_accuracy"
    )


def test_devices_of_clients_that_never_train_hold_nothing_up(tmp_path):
    """Three small devices train, three large ones are novel: nobody holds the training."""
    kinds = [{"share": 1.0, "memory_bytes": 1e4}]
    fleet = fleet_file(tmp_path, *kinds)
    common = (f"fleet.profile={fleet}", "fleet.clients=6", "strategy.name=fedavg")
    with pytest.raises(ConfigError, match="no client holds the training"):
        run(tmp_path / "all", *common)
    task = Task.of(tiny(*common, "fleet.novel_clients=3"))
    enrolment = Enrolment(task, devices.load(task.config.fleet, 0))
    assert enrolment.refused(Plan(), None, frozenset()) == 3


def dropping(input_shape, classes, width):
    """A model that draws random numbers while it trains."""
    inputs = int(np.prod(input_shape))
    return nn.Sequential(
        nn.Flatten(), nn.Dropout(0.3), nn.Linear(inputs, 16), nn.Linear(16, classes)
    )


@pytest.mark.parametrize("name", ["pfedgate", "ditto", "fedem"])
def test_a_model_that_draws_gives_the_same_bits_each_time(tmp_path, name):
    settings = (
        f"strategy.name={name}",
        *(("strategy.density=0.5",) if name == "pfedgate" else ()),
        f"model.name={__name__}:dropping",
        "client.backend=torch",
        "run.rounds=1",
    )
    for out in ("one", "two"):
        torch.rand(3)  # what others drew before must not matter
        run(tmp_path / out, *settings)
    assert model_bytes(tmp_path / "one") == model_bytes(tmp_path / "two")
