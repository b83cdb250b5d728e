"""nldp and ldp-iht as runs: what they reach, whom they ask, what they refuse, how they resume."""

import json
import random

import numpy as np
import pytest
from flwr.app import ConfigRecord
from safetensors.numpy import load_file

from fedsparse import config, messages, wire
from fedsparse.data.synthetic import true_coefficients
from fedsparse.errors import ConfigError, DataError, RunFolderError
from fedsparse.privacy import regression
from fedsparse.runs import RunFolder
from fedsparse.runs.progress import Silent
from simulations import experiment, presets
from simulations.experiment import resume_experiment
from simulations.grid import CohortGrid, InlineExecutor
from simulations.report import write_report
from strategies import foreign
from strategies.execute import execute
from strategies.task import Task
from tests.node_grid import NodeGrid
from tests.strategies.stage import play, reply, stage
from tests.tiny_runs import model_bytes, rows, run, run_and_interrupt, tiny

NAMES = ("nldp", "ldp-iht")
BASE = (
    "data.name=synthetic-regression",
    "data.samples=400",
    "data.features=10",
    "data.nonzero=2",
    "data.partition=iid",
    "data.public_samples=0",
    "data.client_test_fraction=0",
    "fleet.evaluate_clients=0",
    "fleet.clients=6",
    "model.name=linear",
    "model.width=1.0",
)
OWN = {"nldp": ("strategy.longest=3.2",), "ldp-iht": ("strategy.density=0.2",)}


def setting(name, *more):
    return (*BASE, f"strategy.name={name}", *OWN[name], "run.rounds=3", *more)


def staged(name, *more):
    strategy, grid = stage(*setting(name, *more))
    strategy.prepare(grid)
    return strategy, grid


def error(out, seed=0):
    data = RunFolder.open(out).config.data
    weight = load_file(out / "model.safetensors")["fc.weight"].reshape(-1)
    return float(np.linalg.norm(weight - true_coefficients(data, seed)))


# -- what is reached --------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "epsilon", "most"), [("nldp", 16, 0.9), ("ldp-iht", 4, 0.25), ("ldp-iht", 1, 1.2)]
)
def test_a_run_finds_what_the_data_was_made_from(tmp_path, name, epsilon, most):
    """The true coefficients have a length of 1.5 or more."""
    more = ("data.samples=40000", f"strategy.epsilon={epsilon}", "fleet.clients=8", "run.rounds=8")
    summary = run(tmp_path / "run", *setting(name, *more))
    found = error(tmp_path / "run")
    assert found < most
    assert (summary["epsilon"], summary["delta"]) == (epsilon, 1e-5)
    assert summary["accuracy"] > 1 - most


