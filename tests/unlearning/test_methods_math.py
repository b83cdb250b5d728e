"""The equations of unlearning methods, against values worked out by hand or the long way."""

import math

import numpy as np
import pytest
import torch

from clients.unlearning import paired, salun
from clients.unlearning.federaser import norms
from clients.unlearning.vector import Vector, joined
from fedsparse.data import Dataset
from fedsparse.sparsity import Mask
from fedsparse.training import channels, local
from fedsparse.training.gradients import gradients
from strategies.task import Task
from strategies.unlearning.discriminative_pruning import pooled, tf_idf
from strategies.unlearning.federaser import calibrated
from strategies.unlearning.influence import inverse_product
from strategies.unlearning.prune_finetune import within
from tests.clients import visits
from tests.kernels.passes import needs_kernels
from tests.tiny_runs import tiny

BACKENDS = ["torch", pytest.param("native", marks=needs_kernels)]

# -- WoodFisher ---------------------------------------------------------------------------


def gradients_of(seed, parts=5, size=12):
    rng = np.random.default_rng(seed)
    weights = rng.uniform(0.5, 1.5, parts)
    return rng.normal(size=(parts, size)), weights / weights.sum(), rng.normal(size=size)


def test_the_inverse_product_is_that_of_the_whole_matrix():
    rows, weights, vector = gradients_of(0)
    dense = 0.3 * np.eye(12) + (rows.T * weights) @ rows
    found = inverse_product(rows, weights, 0.3, vector)
    np.testing.assert_allclose(found, np.linalg.solve(dense, vector), rtol=1e-10)


def test_it_is_what_woodfishers_updates_of_rank_one_come_to():
    rows, _, vector = gradients_of(1)
    inverse = np.eye(12) / 0.2
    for g in rows:
        inverse -= np.outer(inverse @ g, inverse @ g) / (len(rows) + g @ inverse @ g)
    found = inverse_product(rows, np.full(len(rows), 1 / len(rows)), 0.2, vector)
    np.testing.assert_allclose(found, inverse @ vector, rtol=1e-10)


# -- TF-IDF of channels -------------------------------------------------------------------


def test_tf_idf_by_hand():
    activations = np.array([[3.0, 1.0, 0.0], [0.0, 2.0, 2.0]])
    # Means over channels are 4/3: class 0 has channel 0 above, class 1 channels 1 and 2.
    rare = math.log(3 / 2)
    np.testing.assert_allclose(
        tf_idf(activations), [[0.75 * rare, 0.25 * rare, 0.0], [0.0, 0.5 * rare, 0.5 * rare]]
    )


def test_a_channel_that_every_class_uses_says_nothing_of_any():
    found = tf_idf(np.array([[5.0, 1.0, 0.0], [5.0, 0.0, 1.0]]))
    assert found[0, 0] == pytest.approx(0.0)
    assert found[0, 1] > found[0, 0]


def test_a_class_that_no_client_has_gives_no_nan():
    assert np.isfinite(tf_idf(np.zeros((2, 3)))).all()


def test_activations_pool_to_those_of_all_samples():
    task = Task.of(tiny("model.width=0.25"))
    data = task.data.client(0).train
    cuts = np.arange(20), np.arange(20, 50)
    told = [channels.activations(task.model, data.take(cut)) for cut in cuts]
    whole = channels.activations(task.model, data.take(np.arange(50)))
    for name, found in pooled(told).items():
        np.testing.assert_allclose(found, whole[name], rtol=1e-5, atol=1e-6)
    assert whole[channels.SAMPLES].sum() == 50
    assert whole["conv1.weight"].shape == (10, 4)


def test_activations_are_those_behind_batch_norm():
    task = Task.of(tiny("model.width=0.25"))
    assert channels.norms_behind(task.model) == {"conv1.weight": "norm1", "conv2.weight": "norm2"}
    data = task.data.client(0).train.take(np.arange(30))
    found = channels.activations(task.model, data)["conv1.weight"]
    with torch.no_grad():
        seen = task.model.eval()[:2](local.tensors(data)[0]).relu().mean((2, 3)).numpy()
    label = int(data.y[0])
    np.testing.assert_allclose(found[label], seen[data.y == label].mean(0), rtol=1e-5)


# -- FedEraser ----------------------------------------------------------------------------


def test_a_calibrated_update_has_the_new_direction_and_the_stored_length():
    before = {"w": np.array([1.0, 1.0], np.float32), "n.running_mean": np.zeros(1, np.float32)}
    after = {"w": np.array([4.0, 5.0], np.float32), "n.running_mean": np.ones(1, np.float32)}
    found = calibrated(before, after, [10.0, 7.0])
    np.testing.assert_allclose(found["w"], [7.0, 9.0])  # (3, 4) is of length 5
    assert found["n.running_mean"] == 1.0


def test_an_update_that_is_zero_has_no_direction():
    still = {"w": np.ones(3, np.float32)}
    np.testing.assert_array_equal(calibrated(still, still, [10.0])["w"], still["w"])


