"""`fedsparse tune`: equal trials, the same draws whatever happens, and no look at the test set."""

import json
import math
import signal
import sys

import pytest
from run_folders import make_run
from test_sweep import identity, toml, wait_for_run, wait_until_free

from fedsparse.config import override, resolve
from fedsparse.errors import ConfigError
from simulations.tuning import Search, Space, Trial, best_of, measured
from tests.command_line import error_line, invoke, spawn
from tests.tiny_runs import BASE

pytest.importorskip("optuna")

SPACES = ("--space", "client.lr=log:0.01:0.2", "--space", "client.momentum=choice:0,0.9")


def search(*strategies, spaces=("client.lr=0.01:0.1",), metric="client_accuracy", assignments=()):
    return Search(
        tree=BASE,
        source=("tiny.toml",),
        assignments=tuple(assignments),
        strategies=strategies,
        spaces=tuple(Space.parse(text) for text in spaces),
        metric=metric,
        seeds=(0,),
        engine="inline",
    )


@pytest.mark.parametrize(
    ("text", "space"),
    [
        ("client.lr=log:0.005:0.5", Space("client.lr", 0.005, 0.5, log=True)),
        ("strategy.alpha=0.1:0.5", Space("strategy.alpha", 0.1, 0.5)),
        ("client.local_epochs=1:4", Space("client.local_epochs", 1, 4)),
        ("client.momentum=choice: 0, 0.9", Space("client.momentum", choices=("0", "0.9"))),
    ],
)
def test_spaces(text, space):
    assert Space.parse(text) == space
    assert space.whole == (text == "client.local_epochs=1:4" or bool(space.choices))


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("client.lr", "is not SECTION.KEY=RANGE"),
        ("lr=0:1", "is not SECTION.KEY=RANGE"),
        ("client.lr=0.1", "is no range"),
        ("client.lr=a:b", "is no range"),
        ("client.lr=0:inf", "is no range"),
        ("client.lr=0.5:0.1", "LOW < HIGH"),
        ("client.lr=log:0:0.1", "0 < LOW < HIGH"),
        ("client.lr=choice:0.1", "two different choices"),
        ("client.lr=choice:0.1,", "two different choices"),
        ("run.seed=0:5", "use --seeds"),
        ("strategy.name=choice:a,b", "use --strategies"),
    ],
)
def test_what_is_no_space_is_refused(text, said):
    with pytest.raises(ConfigError, match=said):
        Space.parse(text)


def test_drawn_numbers_are_rounded_within_their_bounds():
    space = Space.parse("client.lr=0.012344:0.543267")
    assert space.assignment(0.1234567) == "client.lr=0.1235"
    assert space.assignment(0.0123441) == "client.lr=0.012344"
    assert space.assignment(0.5432668) == "client.lr=0.543267"
    assert Space.parse("client.local_epochs=1:4").assignment(3) == "client.local_epochs=3"


def test_a_key_of_one_strategy_is_for_it_alone():
    alpha, density = Space.parse("strategy.alpha=0.1:0.5"), Space.parse("strategy.density=0.1:0.5")
    assert [alpha.applies(name) for name in ("fedtiny", "static", "fedavg")] == [True, False, False]
    assert [density.applies(name) for name in ("fedtiny", "fedavg")] == [True, False]


@pytest.mark.parametrize(
    ("asked", "said"),
    [
        (search("static", spaces=["client.lr=0.0:0.1"]), "'client.lr=0.0' for static: client.lr"),
        (search("static", spaces=["client.lrr=0.1:0.2"]), "did you mean 'client.lr'"),
        (search("fedavg", "static", spaces=["strategy.alpha=0.1:0.2"]), "for fedavg: unknown key"),
        (
            search("fedavg", "fedtiny", spaces=["strategy.alpha=0.1:0.2"]),
            "fedavg has none of the keys to tune: strategy.alpha",
        ),
        (search("static", spaces=["client.lr=0.1:0.2"] * 2), "client.lr stands there twice"),
        (search("static", metric="bytes_to_target"), "needs a target"),
        (
            search("static", metric="joules_to_target", assignments=["run.target_accuracy=0.5"]),
            "needs simulated devices",
        ),
        (search("static", assignments=["data.client_test_fraction=0"]), "use --metric accuracy"),
    ],
)
def test_what_no_trial_could_do_is_refused_before_the_first(asked, said):
    with pytest.raises(ConfigError, match=said):
        asked.check()


def test_a_search_that_can_be_done_is_not_refused():
    search("fedavg", "fedtiny", spaces=["client.lr=0.1:0.2", "strategy.alpha=0.1:0.2"]).check()


def test_the_metric_is_the_clients_own_samples_weighted_by_how_many(tmp_path):
    run = make_run(tmp_path / "run", done=1)
    told = {"round": 1, "kind": "evaluate", "status": "ok"}
    run.append_clients(
        [
            {**told, "client": 0, "examples": 30, "accuracy": 0.5},
            {**told, "client": 1, "examples": 10, "accuracy": 0.9},
            {**told, "client": 2, "examples": 50, "accuracy": 1.0, "status": "failed"},
        ]
    )
    assert measured(run, "client_accuracy") == pytest.approx((30 * 0.5 + 10 * 0.9) / 40)


