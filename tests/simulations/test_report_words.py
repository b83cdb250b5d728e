"""What a report says in words is true of the run it is about, and what says nothing is left out."""

import numpy as np
import pytest
from report_page import Page
from run_folders import make_run

from simulations.report import write_report
from simulations.results import FLOWERS
from strategies.server_app import COMMAND

LINEAR = {
    "model": {"name": "linear"},
    "data": {"name": "synthetic-regression"},
    "strategy": {"name": "ldp-iht", "density": 0.1},
}
PERSONAL = {"accuracy_personal_mean": 0.625, "accuracy_personal_p10": 0.375}


def words(*runs):
    return Page(write_report([run.path for run in runs])).words


def test_a_linear_regression_has_coefficients_and_no_classes(tmp_path):
    run = make_run(
        tmp_path / "run",
        clients=70,
        classes=1,
        layers=("fc.weight",),
        settings=LINEAR,
        changes={"mask_change": lambda count: 0},
        tested=False,
    )
    page = Page(write_report([run.path]))
    assert "of the coefficients are kept" in page.words
    assert "The same coefficients were kept from the first round on." in page.words
    assert "Clients (1 or 2 a column)" in page.html
    for foreign in ("prunable weights", "pruned or grown", "main class", "of the clients"):
        assert foreign not in page.html.partition('id="configuration"')[0].partition("<main>")[2]


def test_clients_of_a_regression_may_do_worse_than_the_mean(tmp_path):
    run = make_run(tmp_path / "run", rounds=1, clients=2, classes=1, settings=LINEAR, tested=False)
    test = {"round": 1, "kind": "evaluate", "status": "ok"}
    rows = [{**test, "client": c, "accuracy": r} for c, r in enumerate((-0.5, 0.75))]
    unfinished = make_run(
        tmp_path / "open", rounds=2, done=1, clients=2, classes=1, settings=LINEAR
    )
    unfinished.append_clients(rows)
    page = Page(write_report([unfinished.path]))
    assert "R² of the clients" in page.words
    figure = page.figures["client-accuracy"]
    assert sum(figure["data"][0]["y"]) == 2
    assert figure["layout"]["xaxis"]["range"] == [-50, 100]
    assert "R² of the clients" not in words(run)


@pytest.mark.parametrize(
    ("strategy", "said"),
    [
        ("static", "epsilon at delta 0.001, of each client, for the model alone"),
        ("nldp", "epsilon at delta 0.001, of each sample, for all that its client sends"),
    ],
)
def test_epsilon_says_whom_it_protects(tmp_path, strategy, said):
    named = {"name": strategy, **({"density": 0.1} if strategy == "static" else {})}
    settings = {"strategy": named, "privacy": {"delta": 0.001}}
    run = make_run(tmp_path / "run", rounds=1, settings=settings, figures={"epsilon": 2.0})
    assert said in words(run)
    other = {"strategy": {"name": "ldp-iht"}, "privacy": {"delta": 0.001}}
    second = make_run(tmp_path / "other", rounds=1, settings=other, figures={"epsilon": 2.0})
    both = Page(write_report([run.path, second.path])).html
    assert ("of nldp and ldp-iht, of each sample" in both) == (strategy == "static")


def test_how_clients_do_is_not_said_of_models_of_their_own(tmp_path):
    said = words(make_run(tmp_path / "run", rounds=1, figures=PERSONAL))
    assert "Accuracy at clients 62.5 % mean over clients" in said
    assert "Accuracy at clients 37.5 % reached by all but the weakest tenth" in said
    assert "own models" not in said
    assert "clients that never train" not in said
    novel = make_run(tmp_path / "new", rounds=1, figures={**PERSONAL, "accuracy_novel_mean": 0.25})
    assert "25.0 % mean over the clients that never train" in words(novel)


def test_a_dense_run_has_no_mask_to_speak_of(tmp_path):
    run = make_run(tmp_path / "run", density=1.0, changes={"layer_density": lambda d: {"fc": 1.0}})
    said = words(run)
    assert "The layer keeps all its weights: this model is dense." in said
    assert "Mask change a round" not in said


def test_without_a_global_model_there_is_no_accuracy_of_it(tmp_path):
    nothing = {"accuracy": lambda a: None, "loss": lambda a: None}
    run = make_run(tmp_path / "run", changes=nothing, figures={"accuracy": None})
    said = words(run)
    assert "answered right" not in said
    assert "There is no global model to test; how those of clients do stands under Clients" in said
    assert "Mean loss a sample on the clients' own samples while they train." in said
    untested = make_run(tmp_path / "b", changes=nothing, figures={"accuracy": None}, tested=False)
    assert "stands under Clients" not in words(untested)


def test_data_at_nodes_are_not_said_to_be_missing(tmp_path):
    data = {"data": {"name": "nodes", "shape": "8", "classes": 4}}
    nothing = {"accuracy": lambda a: None, "loss": lambda a: None}
    run = make_run(tmp_path / "run", settings=data, changes=nothing, figures={"accuracy": None})
    (run.path / "partition.json").unlink()
    said = words(run)
    assert "The server has no test samples; how clients do stands under Clients" in said
    assert "Each client trains on what lies at its node" in said
    assert "on what lies at the nodes of 5 clients, with seed" in said


def test_a_run_on_flowers_nodes_is_not_said_to_resume_or_to_repeat_by_a_command(tmp_path):
    assert FLOWERS == COMMAND
    said = words(make_run(tmp_path / "run", done=2, command=COMMAND))
    assert "fedsparse resume" not in said
    assert f"start it on its nodes again with the folder {tmp_path / 'run'}" in said
    assert "exact command" not in said


def test_it_says_what_is_forgotten_who_attacks_and_which_rule_holds(tmp_path):
    settings = {
        "forget": {"clients": "2-3", "classes": "1"},
        "attack": {"clients": "0", "updates": "stale"},
        "robust": {"rule": "median"},
    }
    said = words(make_run(tmp_path / "run", rounds=1, settings=settings))
    assert "It is to forget clients 2,3 and class 1." in said
    assert "Client 0 attacks (stale)." in said
    assert "one by the rule median." in said
    plain = words(make_run(tmp_path / "plain", rounds=1))
    assert not any(word in plain for word in ("forget client", "attack (", "by the rule"))


def test_refused_replies_are_told_from_other_failures(tmp_path):
    run = make_run(tmp_path / "run", done=2)
    row = {"round": 1, "client": 0, "kind": "train", "status": "rejected", "reason": "too loud"}
    run.append_clients([row])
    assert "2 of 11 requests to clients failed (1 because the reply was refused)" in words(run)


def test_clients_that_hold_alike_are_counted_once(tmp_path):
    run = make_run(tmp_path / "run", rounds=1)
    run.write_json("partition.json", {"classes": 2, "counts": np.full((5, 2), 4), "kind": "iid"})
    assert "40 training samples on 5 clients: 8 each." in words(run)