def test_norms_are_of_kept_weights_tensor_by_tensor():
    made = visits.strategy("static", "strategy.density=0.5", "run.keep_norms=true")
    visit = visits.visit(made, made.state, made.mask)
    moved = {name: value + np.float32(2) for name, value in made.mask.take(made.state).items()}
    (found,) = norms(moved, made.mask, visit.received).values()
    assert found == pytest.approx([2 * math.sqrt(value.size) for value in moved.values()])


# -- pruning within a mask ----------------------------------------------------------------


@pytest.mark.parametrize("rule", ["erk", "uniform", "global"])
def test_what_is_pruned_further_lies_within_what_was_kept(rule):
    rng = np.random.default_rng(0)
    scored = {n: rng.random(s, np.float32) for n, s in {"a": (20, 10), "b": (4, 20)}.items()}
    before = Mask.from_arrays({n: rng.random(v.shape) < 0.5 for n, v in scored.items()})
    after = within(scored, before, 0.2, rule)
    assert (after & before) == after
    assert after.density == pytest.approx(0.2, abs=0.02)
    for name, bits in after.items():
        if rule == "uniform":
            kept, left = scored[name][bits], scored[name][before[name] & ~bits]
            assert kept.min() > left.max()


# -- steps --------------------------------------------------------------------------------


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("optimizer", ["sgd", "adam"])
@pytest.mark.parametrize("density", [1.0, 0.3])
def test_plain_steps_of_a_vector_are_plain_training(backend, optimizer, density):
    made = visits.strategy(
        "fedavg" if density == 1 else "static",
        *(() if density == 1 else (f"strategy.density={density}",)),
        *(f"client.optimizer={optimizer}", f"client.backend={backend}", "client.weight_decay=0.01"),
        f"client.lr={0.05 if optimizer == 'sgd' else 0.003}",
        small=("model.width=0.25", "data.samples=160"),
    )
    visit = visits.visit(made, made.state, made.mask)
    model, figures = visit.fit(visit.received.state, visit.received.mask)
    usual = model.kept()
    own, data = Vector(visit, visit.job.data.train), visit.job.data.train
    halves = paired.plain_halves(own, len(data))
    trained = paired.train(own, len(data), 0, paired.mean(own.values), halves)
    found = own.outcome(trained).kept
    assert trained.loss == pytest.approx(figures.loss, rel=1e-3)
    for name, value in usual.items():
        ours = found[name].reshape(-1)
        np.testing.assert_allclose(ours, value.reshape(-1), atol=2e-4, err_msg=name)


def test_pairs_go_once_through_both_and_spread_the_forgotten():
    rngs = np.random.default_rng(0), np.random.default_rng(1)
    found = list(paired.pairs(8, 30, 5, rngs))
    assert sorted(np.concatenate([a for a, _ in found])) == list(range(30))
    assert sorted(np.concatenate([b for _, b in found])) == list(range(5))
    assert max(len(b) for _, b in found) == 2
    alone = list(paired.pairs(8, 1, 20, rngs))
    assert [len(a) for a, _ in alone] == [1, 0, 0]
    assert sum(len(b) for _, b in alone) == 20


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("model", ["cnn", "paper-cnn"])
def test_still_gradients_are_those_of_the_model_in_use(backend, model):
    task = Task.of(tiny(f"client.backend={backend}", f"model.name={model}", "model.width=0.25"))
    state, data = task.pretrain(1, 0.05), task.data.client(0).train
    names = [name for name, _ in task.model.named_parameters()]
    flat = np.concatenate([state[name].reshape(-1) for name in names])
    work = gradients(task.backend, state, data)
    one, few = np.arange(1), np.arange(9)
    mean = np.mean([work.of(flat, np.array([i]), still=True)[2].copy() for i in few], axis=0)
    loss, _, gradient = work.of(flat, few, still=True)
    np.testing.assert_allclose(gradient, mean, atol=1e-5)
    for name, value in work.buffers().items():
        np.testing.assert_array_equal(value, state[name])
    tested = task.evaluate(state)
    assert tested.samples
    model_in_use = task.backend.load(state)
    assert loss / 9 == pytest.approx(model_in_use.evaluate(data.take(few)).loss, rel=1e-4)
    if model == "cnn":
        work.of(flat, one)
        assert any((value != state[name]).any() for name, value in work.buffers().items())


def test_random_labels_are_never_the_own_one_and_all_others():
    data = Dataset(np.zeros((400, 2), np.float32), np.full(400, 3), 5)
    found = salun.randomly_labelled(data, np.random.default_rng(0)).y
    assert set(found.tolist()) == {0, 1, 2, 4}
    empty = data.take(np.zeros(0, np.int64))
    assert len(salun.randomly_labelled(empty, np.random.default_rng(0))) == 0


def test_joined_sets_stand_one_behind_the_other():
    data = Dataset(np.arange(6, dtype=np.float32).reshape(3, 2), np.arange(3), 3)
    both = joined(data.take(np.array([0])), data.take(np.array([2, 1])))
    np.testing.assert_array_equal(both.y, [0, 2, 1])
    np.testing.assert_array_equal(both.x[:, 0], [0, 4, 2])
