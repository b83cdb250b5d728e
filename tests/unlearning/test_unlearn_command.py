"""`fedsparse unlearn`: what it prints and leaves behind, and how it refuses."""

import json

import pytest

from fedsparse import data
from fedsparse.runs import RunFolder
from tests.command_line import error_line, invoke
from tests.tiny_runs import run
from tests.unlearning.test_exact import STATIC, hashes, same_model

SHORT = (*STATIC, "run.rounds=4", "strategy.density=0.5", "data.client_test_fraction=0.2")


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """Return a finished run, which nothing may change."""
    out = tmp_path_factory.mktemp("trained") / "run"
    run(out, *SHORT)
    before = hashes(out)
    yield out
    assert hashes(out) == before


def forget(*words) -> dict:
    done = invoke("unlearn", *words, "--json", "--quiet")
    assert done.exit_code == 0, done.stderr
    return json.loads(done.stdout)


def test_an_exact_rerun_is_certified_and_held_against_a_fresh_run(trained, tmp_path):
    out = tmp_path / "without"
    found = forget(trained, "--client", 2, "--retrain", "--references", 1, "--out", out)
    assert found["certificate"] == "exact-rerun"
    assert found["evidence"]["identical_to_retrained"] is True
    assert found["verdict"]["outcome"] == "exact"
    assert found["target"] == {"clients": "2"}
    assert found["parent"]["path"] == str(trained)
    assert found["method"]["first_influence"] == 1
    assert json.loads((out / "unlearning.json").read_text())["evidence"]["attacks"]
    assert "Exact" in (out / "unlearning_report.html").read_text()
    assert RunFolder.open(out).finished
    trials = tmp_path / "without-trials"
    assert sorted(p.name for p in trials.iterdir()) == ["retrained", "retrained-1"]
    other = RunFolder.open(trials / "retrained-1").config
    assert (other.run.seed, other.data.seed) == (1, 0)


def test_a_method_is_tried_with_several_strengths_and_the_closest_is_kept(trained, tmp_path):
    out = tmp_path / "forgot"
    words = (trained, "--class", 3, "--method", "l1-sparse", "--rounds", 2)
    found = forget(*words, "--retrain", "--out", out)
    assert found["certificate"] == "approximate"
    tried = found["search"]["tried"]
    assert len(tried) == 5
    best = min(tried, key=lambda row: row["gap"])
    assert found["search"]["chosen"] == best["value"] == found["method"]["gamma"]
    assert found["search"]["reference"] == "the retrained model"
    chosen = tmp_path / "forgot-trials" / f"l1-sparse-gamma-{best['value']:g}"
    assert same_model(out, chosen)
    assert found["evidence"]["measures"]["ua"]["unlearned"] == pytest.approx(
        best["measures"]["ua"], abs=1e-12
    )
    assert found["costs"]["search"]["rounds"] == 8
    assert forget(*words, "--retrain", "--out", out) == found  # nothing is left to do


def test_without_a_retrained_model_the_proxy_is_stated_and_nothing_is_claimed(trained, tmp_path):
    words = (trained, "--client", 1, "--method", "prune-finetune", "--rounds", 1)
    found = forget(*words, "--out", tmp_path / "forgot")
    assert "no retrained model" in found["search"]["reference"]
    assert found["verdict"]["outcome"] == "not-compared"


def test_a_strength_that_is_given_is_not_searched(trained, tmp_path):
    words = (trained, "--client", 1, "--method", "l1-sparse", "--set", "strategy.gamma=0.02")
    found = forget(*words, "--rounds", 1, "--out", tmp_path / "forgot")
    assert found["search"] is None
    assert found["method"]["gamma"] == 0.02


def test_auto_keeps_the_best_of_a_few_methods(trained, tmp_path):
    words = (trained, "--client", 1, "--method", "auto", "--rounds", 1, "--retrain")
    found = forget(*words, "--out", tmp_path / "forgot")
    methods = {row["method"] for row in found["search"]["tried"]}
    assert methods == {"fine-tuning", "l1-sparse", "prune-finetune"}
    best = min(found["search"]["tried"], key=lambda row: row["gap"])
    assert found["search"]["chosen"] == best["value"]


def test_a_backdoor_is_gone_with_the_client_that_planted_it(tmp_path):
    attack = ("attack.clients=0", "attack.label=7", "attack.fraction=0.7")
    run(tmp_path / "run", *SHORT, *attack, "strategy.density=1.0", "run.rounds=8")
    found = forget(tmp_path / "run", "--backdoor", "--out", tmp_path / "without")
    success = found["evidence"]["measures"]["backdoor"]
    assert success["original"] > 0.5
    assert success["unlearned"] < 0.2
    assert found["target"] == {"clients": "0"}


