"""What clients keep of their own models: little on the disk, the same bits on every engine."""

import pytest

from fedsparse.errors import ConfigError, RunFolderError
from fedsparse.runs import RunFolder
from simulations.experiment import resume_experiment
from simulations.grid import CohortGrid
from tests.tiny_runs import model_bytes, rows, run, tiny

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
    plain, seen = RunFolder.append_metrics, []

    def interrupted(self, row):
        seen.append(row)
        if len(seen) == 3:
            raise KeyboardInterrupt
        return plain(self, row)

    monkeypatch.setattr(RunFolder, "append_metrics", interrupted)
    with pytest.raises(KeyboardInterrupt):
        run(out, *GATED, "run.rounds=4")
    monkeypatch.setattr(RunFolder, "append_metrics", plain)
    monkeypatch.delattr(CohortGrid, "restore_states")
    with pytest.raises(RunFolderError, match="have models of their own, which this engine"):
        resume_experiment(out)


@pytest.mark.parametrize("name", ["pfedgate", "ditto", "local", "sub-fedavg"])
def test_an_optimizer_that_would_be_lost_each_round_is_refused(tmp_path, name):
    density = ("strategy.density=0.5",) if name in ("pfedgate", "sub-fedavg") else ()
    with pytest.raises(ConfigError, match=r"client\.keep_optimizer: clients of"):
        run(tmp_path / "run", f"strategy.name={name}", *density, "client.keep_optimizer=true")


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
