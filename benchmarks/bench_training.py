"""Local training: one epoch of one client, ours beside what a PyTorch user would write.

    make bench    or    .venv/bin/python -m pytest benchmarks/bench_training.py \
        -o python_files='bench_*.py' -o python_functions='bench_*' --benchmark-only

600 samples of 28 x 28, batches of 32, density 0.05, one thread; on the torch backend if not told.
`masked forward` multiplies the weights by the mask in every forward pass, as most public code
for sparse training does; `masked linear` masks the gradients of every layer, also of the wide
ones that fedsparse trains by their kept weights.
"""

import numpy as np
import pytest
import torch
from pytest_benchmark.fixture import BenchmarkFixture
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from fedsparse import models
from fedsparse.config import ClientConfig
from fedsparse.data import Dataset
from fedsparse.sparsity import Mask, static_mask
from fedsparse.training import growth, local
from fedsparse.training.backend import Backend

SHAPE, CLASSES, SAMPLES, BATCH, DENSITY = (1, 28, 28), 10, 600, 32, 0.05
MODELS = ("paper-cnn", "leaf-cnn")
SETTINGS = ClientConfig(lr=0.05, batch_size=BATCH, momentum=0.9)
MASKED = SETTINGS.model_copy(update={"sparse_linear_below": 0.0})
BF16 = SETTINGS.model_copy(update={"precision": "bf16"})


def build(name: str) -> nn.Module:
    torch.set_num_threads(1)
    torch.manual_seed(0)
    return models.build(name, input_shape=SHAPE, classes=CLASSES)


def samples() -> Dataset:
    rng = np.random.default_rng(0)
    x = rng.standard_normal((SAMPLES, *SHAPE), dtype=np.float32)
    return Dataset(x, rng.integers(0, CLASSES, SAMPLES), CLASSES)


def random_mask(model: nn.Module, density: float = DENSITY) -> Mask:
    rng = np.random.default_rng(1)
    return static_mask(model, models.prunable(model), density, "random", rng=rng)


def measure(benchmark: BenchmarkFixture, name: str, work: object) -> None:
    benchmark.group = f"one epoch of {SAMPLES} samples, {name}"
    assert callable(work)
    benchmark.pedantic(work, rounds=7, warmup_rounds=2)
    benchmark.extra_info["samples a second"] = round(SAMPLES / benchmark.stats.stats.median)


def ours(name: str, sparse: bool, settings: ClientConfig = SETTINGS) -> object:
    model = build(name).to(memory_format=torch.channels_last)
    mask = random_mask(model) if sparse else None
    if mask is not None:
        mask.apply_({weight: model.get_parameter(weight).data for weight in mask.names})
    data = samples()
    return lambda: local.train(model, data, settings, rng=np.random.default_rng(2), mask=mask)


@pytest.mark.parametrize("name", MODELS)
def bench_fedsparse_sparse(benchmark: BenchmarkFixture, name: str) -> None:
    measure(benchmark, name, ours(name, sparse=True))


@pytest.mark.parametrize("name", MODELS)
def bench_fedsparse_dense(benchmark: BenchmarkFixture, name: str) -> None:
    measure(benchmark, name, ours(name, sparse=False))


@pytest.mark.parametrize("name", MODELS)
def bench_fedsparse_masked_linear(benchmark: BenchmarkFixture, name: str) -> None:
    measure(benchmark, name, ours(name, sparse=True, settings=MASKED))


@pytest.mark.parametrize("name", MODELS)
def bench_fedsparse_dense_bf16(benchmark: BenchmarkFixture, name: str) -> None:
    measure(benchmark, name, ours(name, sparse=False, settings=BF16))