def errors_of(name, samples, epsilon):
    """Return the mean error over seeds of what clients and server compute, d = 10, k = 2."""
    found = []
    for seed in range(6):
        own = tiny(*setting(name, f"run.seed={seed}", f"strategy.epsilon={epsilon}"))
        strategy = foreign.make(Task.of(own))
        strategy.prepare(None)
        true, rng = true_coefficients(own.data, seed), np.random.default_rng(seed)
        s = strategy.settings
        for number in range(1, 7):
            x = rng.standard_normal((samples // 6, 10))
            y = x @ true + 0.1 * rng.standard_normal(len(x))
            if name == "nldp":
                told = regression.moments(x, y, s.longest, s.largest)
                strategy.square += told[:-10]
                strategy.cross += told[-10:]
                strategy.samples += len(x)
                continue
            theta = strategy.state["fc.weight"].reshape(-1).astype(float)
            clip = regression.clip_of(s.clip, s.clip_decay, number)
            total = regression.gradients(x, y, theta, clip)
            mean = regression.noisy_mean(total, len(x), strategy.deviation, rng)
            strategy.take(strategy.stepped(mean, number))
        if name == "nldp":
            noise = strategy.samples**0.5 * strategy.deviation * rng.standard_normal(65)
            strategy.square += noise[:-10]
            strategy.cross += noise[-10:]
            strategy.take(strategy.solved())
        found.append(np.linalg.norm(strategy.state["fc.weight"].reshape(-1) - true))
    return float(np.mean(found))


@pytest.mark.parametrize("name", NAMES)
def test_errors_fall_as_one_over_the_root_of_samples_and_as_the_noise(name):
    samples = np.array([30_000, 120_000, 480_000])
    errors = [errors_of(name, int(n), 8.0) for n in samples]
    slope = np.polyfit(np.log(samples), np.log(errors), 1)[0]
    assert -0.65 <= slope <= -0.35
    noise = [regression.deviation(1.0, e, 1e-5) for e in (4.0, 8.0)]
    ratio = errors_of(name, 480_000, 4.0) / errors[-1]
    assert ratio == pytest.approx(noise[0] / noise[1], rel=0.35)


def test_the_preset_finds_the_support(tmp_path):
    own = config.override(
        presets.load("ldp-regression"), ["data.samples=40000", "strategy.epsilon=16"]
    )
    summary = experiment.run_experiment(config.resolve(own), tmp_path / "run", command="test")
    assert summary["accuracy"] > 0.95
    assert summary["density"] == pytest.approx(0.1)


# -- whom it asks, and what it tells ----------------------------------------------------


@pytest.mark.parametrize("name", NAMES)
def test_each_client_is_asked_in_one_round_alone(tmp_path, name):
    run(tmp_path / "run", *setting(name))
    clients = RunFolder.open(tmp_path / "run").clients()
    assert sorted(row["client"] for row in clients) == list(range(6))
    assert [sum(row["round"] == n for row in clients) for n in (1, 2, 3)] == [2, 2, 2]
    assert all(row["status"] == "ok" for row in clients)


@pytest.mark.parametrize("name", NAMES)
def test_epsilon_is_told_in_rows_and_report_and_no_loss_of_clients_is(tmp_path, name):
    run(tmp_path / "run", *setting(name))
    found = rows(tmp_path / "run")
    assert [row["epsilon"] for row in found] == [0.0, 1.0, 1.0, 1.0]
    assert [row["train_loss"] for row in found] == [None] * 4
    assert {row["loss"] for row in RunFolder.open(tmp_path / "run").clients()} == {0.0}
    assert json.loads((tmp_path / "run" / "summary.json").read_text())["epsilon"] == 1.0
    write_report([tmp_path / "run"], tmp_path / "report.html")
    told = "epsilon at delta 1e-05, of each sample, for all that its client sends"
    assert told in (tmp_path / "report.html").read_text()


def test_a_model_of_pure_noise_is_no_error(tmp_path):
    """nldp of few samples tells no direction from noise, and keeps no coefficient."""
    summary = run(tmp_path / "run", *setting("nldp", "strategy.epsilon=0.1"))
    assert summary["density"] == 0
    assert abs(summary["accuracy"]) < 0.05


@pytest.mark.parametrize("name", NAMES)
def test_the_mask_holds_the_coefficients_that_are_not_zero(name):
    strategy, grid = staged(name, "data.samples=20000", "strategy.epsilon=16")
    play(strategy, grid, 1)
    bits = strategy.state["fc.weight"] != 0
    np.testing.assert_array_equal(strategy.mask["fc.weight"], bits)
    assert not strategy.state["fc.bias"].any()
    if name == "ldp-iht":
        assert bits.sum() == 2


def test_coefficients_stay_within_the_radius():
    strategy, grid = staged("ldp-iht", "strategy.radius=0.5", "strategy.epsilon=16")
    play(strategy, grid, 1)
    assert np.linalg.norm(strategy.state["fc.weight"]) <= 0.5 + 1e-6


# -- resuming and order -----------------------------------------------------------------


def result(out):
    return model_bytes(out), rows(out), RunFolder.open(out).clients()


@pytest.mark.parametrize("name", NAMES)
def test_interrupted_and_resumed_it_ends_with_the_same_bits(tmp_path, monkeypatch, name):
    run(tmp_path / "whole", *setting(name, "strategy.epsilon=16"))
    run_and_interrupt(monkeypatch, tmp_path / "cut", 3, *setting(name, "strategy.epsilon=16"))
    resume_experiment(tmp_path / "cut")
    assert result(tmp_path / "cut") == result(tmp_path / "whole")


class Shuffled(InlineExecutor):
    def run(self, tasks, timeout, reader=None):
        tasks = list(tasks)
        random.Random(1).shuffle(tasks)
        yield from super().run(tasks, timeout, reader)


def test_where_clients_would_answer_again_under_other_noise_a_run_is_not_gone_on_with(
    tmp_path, monkeypatch
):
    own = setting("nldp", "strategy.epsilon=16", "privacy.entropy=system")
    run_and_interrupt(monkeypatch, tmp_path / "cut", 2, *own)
    monkeypatch.delattr(CohortGrid, "restore_states")
    with pytest.raises(RunFolderError, match="answer once, and would answer this run again"):
        resume_experiment(tmp_path / "cut")


@pytest.mark.parametrize("name", NAMES)
def test_any_order_of_clients_gives_the_same_bits(tmp_path, monkeypatch, name):
    run(tmp_path / "plain", *setting(name))

    def shuffled(task, on, session):
        app = experiment.CLIENT_APP
        with CohortGrid(app, clients=6, executor=Shuffled(app)) as grid:
            return on(grid)

    monkeypatch.setattr(experiment, "_carriers", lambda: {"inline": shuffled})
    run(tmp_path / "other", *setting(name))
    assert result(tmp_path / "other") == result(tmp_path / "plain")


def test_with_the_system_s_noise_no_two_runs_are_the_same(tmp_path):
    for out in ("a", "b"):
        run(tmp_path / out, *setting("ldp-iht", "privacy.entropy=system"))
    assert model_bytes(tmp_path / "a") != model_bytes(tmp_path / "b")


# -- replies that are wrong -------------------------------------------------------------


def record(values):
    state = {"fc.weight": values, "fc.bias": np.zeros(1, np.float32)}
    return wire.pack(wire.encode(state))


def judged(strategy, grid, arrays, moments=None, examples=100):
    """Return why the first client's reply of round 1 is left out, if it is."""
    asked = strategy.configure_train(1, strategy.arrays(), ConfigRecord(), grid)
    good = grid.send_and_receive(asked)
    client = min(strategy.seats)
    bad = reply(strategy, client, arrays, {messages.EXAMPLES_KEY: examples, "loss": 0.0})
    if moments is not None:
        bad.content[messages.MOMENTS] = wire.pack(wire.encode({messages.MOMENTS: moments}))
    others = [m for m in good if strategy.directory.client_of[m.metadata.src_node_id] != client]
    strategy.learn(1, [bad, *others])
    return strategy.failures.get(client)


GOOD = np.zeros((1, 10), np.float32)
MOMENTS = np.zeros(55, np.float32)


def filled(shape, value):
    found = np.zeros(shape, np.float32)
    found.flat[3] = value
    return found


@pytest.mark.parametrize(
    ("weight", "moments", "reason"),
    [
        (GOOD, MOMENTS, None),
        (filled((1, 10), 100.0), MOMENTS, r"fc.weight has an entry of 100; 100 samples and their"),
        (GOOD, filled(55, -100.0), "moments has an entry of 100; 100 samples and their noise"),
        (filled((1, 10), np.nan), MOMENTS, "NaN or infinity"),
        (GOOD, filled(55, np.inf), "NaN or infinity"),
        (GOOD, MOMENTS[:-1], "of another model"),
        (np.zeros((1, 9), np.float32), MOMENTS, "of another model"),
        (GOOD, None, "the reply lacks 'moments'"),
    ],
)
def test_what_no_honest_client_sends_is_left_out_with_its_reason(weight, moments, reason):
    found = judged(*staged("nldp", "strategy.epsilon=8"), record(weight), moments)
    assert (found is None) if reason is None else (reason in (found or "")), found


def test_the_bound_of_a_reply_shrinks_with_its_samples():
    """1 + 10 s / sqrt(m): at epsilon 1 and m = 100, 8.46; of a single sample, 75.6."""
    weight = filled((1, 10), 20.0)
    assert judged(*staged("ldp-iht"), record(weight), examples=1) is None
    assert "none above 8.46" in judged(*staged("ldp-iht"), record(weight), examples=100)


def test_a_record_that_nobody_asked_for_is_refused():
    found = judged(*staged("ldp-iht"), record(GOOD), MOMENTS)
    assert "a record 'moments' that nobody asked for" in found


@pytest.mark.parametrize("updates", ["not-finite", "oversize", "scaled"])
def test_hostile_clients_end_no_run(tmp_path, updates):
    attack = ("attack.clients=1", f"attack.updates={updates}", "attack.scale=1000")
    run(tmp_path / "run", *setting("nldp", *attack, "fleet.min_replies=0.1"))
    bad = [row for row in RunFolder.open(tmp_path / "run").clients() if row["status"] != "ok"]
    assert [row["client"] for row in bad] == [1]


# -- what is refused --------------------------------------------------------------------


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize(
    ("assignment", "reason"),
    [
        ("strategy.epsilon=0", r"strategy\.epsilon = 0: must be greater than 0"),
        ("strategy.epsilon=-1", r"strategy\.epsilon = -1: must be greater than 0"),
        ("strategy.epsilon=nan", r"strategy\.epsilon = nan"),
        ("strategy.epsilon=65", r"strategy\.epsilon = 65: must be less than or equal to 64"),
        ("strategy.epsilom=1", r"unknown key 'strategy\.epsilom'; did you mean 'strategy\.eps"),
        ("strategy.density=1.2", r"strategy\.density = 1\.2: must be less than or equal to 1"),
        ("data.name=digits", r"is linear regression, and this has 10 classes; choose data"),
        ("model.name=mlp", r"model\.name = 'mlp': .* set it to 'linear'"),
        ("fleet.clients_per_round=2", r"is asked once, in one of run\.rounds groups; leave"),
        ("fleet.clients=2", r"run\.rounds = 3: 2 clients take part, and each is asked in one"),
        ("fleet.profile=phones", r"asks each client once; leave fleet\.profile out"),
        ("privacy.clip=1", r"add noise themselves, by strategy\.epsilon; leave it out"),
        ("robust.rule=median", r"robust\.rule = 'median'"),
        ("engine.device=cuda", r"train on the CPU"),
    ],
)
def test_what_does_not_go_together_is_refused_with_a_remedy(name, assignment, reason):
    with pytest.raises(ConfigError, match=reason) as refused:
        foreign.make(Task.of(tiny(*setting(name, assignment))))
    assert "\n" not in str(refused.value)


def test_tests_by_clients_are_refused_for_they_tell_of_samples():
    more = ("fleet.evaluate_clients=3", "data.client_test_fraction=0.1")
    with pytest.raises(ConfigError, match=r"in the clear, .* set fleet\.evaluate_clients = 0"):
        foreign.make(Task.of(tiny(*setting("nldp", *more))))


def test_nldp_takes_no_density_and_more_true_than_features_are_refused():
    with pytest.raises(ConfigError, match=r"follows from strategy\.threshold; leave density out"):
        foreign.make(Task.of(tiny(*setting("nldp", "strategy.density=0.5"))))
    with pytest.raises(DataError, match=r"data\.nonzero = 11 is more than data\.features = 10"):
        Task.of(tiny(*setting("nldp", "data.nonzero=11")))


# -- nodes with data of their own -------------------------------------------------------


def on_nodes(out, clients, rounds):
    """Run over nodes of which the first has data that do not fit, and return whom it asked."""
    told = []
    for client in range(clients):
        x = np.full((5, 10 if client else 7), 0.5, np.float32)
        np.savez(out / f"{client}.npz", x=x, y=np.linspace(-1, 1, 5, dtype=np.float32))
        told.append({"data-path": str(out / f"{client}.npz"), "cache-path": str(out / "kept")})
    changes = (f"fleet.clients={clients}", "fleet.min_replies=0.5", "data.name=nodes")
    config = tiny(
        *setting("ldp-iht", *changes, "data.classes=1", 'data.shape="10"', f"run.rounds={rounds}")
    )
    task, grid = Task.of(config), NodeGrid(told)
    folder = RunFolder.create(out / "run", task.config, command="test")
    with folder.lock():
        execute(task, foreign.make(task), grid, folder, Silent())
    return sorted(client for kind, client in grid.asked if kind == messages.TRAIN)


def test_a_node_whose_data_do_not_fit_is_in_nobody_s_group(tmp_path):
    assert on_nodes(tmp_path, clients=4, rounds=2) == [1, 2, 3]


def test_a_round_whose_only_node_does_not_fit_is_told_before_the_first(tmp_path):
    with pytest.raises(ConfigError, match=r"2 clients take part, and each.*lower run\.rounds"):
        on_nodes(tmp_path, clients=3, rounds=3)
