"""What unlearning methods come to on digits, and what each of them is asked and refuses."""

import hashlib
import math
import shutil

import numpy as np
import pytest

from clients.unlearning.ascent import GradientAscent
from fedsparse import data, registry
from fedsparse.errors import ConfigError, RunFolderError
from fedsparse.runs import RunFolder
from strategies.task import Task
from strategies.unlearning import choice
from strategies.unlearning.base import Unlearning
from strategies.unlearning.fisher import CLASS_VARIANCE, MOST, Fisher
from strategies.unlearning.l1_sparse import L1Sparse
from tests.clients import visits
from tests.tiny_runs import model_bytes, rows, run, tiny
from tests.unlearning.forgetting import (
    LEARNT,
    METHODS,
    WORLD,
    accuracy,
    child,
    dense,
    method,
    model_of,
    same,
    sparse,
)


@pytest.fixture(scope="module")
def learnt(tmp_path_factory):
    """Return a dense run that knows all classes."""
    out = tmp_path_factory.mktemp("parent") / "dense"
    run(out, *LEARNT, *dense())
    return out


@pytest.fixture(scope="module")
def thin(tmp_path_factory):
    """Return a sparse run."""
    out = tmp_path_factory.mktemp("parent") / "sparse"
    run(out, *WORLD, "run.rounds=5", *sparse())
    return out


STRONG = {
    "l1-sparse": ("strategy.gamma=0.03", "run.rounds=8", "client.lr=0.02"),
    "prune-finetune": ("strategy.density=0.05", "run.rounds=8", "client.lr=0.02"),
    "gradient-ascent": ("strategy.ascent_lr=0.03", "run.rounds=2", "client.lr=0.02"),
    "fisher": ("strategy.alpha=1e-6", "run.rounds=2", "client.lr=0.02"),
    "influence": ("strategy.alpha=1.0", "run.rounds=2", "client.lr=0.02"),
    "salun": ("run.rounds=4", "client.lr=0.02"),
    "discriminative-pruning": ("strategy.ratio=0.7", "run.rounds=5", "client.lr=0.02"),
    "rapid-retraining": ("run.rounds=8",),
    "neggrad": ("strategy.forget_weight=0.1", "run.rounds=3", "client.lr=0.02"),
    "distillation": ("run.rounds=4", "client.lr=0.02"),
}
"""Settings with which a method forgets a class on this little."""


@pytest.mark.parametrize("name", STRONG)
def test_a_class_is_forgotten_and_the_others_are_not(learnt, tmp_path, name):
    child(tmp_path / "run", name, learnt, *WORLD, *STRONG[name])
    known, before = accuracy(learnt, seen_by=tmp_path / "run")
    forgotten, others = accuracy(tmp_path / "run")
    assert known > 0.8
    assert forgotten < known - 0.3
    assert others > before - 0.15


def test_scrub_moves_away_from_the_teacher_on_what_is_forgotten(learnt, tmp_path):
    settings = ("strategy.teacher=scrub", "run.rounds=5", "client.lr=0.05")
    child(tmp_path / "run", "distillation", learnt, *WORLD, *settings)
    known, before = accuracy(learnt, seen_by=tmp_path / "run")
    forgotten, others = accuracy(tmp_path / "run")
    assert forgotten < known - 0.3
    assert others > before - 0.1


def test_fine_tuning_is_plain_rounds_from_the_parents_model(learnt, tmp_path):
    child(tmp_path / "run", "fine-tuning", learnt, *WORLD, "run.rounds=1", "client.lr=1e-9")
    moved, _ = model_of(tmp_path / "run")
    before, _ = model_of(learnt)
    for name, value in before.items():
        if not name.endswith(("running_mean", "running_var")):
            np.testing.assert_allclose(moved[name], value, atol=1e-6)


def test_the_parents_folder_stays_as_it_is(learnt, tmp_path):
    def digests():
        files = sorted(path for path in learnt.rglob("*") if path.is_file())
        return {path: hashlib.sha256(path.read_bytes()).hexdigest() for path in files}

    before = digests()
    child(tmp_path / "run", "federaser", learnt, *WORLD, "run.rounds=1")
    assert digests() == before


# -- each method's own rule ---------------------------------------------------------------