@pytest.mark.parametrize("density", [1.0, 0.05, 0.01])
@pytest.mark.parametrize("name", MODELS)
def bench_fedsparse_native(benchmark: BenchmarkFixture, name: str, density: float) -> None:
    model, mask = build(name), None
    state = models.get_state(model)
    if density < 1:
        mask = random_mask(model, density)
        mask.apply_(state)
    backend = Backend(model, SHAPE, SETTINGS.model_copy(update={"backend": "native"}))
    client, data = backend.load(state, mask), samples()
    measure(benchmark, name, lambda: client.train(data, SETTINGS, rng=np.random.default_rng(2)))


def data_loader_loop(model: nn.Module) -> object:
    """The loop of PyTorch's tutorials: a DataLoader, one optimizer, no mask."""
    data = samples()
    loader = DataLoader(
        TensorDataset(torch.from_numpy(data.x), torch.from_numpy(data.y)), BATCH, shuffle=True
    )
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9)
    criterion = nn.CrossEntropyLoss()

    def epoch() -> None:
        model.train()
        for x, y in loader:
            optimizer.zero_grad()
            criterion(model(x), y).backward()
            optimizer.step()

    return epoch


@pytest.mark.parametrize("name", MODELS)
def bench_pytorch_dataloader_dense(benchmark: BenchmarkFixture, name: str) -> None:
    measure(benchmark, name, data_loader_loop(build(name)))


class _Masked(nn.Module):
    """A parametrization that multiplies a weight by its mask, as torch.nn.utils.prune does."""

    def __init__(self, bits: np.ndarray) -> None:
        super().__init__()
        self.register_buffer("bits", torch.from_numpy(np.array(bits, np.float32)))

    def forward(self, weight: torch.Tensor) -> torch.Tensor:
        return weight * self.bits


@pytest.mark.parametrize("name", MODELS)
def bench_pytorch_dataloader_autocast_bf16(benchmark: BenchmarkFixture, name: str) -> None:
    epoch = data_loader_loop(build(name))
    assert callable(epoch)

    def half() -> None:
        with torch.autocast("cpu", torch.bfloat16):
            epoch()

    measure(benchmark, name, half)


@pytest.mark.parametrize("name", MODELS)
def bench_pytorch_masked_forward(benchmark: BenchmarkFixture, name: str) -> None:
    model = build(name)
    for weight, bits in random_mask(model).items():
        layer = model.get_submodule(weight.rpartition(".")[0])
        nn.utils.parametrize.register_parametrization(layer, "weight", _Masked(bits))
    measure(benchmark, name, data_loader_loop(model))


@pytest.mark.parametrize("form", ["bounded buffer", "dense gradient"])
@pytest.mark.parametrize("name", MODELS)
def bench_pruned_gradients(benchmark: BenchmarkFixture, name: str, form: str) -> None:
    """The largest pruned gradients of every layer: FedTiny's buffer against a dense one."""
    model = build(name)
    mask, data = random_mask(model), samples()
    batch = Dataset(data.x[:64], data.y[:64], CLASSES)
    counts = {n: max(1, int(0.3 * kept)) for n, kept in mask.layer_kept().items()}

    def dense() -> None:
        x, y = torch.from_numpy(batch.x), torch.from_numpy(batch.y)
        parameters = [dict(model.named_parameters())[n] for n in counts]
        gradients = torch.autograd.grad(nn.functional.cross_entropy(model(x), y), parameters)
        for (layer, count), gradient in zip(counts.items(), gradients, strict=True):
            magnitude = gradient.abs().reshape(-1)
            magnitude[torch.from_numpy(np.array(mask[layer].reshape(-1)))] = -1
            torch.topk(magnitude, count)

    def bounded() -> None:
        growth.top_gradients(model, mask, batch, counts)

    benchmark.group = f"largest pruned gradients of 64 samples, {name}"
    benchmark.pedantic(bounded if form == "bounded buffer" else dense, rounds=9, warmup_rounds=2)
    benchmark.extra_info["entries held"] = (
        sum(counts.values()) if form == "bounded buffer" else mask.size
    )
