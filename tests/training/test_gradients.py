"""Gradients under any values of the parameters: kernels against torch, masks, and statistics."""

import numpy as np
import pytest

from fedsparse.data import Dataset
from fedsparse.errors import TrainingError
from fedsparse.sparsity import Mask
from fedsparse.training.gradients import NativeGradients, TorchGradients, gradients
from strategies.task import Task
from tests.kernels.passes import needs_kernels
from tests.tiny_runs import tiny


def world(backend, *assignments):
    """Return gradients of a tiny run's model on one client's data, with the parameters' vector."""
    task = Task.of(tiny(f"client.backend={backend}", *assignments))
    state = task.pretrain(0, 0.0)
    data = task.data.client(0).train
    names = [name for name, _ in task.model.named_parameters()]
    flat = np.concatenate([state[name].reshape(-1) for name in names])
    return gradients(task.backend, state, data), flat, task, data


def masked(task, flat, density=0.2):
    """Return a mask of the weights and the vector without what it prunes."""
    rng = np.random.default_rng(0)
    mask = Mask.from_arrays({n: rng.random(s) < density for n, s in task.shapes.items()})
    kept = [
        mask[name].reshape(-1) if name in mask else np.ones(p.numel(), bool)
        for name, p in task.model.named_parameters()
    ]
    return mask, np.where(np.concatenate(kept), flat, 0).astype(np.float32), np.concatenate(kept)


@needs_kernels
@pytest.mark.parametrize("model", ["cnn", "mlp", "paper-cnn"])
@pytest.mark.parametrize("sparse", [False, True])
def test_the_kernels_find_what_torch_finds(model, sparse):
    found = {}
    for backend in ("torch", "native"):
        work, flat, task, _ = world(backend, f"model.name={model}", "model.width=0.25")
        assert isinstance(work, NativeGradients if backend == "native" else TorchGradients)
        mask, values, kept = masked(task, flat) if sparse else (None, flat, slice(None))
        loss, correct, gradient = work.of(values, np.arange(16), mask)
        found[backend] = loss, correct, gradient[kept].copy(), work.buffers()
    (loss, correct, gradient, statistics), ours = found["torch"], found["native"]
    assert ours[0] == pytest.approx(loss, rel=1e-5)
    assert ours[1] == correct
    scale = np.abs(gradient).max()
    np.testing.assert_allclose(ours[2], gradient, atol=2e-5 * scale)
    assert set(ours[3]) == set(statistics)
    for name, value in statistics.items():
        np.testing.assert_allclose(ours[3][name], value, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("backend", ["torch", pytest.param("native", marks=needs_kernels)])
def test_it_is_the_gradient_of_the_loss_and_changes_no_parameter(backend):
    work, flat, _, _ = world(backend, "model.name=mlp", "model.width=0.25")
    chosen, before = np.arange(12), flat.copy()
    _, _, gradient = work.of(flat, chosen)
    gradient = gradient.astype(np.float64)
    np.testing.assert_array_equal(flat, before)
    step = 1e-2 * gradient / np.linalg.norm(gradient)
    ahead, _, _ = work.of((flat + step).astype(np.float32), chosen)
    behind, _, _ = work.of((flat - step).astype(np.float32), chosen)
    slope = (ahead - behind) / (2 * 1e-2 * len(chosen))
    assert slope == pytest.approx(np.linalg.norm(gradient), rel=3e-2)


@pytest.mark.parametrize("backend", ["torch", pytest.param("native", marks=needs_kernels)])
def test_batches_of_one_cannot_train_batch_norm_over_vectors(backend):
    def one_batch():
        work, flat, _, _ = world(backend, "model.name=paper-cnn", "client.batch_size=1")
        work.of(flat, np.arange(1))

    with pytest.raises(TrainingError, match=r"raise client\.batch_size"):
        one_batch()


@pytest.mark.parametrize("backend", ["torch", pytest.param("native", marks=needs_kernels)])
def test_a_single_sample_is_seen_under_running_statistics(backend):
    task = Task.of(tiny(f"client.backend={backend}", "model.name=paper-cnn"))
    state = task.pretrain(0, 0.0)
    train = task.data.client(0).train
    alone = Dataset(train.x[:1], train.y[:1], train.classes)
    work = gradients(task.backend, state, alone)
    flat = np.concatenate([state[n].reshape(-1) for n, _ in task.model.named_parameters()])
    loss, _, gradient = work.of(flat, np.arange(1))
    assert np.isfinite(loss)
    assert np.isfinite(gradient).all()
    for name, value in work.buffers().items():
        np.testing.assert_array_equal(value, state[name])