def made(name, parent, *more, target=None):
    """Return a method's strategy with the parent's model, without a grid."""
    config = tiny(*method(name, parent, *WORLD, *more, target=target))
    cls: type[Unlearning] = registry.load("strategies", name)
    strategy = cls(Task.of(config))
    strategy.prepare(None)
    return strategy


def test_the_l1_penalty_falls_by_equal_steps_to_nothing(learnt):
    five = made("l1-sparse", learnt, "strategy.gamma=0.01", "run.rounds=5")
    assert [five.plan(t).l1 for t in range(1, 6)] == pytest.approx(
        [0.01, 0.008, 0.006, 0.004, 0.002]
    )
    kept = made(
        "l1-sparse", learnt, "strategy.gamma=0.01", "run.rounds=6", "strategy.plain_rounds=2"
    )
    assert isinstance(kept, L1Sparse)
    assert [kept.weight(t) for t in range(1, 7)] == pytest.approx(
        [0.01, 0.0075, 0.005, 0.0025, 0, 0]
    )
    with pytest.raises(ConfigError, match=r"strategy\.plain_rounds = 6 .* lower it"):
        made("l1-sparse", learnt, "run.rounds=6", "strategy.plain_rounds=6")


def test_noise_has_the_variance_that_the_fisher_matrix_says(learnt):
    fisher = made("fisher", learnt, "strategy.alpha=1e-4")
    assert isinstance(fisher, Fisher)
    shape = fisher.state["fc1.weight"].shape
    found = np.full(shape, 0.5, np.float32)
    found[0] = 0
    mean, variance = fisher.moments("fc1.weight", found)
    np.testing.assert_allclose(mean, fisher.state["fc1.weight"])
    np.testing.assert_allclose(variance[1:], 1e-4 / 0.5, rtol=1e-5)
    np.testing.assert_allclose(variance[0], 1e-4 * MOST)
    mean, variance = fisher.moments("fc2.weight", np.ones((10, shape[0]), np.float32))
    assert not mean[3].any()
    np.testing.assert_allclose(variance[3], CLASS_VARIANCE)
    np.testing.assert_allclose(variance[4], 10 * 1e-4, rtol=1e-5)


def test_noise_falls_on_kept_weights_alone(thin):
    fisher = made("fisher", thin)
    noisy = fisher.noisy({name: np.zeros_like(value) for name, value in fisher.state.items()})
    for name, bits in fisher.mask.items():
        assert not noisy[name][~bits].any()
        assert (noisy[name] != fisher.state[name])[bits].all()


def test_ascent_asks_holders_alone_and_ends_at_the_bound(learnt, tmp_path):
    settings = ("strategy.ascent_lr=0.5", "run.rounds=2", "fleet.clients_per_round=3")
    child(tmp_path / "run", "gradient-ascent", learnt, *WORLD, *settings)
    task = Task.of(RunFolder.open(tmp_path / "run").config)
    holders = [c for c in range(5) if len(task.data.forgotten(c))]
    told = RunFolder.open(tmp_path / "run").clients()
    climbed = [row for row in told if row["round"] == 1]
    assert [row["client"] for row in climbed] == holders
    assert [row["examples"] for row in climbed] == [len(task.data.forgotten(c)) for c in holders]
    plain = [row for row in told if row["round"] == 2 and row["kind"] == "train"]
    assert len(plain) == 3
    assert math.isfinite(rows(tmp_path / "run")[1]["loss"])


def test_salun_moves_salient_weights_alone(learnt, tmp_path):
    settings = ("strategy.saliency=0.2", "run.rounds=3")
    child(tmp_path / "run", "salun", learnt, *WORLD, *settings)
    state, _ = model_of(tmp_path / "run")
    before, _ = model_of(learnt)
    parameters = [n for n in state if not n.endswith(("running_mean", "running_var"))]
    moved = sum(int((state[n] != before[n]).sum()) for n in parameters)
    size = sum(state[n].size for n in parameters)
    assert 0.15 * size < moved <= math.ceil(0.2 * size)


def test_who_has_nothing_to_forget_sends_back_what_it_received(learnt):
    unlike = "data.alpha=0.02"
    held = data.of(tiny(*WORLD, unlike)).client(0).train.y
    label = next(label for label in range(10) if label not in held)
    ascent = made("gradient-ascent", learnt, unlike, target=f"forget.classes={label}")
    outcome = GradientAscent().train(visits.visit(ascent))
    assert same(outcome.kept, ascent.state)
    assert outcome.price.flops == 0