def test_a_target_that_was_not_reached_is_infinitely_far(tmp_path):
    run = make_run(tmp_path / "run")
    assert measured(run, "bytes_to_target") == math.inf
    assert measured(run, "accuracy") == run.summary()["accuracy"]
    assert measured(make_run(tmp_path / "other"), "client_accuracy") is None


def test_the_best_is_the_first_of_equals_and_never_out_of_reach():
    def trial(strategy, number, value):
        return Trial(strategy, number, "finished", value, ())

    trials = [trial("a", 0, 0.5), trial("a", 1, 0.75), trial("a", 2, 0.75), trial("b", 0, None)]
    best = best_of(search("a", "b"), trials)
    assert (best["a"].number, best["b"]) == (1, None)
    trials = [trial("a", 0, math.inf), trial("a", 1, 7.0), trial("b", 0, math.inf)]
    best = best_of(search("a", "b", metric="bytes_to_target"), trials)
    assert (best["a"].number, best["b"]) == (1, None)


@pytest.fixture(scope="module")
def tuned(tmp_path_factory):
    folder = tmp_path_factory.mktemp("tuned")
    asked = ["tune", toml(folder), "--strategies", "fedavg,static", *SPACES, "--trials", "2"]
    return asked, folder / "out", invoke(*asked, "--out", folder / "out", "--json")


def test_each_strategy_gets_the_same_number_of_trials(tuned):
    _, out, done = tuned
    assert done.exit_code == 0
    result = json.loads(done.stdout)
    assert [(t["strategy"], t["trial"]) for t in result["trials"]] == [
        (name, number) for name in ("fedavg", "static") for number in range(2)
    ]
    assert len(list(out.glob("points/*/summary.json"))) == 4
    assert (result["metric"], result["out"]) == ("client_accuracy", str(out))


def test_the_best_settings_are_those_of_the_best_run(tuned):
    _, _, done = tuned
    result = json.loads(done.stdout)
    for name, best in result["best"].items():
        values = [t["client_accuracy"] for t in result["trials"] if t["strategy"] == name]
        assert best["client_accuracy"] == max(values)
        words = best["set"].split()
        assert words[:2] == ["--set", f"strategy.name={name}"]
        resolve(override(BASE, words[1::2]))


def test_a_larger_number_of_trials_extends_the_search(tuned):
    asked, out, done = tuned
    before = identity(out)
    again = invoke(*asked[:-1], "3", "--out", out, "--json", "--quiet")
    more, first = (json.loads(r.stdout)["trials"] for r in (again, done))
    assert len(more) == 6
    assert [t for t in more if t["trial"] < 2] == first
    after = identity(out)
    assert {name: after[name] for name in before} == before


def test_a_torn_line_of_the_journal_is_cut_off_and_a_broken_one_refused(tuned):
    asked, out, _ = tuned
    journal = out / "journal.jsonl"
    whole = journal.read_bytes()
    journal.write_bytes(whole + b'{"op_code":4,"wor')
    again = invoke(*asked, "--out", out, "--json", "--quiet")
    assert len(json.loads(again.stdout)["trials"]) >= 4
    assert journal.read_bytes().startswith(whole)
    journal.write_bytes(b"{broken}\n" + whole)
    line = error_line(invoke(*asked, "--out", out))
    assert line == f"'{journal}' is damaged; start again with another --out"
    journal.write_bytes(whole)


def test_another_search_is_refused(tuned):
    asked, out, _ = tuned
    line = error_line(invoke(*asked, "--search-seed", "1", "--out", out))
    assert line == (
        f"'{out}' holds another search (search_seed: 0 there, 1 asked for); choose another --out"
    )


def test_a_killed_search_goes_on_with_the_same_draws(tuned, tmp_path):
    asked, _, done = tuned
    out = tmp_path / "out"
    process = spawn(*asked, "--out", out, "--jobs", "1")
    place = wait_for_run(out, "fedavg-t1-d1-s0")
    process.send_signal(signal.SIGKILL)
    process.communicate()
    wait_until_free(place)
    again = json.loads(invoke(*asked, "--out", out, "--json", "--quiet").stdout)
    assert again["trials"] == json.loads(done.stdout)["trials"]


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (["--strategies", "fedtinny", *SPACES], "did you mean 'fedtiny'?"),
        (["--strategies", "static,static", *SPACES], "static stands there twice"),
        (["--strategies", "static", *SPACES, "--metric", "acuracy"], "did you mean 'accuracy'?"),
        (["--strategies", "static", "--space", "client.lr=0:1:2"], "is no range"),
        (["--strategies", "static", *SPACES, "--seeds", "x"], "--seeds: 'x' is wrong"),
    ],
)
def test_mistakes_are_one_line_and_leave_nothing(tmp_path, monkeypatch, options, said):
    monkeypatch.chdir(tmp_path)
    assert said in error_line(invoke("tune", *options, "--trials", "2"))
    assert list(tmp_path.iterdir()) == []


def test_without_optuna_the_extra_is_named(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "optuna", None)
    asked = ["--strategies", "static", *SPACES, "--trials", "1", "--out", tmp_path / "out"]
    line = error_line(invoke("tune", *asked))
    assert line == "tuning needs extra packages: pip install 'fedsparse[tune]'"
    assert list(tmp_path.iterdir()) == []