def test_it_says_in_words_what_came_of_it(trained, tmp_path):
    done = invoke("unlearn", trained, "--client", 2, "--out", tmp_path / "without", "--quiet")
    assert done.exit_code == 0
    for said in ("certificate  exact-rerun", "verdict", "Unlearning accuracy (UA)", "page"):
        assert said in done.stdout


def mistakes(trained, tmp_path):
    ids = data.of(RunFolder.open(trained).config)
    empty, twice, foreign = (tmp_path / name for name in ("empty", "twice", "foreign"))
    empty.write_text("\n")
    twice.write_text(f"{ids.ids(0)[0]}\n{ids.ids(0)[0]}\n")
    foreign.write_text("999999\n")
    return {
        "nothing named": ((), "name what is to be forgotten"),
        "unknown client": (("--client", 9), "there is no client 9; the run's are 0 to 3"),
        "unknown class": (("--class", 10), "names class 10; the classes are 0 to 9"),
        "everyone": (tuple(w for c in range(4) for w in ("--client", c)), "leaves no client"),
        "no sample": (("--samples", empty), "names no sample"),
        "a sample twice": (("--samples", twice), "2 times"),
        "a foreign sample": (("--samples", foreign), "belongs to no client"),
        "no file": (("--samples", tmp_path / "gone"), "no file"),
        "unknown method": (("--client", 1, "--method", "l1-spars"), "did you mean 'l1-sparse'?"),
        "no backdoor": (("--backdoor",), "no client of this run planted one"),
        "not contacted": (("--client", 1, "--method", "neggrad"), "is not contacted"),
        "rounds": (("--client", 1, "--rounds", 3), "--rounds"),
        "bad key": (
            ("--client", 1, "--method", "l1-sparse", "--set", "strategy.gama=1"),
            "did you mean 'strategy.gamma'?",
        ),
        "another learning rate": (
            ("--client", 1, "--set", "client.lr=0.1"),
            "an exact rerun has the run's own settings",
        ),
        "another target": (
            ("--client", 1, "--method", "fine-tuning", "--set", "forget.clients=2"),
            "the target and --method say this",
        ),
        "another method": (
            ("--class", 1, "--method", "fine-tuning", "--set", "strategy.name=l1-sparse"),
            "the target and --method say this",
        ),
        "the run itself": (("--client", 1, "--out", trained), "never changed"),
    }


def test_mistakes_are_one_line_and_leave_nothing(trained, tmp_path):
    for name, (words, said) in mistakes(trained, tmp_path).items():
        place = () if "--out" in words else ("--out", tmp_path / "out")
        assert said in error_line(invoke("unlearn", trained, *words, *place)), name
        assert not (tmp_path / "out").exists(), name


def test_a_folder_of_another_request_is_left_alone(trained, tmp_path):
    out = tmp_path / "forgot"
    tuned = (trained, "--client", 1, "--method", "fine-tuning", "--rounds", 1, "--out", out)
    forget(*tuned)
    before = hashes(out)
    other = (trained, "--client", 1, "--method", "l1-sparse", "--rounds", 1, "--out", out)
    assert "choose another --out" in error_line(invoke("unlearn", *other))
    wrong = (trained, "--client", 2, "--method", "l1-sparse", "--rounds", 1, "--out", out)
    assert "holds another run" in error_line(invoke("unlearn", *wrong))
    assert hashes(out) == before


def test_an_empty_folder_may_be_there_already(trained, tmp_path):
    (tmp_path / "forgot").mkdir()
    words = (trained, "--client", 1, "--method", "prune-finetune", "--rounds", 1)
    assert forget(*words, "--out", tmp_path / "forgot")["certificate"] == "approximate"


def test_after_a_client_a_class_can_still_be_forgotten_by_those_who_hold_it(trained, tmp_path):
    forget(trained, "--client", 2, "--out", tmp_path / "first")
    words = (tmp_path / "first", "--class", 3, "--method", "neggrad", "--rounds", 1)
    found = forget(*words, "--set", "strategy.forget_weight=0.1", "--out", tmp_path / "second")
    assert found["target"] == {"classes": "3"}
    assert RunFolder.open(tmp_path / "second").config.forget.clients == "2"


def test_a_run_that_is_not_finished_is_refused(tmp_path, monkeypatch):
    with monkeypatch.context() as patched:
        patched.setattr(RunFolder, "finish", interrupted)
        with pytest.raises(KeyboardInterrupt):
            run(tmp_path / "run", *SHORT)
    assert "is not finished" in error_line(invoke("unlearn", tmp_path / "run", "--client", 1))


def interrupted(*arguments):
    raise KeyboardInterrupt