def test_ascent_raises_the_loss_up_to_the_bound(learnt):
    """A step that goes beyond it is the last one."""
    seen = {}
    for bound in ("0.5", "3.0"):
        settings = ("strategy.ascent_lr=0.02", "strategy.ascent_epochs=50")
        ascent = made("gradient-ascent", learnt, *settings, f"strategy.bound={bound}")
        visit = visits.visit(ascent)
        outcome = GradientAscent().train(visit)
        before, after = (
            ascent.task.backend.load(state).evaluate(visit.job.forgotten).loss
            for state in (ascent.state, outcome.kept)
        )
        assert before < float(bound) * math.log(10) < after
        seen[bound] = outcome.trained.samples
    assert seen["0.5"] < seen["3.0"] < 50 * len(visit.job.forgotten)


def test_rapid_retraining_begins_anew(learnt):
    rapid = made("rapid-retraining", learnt)
    assert same(rapid.state, rapid.task.pretrain(0, 0.0))
    assert not same(rapid.state, rapid.parent.state)


@pytest.mark.parametrize("criterion", ["magnitude", "synflow"])
@pytest.mark.parametrize("allocation", ["erk", "global"])
def test_pruning_keeps_the_density_that_was_asked_for(learnt, criterion, allocation):
    settings = (f"strategy.criterion={criterion}", f"strategy.allocation={allocation}")
    pruned = made("prune-finetune", learnt, *settings)
    assert pruned.density == pytest.approx(0.1, abs=1e-3)
    sizes = np.abs(np.concatenate([pruned.state[n][bits] for n, bits in pruned.mask.items()]))
    assert (sizes > 0).all()


def test_pruning_to_more_than_the_parent_keeps_is_refused(thin):
    with pytest.raises(ConfigError, match=r"strategy\.density = 0\.4: the parent keeps 0\.3"):
        made("prune-finetune", thin, "strategy.density=0.4")
    cls = registry.load("methods", "prune-finetune")
    assert cls.strengths(0.3) == (0.15, 0.06, 0.03, 0.015)


# -- FedEraser ----------------------------------------------------------------------------


def test_the_replay_asks_who_remains_of_every_stored_round(tmp_path):
    few = (*WORLD, "run.rounds=6", "fleet.clients_per_round=2", "run.seed=3")
    run(tmp_path / "parent", *few, *dense())
    there = {}
    for row in RunFolder.open(tmp_path / "parent").clients():
        if row["kind"] == "train":
            there.setdefault(row["round"], set()).add(row["client"])
    target = max(there[2])
    left = [sorted(there[j] - {target}) for j in (2, 4, 6) if there[j] - {target}]
    child(
        tmp_path / "run",
        "federaser",
        tmp_path / "parent",
        *(*few, f"run.rounds={len(left)}"),
        target=f"forget.clients={target}",
    )
    asked = [[] for _ in left]
    for row in RunFolder.open(tmp_path / "run").clients():
        if row["kind"] == "train":
            asked[row["round"] - 1].append(row["client"])
    assert asked == left


def test_it_begins_with_the_model_that_the_parent_had_made_without_the_client(tmp_path):
    fedtiny = ("strategy.name=fedtiny", "run.rounds=2")
    run(tmp_path / "parent", *WORLD, *fedtiny)
    run(tmp_path / "without", *WORLD, *fedtiny, "forget.clients=1")
    child(tmp_path / "run", "federaser", tmp_path / "parent", *WORLD, "run.rounds=1")
    ours, theirs = rows(tmp_path / "run")[0], rows(tmp_path / "without")[0]
    assert ours["density"] == theirs["density"]
    assert ours["accuracy"] == theirs["accuracy"]


@pytest.mark.parametrize("name", ["federaser", "gradient-ascent"])
def test_on_simulated_devices_it_waits_for_the_clients_that_it_wants(learnt, tmp_path, name):
    devices = ("fleet.profile=phones", "fleet.dropout=0.0", "run.rounds=1")
    summary = child(tmp_path / "run", name, learnt, *WORLD, *devices)
    told = [r for r in RunFolder.open(tmp_path / "run").clients() if r["kind"] == "train"]
    assert len(told) >= 2
    assert all(row["status"] == "ok" for row in told)
    assert summary["simulated_seconds"] > 600  # they were asleep at first


