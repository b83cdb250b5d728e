"""`fedsparse personalize`: the models that clients of a finished run would use, on disk."""

import json
import shutil

import numpy as np
import pytest
import safetensors.numpy

from fedsparse.runs import RunFolder
from fedsparse.sparsity import Mask
from simulations.grid import CohortGrid
from tests.command_line import error_line, invoke
from tests.tiny_runs import run

GATED = (
    "strategy.name=pfedgate",
    "strategy.density=0.5",
    "run.rounds=3",
    "fleet.clients=5",
    "fleet.novel_clients=1",
    "data.client_test_fraction=0.3",
)


@pytest.fixture(scope="module")
def gated(tmp_path_factory):
    """Return a finished run of pfedgate whose last client never trained."""
    out = tmp_path_factory.mktemp("gated") / "run"
    run(out, *GATED)
    return out


def files(folder):
    return {
        p: p.read_bytes() for p in folder.rglob("*") if p.is_file() and "personal" not in p.parts
    }


def test_every_clients_model_is_written_within_its_budget_and_the_run_is_left_as_it_was(gated):
    before = files(gated)
    done = invoke("personalize", gated, "--json")
    assert done.exit_code == 0, done.stderr
    found = json.loads(done.stdout)
    assert [row["client"] for row in found["clients"]] == [0, 1, 2, 3, 4]
    for row in found["clients"]:
        place = gated / "personal" / str(row["client"])
        assert row["folder"] == str(place)
        state = safetensors.numpy.load_file(place / "model.safetensors")
        mask = Mask.load(place / "mask.safetensors")
        assert json.loads((place / "personal.json").read_text()) == row
        assert row["density"] == mask.density <= 0.5 + 0.01  # biases lie in blocks, too
        for name, kept in mask.items():
            assert not state[name][~kept].any()
    assert files(gated) == before
    assert (
        json.loads((gated / "personal" / "personal.json").read_text())["clients"]
        == found["clients"]
    )


def test_models_are_those_that_clients_tested_at_the_end_of_the_run(gated):
    tested = {
        row["client"]: row["accuracy"]
        for row in RunFolder.open(gated).clients()
        if row["kind"] == "evaluate"
    }
    made = json.loads(invoke("personalize", gated, "--json").stdout)
    assert {row["client"]: row["accuracy_personal"] for row in made["clients"]} == tested
    summary = RunFolder.open(gated).summary()
    novel = json.loads(invoke("personalize", gated, "--novel", "--json").stdout)
    assert novel["accuracy_personal_mean"] == summary["accuracy_novel_mean"]
    assert [row["client"] for row in novel["clients"]] == [4]


def test_a_novel_client_pays_for_its_gate_and_one_that_trained_does_not(gated):
    rows = json.loads(invoke("personalize", gated, "--json").stdout)["clients"]
    assert [row["flops"] > 0 for row in rows] == [False] * 4 + [True]
    more = invoke("personalize", gated, "--novel", "--gate-epochs", "3", "--json")
    (again,) = json.loads(more.stdout)["clients"]
    assert again["flops"] == pytest.approx(3 * rows[4]["flops"], rel=0.05)
    whole = invoke("personalize", gated, "--clients", "0", "--epochs", "2", "--json")
    (tuned,) = json.loads(whole.stdout)["clients"]
    assert tuned["flops"] > 0


def test_fine_tuning_a_plain_run_is_its_column_and_its_model(tmp_path):
    out = tmp_path / "run"
    run(
        out, "strategy.name=finetune", "strategy.finetune_epochs=2", "data.client_test_fraction=0.3"
    )
    rows = json.loads(invoke("personalize", out, "--json").stdout)["clients"]
    for row in rows:
        assert row["accuracy_personal"] == row["accuracy_finetuned"]
    state = safetensors.numpy.load_file(out / "personal" / "0" / "model.safetensors")
    whole = safetensors.numpy.load_file(out / "model.safetensors")
    assert any(not np.array_equal(state[name], whole[name]) for name in whole)
    assert not (out / "personal" / "0" / "mask.safetensors").exists()


def test_the_table_names_each_client_and_the_mean(gated):
    done = invoke("personalize", gated, "--clients", "3,1", "--quiet")
    lines = done.stdout.splitlines()
    assert lines[0].split() == ["client", "samples", "density", "personal", "global", "fine-tuned"]
    assert [line.split()[0] for line in lines[1:4]] == ["3", "1", "mean"]
    assert done.stderr == ""


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (("--clients", "7"), "there is no client 7; the run's are 0 to 4"),
        (("--clients", "a"), "--clients 'a' is no list of numbers such as 3,7"),
        (("--clients", "1", "--novel"), "--clients and --novel: give one"),
        (("--epochs", "-1"), "-1"),
    ],
)
def test_a_mistake_is_one_line(gated, options, said):
    assert said in error_line(invoke("personalize", gated, *options))


def test_what_a_run_does_not_have_is_told(tmp_path):
    run(tmp_path / "plain", "run.rounds=1")
    for options, said in (
        (("--novel",), "the run held no clients out"),
        (("--gate-epochs", "1"), "clients of 'fedtiny' have no gates"),
    ):
        assert said in error_line(invoke("personalize", tmp_path / "plain", *options))
    line = error_line(invoke("personalize", tmp_path / "plain", "--epochs", "2"))
    assert "clients of 'fedtiny' do not train before use" in line
    (tmp_path / "plain" / "summary.json").unlink()
    assert "is not finished" in error_line(invoke("personalize", tmp_path / "plain"))
    assert "nowhere" in error_line(invoke("personalize", tmp_path / "nowhere"))
    run(tmp_path / "flower", "strategy.name=flwr.serverapp.strategy:FedAvg", "run.rounds=1")
    assert "knows no personal models" in error_line(invoke("personalize", tmp_path / "flower"))


def test_damaged_states_of_clients_are_told(gated, tmp_path):
    shutil.copytree(gated, tmp_path / "copy")
    (tmp_path / "copy" / "clients.sqlite").unlink()
    line = error_line(invoke("personalize", tmp_path / "copy"))
    assert "is missing, which holds the states of 4 clients" in line


def test_a_run_whose_engine_gives_no_state_back_is_refused(tmp_path, monkeypatch):
    out = tmp_path / "run"
    monkeypatch.delattr(CohortGrid, "commit_states")
    run(out, "strategy.name=fedper", "run.rounds=1")
    assert "does not hold what its clients keep" in error_line(invoke("personalize", out))


def test_a_mixture_is_no_single_model(tmp_path):
    run(tmp_path / "run", "strategy.name=fedem", "run.rounds=1")
    assert "has no single model" in error_line(invoke("personalize", tmp_path / "run"))