def test_a_run_without_norms_is_refused(tmp_path):
    run(tmp_path / "parent", *WORLD, "run.rounds=1", "run.keep_norms=false", *dense())
    with pytest.raises(RunFolderError, match=r"--set run\.keep_norms=true"):
        made("federaser", tmp_path / "parent")


# -- what is refused ----------------------------------------------------------------------

WORKS_ON_IT = sorted(n for n in METHODS if registry.load("methods", n).needs_forgotten)


@pytest.mark.parametrize("name", WORKS_ON_IT)
def test_a_forgotten_client_is_not_contacted(learnt, name):
    with pytest.raises(ConfigError, match="a forgotten client is not contacted") as refused:
        made(name, learnt, target="forget.clients=1")
    assert "\n" not in str(refused.value)
    assert "fine-tuning, fisher, l1-sparse" in str(refused.value)


def test_methods_say_what_they_can_forget():
    everyone = {"fine-tuning", "fisher", "l1-sparse", "prune-finetune", "rapid-retraining"}
    assert set(choice.fitting("client")) == everyone | {"federaser"}
    assert set(choice.fitting("class")) == set(METHODS) - {"federaser"}
    assert set(choice.fitting("samples")) == set(METHODS) - {"federaser", "discriminative-pruning"}
    for kind in ("client", "class", "samples"):
        assert set(choice.tried(kind)) <= set(choice.fitting(kind))


def test_samples_are_not_told_apart_by_channels(learnt):
    sample = int(data.of(tiny(*WORLD)).ids(0)[0])
    with pytest.raises(ConfigError, match="'discriminative-pruning' cannot forget samples"):
        made("discriminative-pruning", learnt, target=f"forget.samples={sample}")


def test_nothing_to_forget_is_refused(learnt):
    with pytest.raises(ConfigError, match=r"\[forget\] names, which is nothing"):
        made("l1-sparse", learnt, target="")


@pytest.mark.parametrize(
    ("name", "more", "told"),
    [
        ("l1-sparse", ("strategy.density=0.5",), "leaves the mask as it is"),
        ("salun", ("run.rounds=1",), "'salun' takes 2 rounds at least"),
        ("l1-sparse", ("strategy.parent=''",), r"strategy\.parent is unset"),
        ("l1-sparse", ("strategy.gamma=-1",), r"strategy\.gamma = -1"),
        ("salun", ("strategy.saliency=1.5",), r"strategy\.saliency = 1\.5"),
        ("salun", ("client.keep_optimizer=true",), r"client\.keep_optimizer"),
    ],
)
def test_what_cannot_be_done_is_refused_in_one_line(learnt, name, more, told):
    with pytest.raises(ConfigError, match=told) as refused:
        made(name, learnt, *more)
    assert "\n" not in str(refused.value)


def test_channels_of_a_model_without_convolutions_cannot_be_pruned(tmp_path):
    flat = (*WORLD, "run.rounds=1", "model.name=mlp")
    run(tmp_path / "parent", *flat, *dense())
    with pytest.raises(ConfigError, match="model 'mlp' has no convolution"):
        made("discriminative-pruning", tmp_path / "parent", *flat)


def test_the_parents_model_must_be_the_one_that_was_named(learnt, tmp_path):
    digest = hashlib.sha256(model_bytes(learnt)).hexdigest()
    assert made("fine-tuning", learnt, f"strategy.parent_model={digest}").state
    copy = shutil.copytree(learnt, tmp_path / "copy")
    (copy / "model.safetensors").write_bytes(model_bytes(learnt)[:-4] + b"\0\0\0\0")
    with pytest.raises(RunFolderError, match="is not the model that was to forget"):
        made("fine-tuning", copy, f"strategy.parent_model={digest}")
    (copy / "model.safetensors").unlink()
    with pytest.raises(RunFolderError, match=r"has no model\.safetensors"):
        made("fine-tuning", copy)


def test_another_model_is_refused(learnt):
    with pytest.raises(RunFolderError, match=r"another model; both runs need one \[model\]"):
        made("fine-tuning", learnt, "model.width=0.25")
