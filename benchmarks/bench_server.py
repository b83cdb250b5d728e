"""The server's work on a round: averaging replies, making masks, carrying messages.

    make bench    or    .venv/bin/python -m pytest benchmarks/bench_server.py \
        -o python_files='bench_*.py' --benchmark-only

A model of 6.5 million weights at density 0.05 and ten clients; each of our steps stands beside
the one of Flower or PyTorch that a user would call instead.
"""

import time
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from flwr.app import Array, ArrayRecord, Message, MetricRecord, RecordDict
from flwr.serverapp import Grid
from flwr.serverapp.strategy.strategy_utils import aggregate_arrayrecords
from pytest_benchmark.fixture import BenchmarkFixture

from fedsparse import models, wire
from fedsparse.sparsity import Mask, State, layer_counts, top_mask
from fedsparse.sparsity.allocation import erk
from simulations.flower_engine import run_with_flower
from simulations.grid import CohortGrid, InlineExecutor
from simulations.ray_workers import RayExecutor
from strategies.base import Reply, weighted_mean
from strategies.task import masked

CLIENTS, ECHOES, DENSITY = 10, 40, 0.05


_NO_MESSAGE: Any = None


@pytest.fixture(scope="module")
def model() -> tuple[State, Mask]:
    torch.set_num_threads(1)
    net = models.build("leaf-cnn", input_shape=(1, 28, 28), classes=10)
    state = models.get_state(net)
    shapes = models.shapes(net, models.prunable(net))
    counts = layer_counts(shapes, erk(shapes, DENSITY))
    mask = top_mask({name: np.abs(state[name]) for name in shapes}, counts)
    return masked(state, mask), mask


@pytest.fixture(scope="module")
def magnitudes() -> dict[str, np.ndarray]:
    """Scores without ties, as trained weights have."""
    net = models.build("leaf-cnn", input_shape=(1, 28, 28), classes=10)
    state = models.get_state(net)
    return {name: np.abs(state[name]) for name in models.prunable(net)}


@pytest.fixture(scope="module")
def payloads(model: tuple[State, Mask]) -> list[bytes]:
    state, mask = model
    rng = np.random.default_rng(0)
    found = []
    for _ in range(CLIENTS):
        moved = {n: v + rng.standard_normal(v.shape, np.float32) for n, v in state.items()}
        found.append(wire.encode(masked(moved, mask), mask=mask, mode="shared"))
    return found


def bench_decode_and_average(
    benchmark: BenchmarkFixture, model: tuple[State, Mask], payloads: list[bytes]
) -> None:
    """Ours: decode ten sparse replies and take their weighted mean."""
    state, mask = model
    schema = wire.Schema.of(state)

    def aggregate() -> None:
        replies = []
        for client, payload in enumerate(payloads):
            kept = wire.decode_kept(payload, schema, mask)
            replies.append(Reply(client, 100 + client, kept, 0.0, _NO_MESSAGE, mask=mask))
        weighted_mean(replies)

    benchmark.group = f"decode and average {CLIENTS} replies"
    benchmark.extra_info["bytes"] = sum(map(len, payloads))
    benchmark.pedantic(aggregate, rounds=9, warmup_rounds=1)


def bench_flower_decode_and_average(benchmark: BenchmarkFixture, model: tuple[State, Mask]) -> None:
    """Flower's FedAvg on dense arrays of the same model."""
    state, _ = model
    records = []
    for client in range(CLIENTS):
        arrays = ArrayRecord({n: Array(np.asarray(v)) for n, v in state.items()})
        metrics = MetricRecord({"num-examples": 100 + client})
        records.append(RecordDict({"arrays": arrays, "metrics": metrics}))
    benchmark.group = f"decode and average {CLIENTS} replies"
    benchmark.extra_info["bytes"] = CLIENTS * sum(v.nbytes for v in state.values())
    benchmark.pedantic(aggregate_arrayrecords, (records, "num-examples"), rounds=9, warmup_rounds=1)


def bench_top_mask(
    benchmark: BenchmarkFixture, model: tuple[State, Mask], magnitudes: dict[str, np.ndarray]
) -> None:
    """Ours: the largest magnitudes of each layer, as a mask of packed bits."""
    benchmark.group = "mask of the largest magnitudes"
    benchmark(top_mask, magnitudes, model[1].layer_kept())


def bench_torch_topk(
    benchmark: BenchmarkFixture, model: tuple[State, Mask], magnitudes: dict[str, np.ndarray]
) -> None:
    """PyTorch's topk, scattered into boolean tensors."""
    counts = model[1].layer_kept()
    scored = {name: torch.from_numpy(score).reshape(-1) for name, score in magnitudes.items()}

    def make() -> None:
        for name, score in scored.items():
            bits = torch.zeros(len(score), dtype=torch.bool)
            bits[torch.topk(score, counts[name]).indices] = True

    benchmark.group = "mask of the largest magnitudes"
    benchmark(make)


def bench_mask_overlap(benchmark: BenchmarkFixture, model: tuple[State, Mask]) -> None:
    """Ours: kept by both over kept by either, on packed bits."""
    _, mask = model
    other = Mask.from_arrays({n: np.roll(bits, 1) for n, bits in mask.items()})
    benchmark.group = "overlap of two masks"
    benchmark(mask.overlap, other)


def bench_torch_overlap(benchmark: BenchmarkFixture, model: tuple[State, Mask]) -> None:
    """The same on boolean tensors."""
    _, mask = model
    first = [torch.from_numpy(np.array(bits)) for _, bits in mask.items()]
    second = [torch.roll(bits, 1) for bits in first]

    def overlap() -> float:
        both = sum(int((a & b).sum()) for a, b in zip(first, second, strict=True))
        either = sum(int((a | b).sum()) for a, b in zip(first, second, strict=True))
        return both / either

    benchmark.group = "overlap of two masks"
    benchmark(overlap)


def _exchange(grid: Grid, arrays: ArrayRecord) -> None:
    content = RecordDict({"arrays": arrays})
    sent = [Message(content, node, "train") for node in grid.get_node_ids()]
    replies = list(grid.send_and_receive(messages=sent, timeout=600))
    assert len(replies) == ECHOES
    assert not any(reply.has_error() for reply in replies)


def _on_grid(engine: str, work: Callable[[Grid], None]) -> None:
    """Hand a grid of echoing clients to `work`; two workers, but for `inline`."""
    app = "benchmarks.echo_app:app"
    if engine == "flower":
        run_with_flower(lambda grid, _: work(grid), app, clients=ECHOES, workers=2)
        return
    executor = InlineExecutor(app) if engine == "inline" else RayExecutor(app, workers=2)
    with CohortGrid(app, clients=ECHOES, executor=executor) as grid:
        work(grid)


@pytest.mark.parametrize("form", ["sparse payload", "dense arrays"])
@pytest.mark.parametrize("engine", ["inline", "ray", "flower"])
def bench_messages(
    benchmark: BenchmarkFixture, model: tuple[State, Mask], engine: str, form: str
) -> None:
    """Clients that send back what they get, each reply delivered; starting is not counted."""
    state, mask = model
    if form == "sparse payload":
        arrays = wire.pack(wire.encode(state, mask=mask))
    else:
        arrays = ArrayRecord({n: Array(np.asarray(v)) for n, v in state.items()})

    def work(grid: Grid) -> None:
        while len(list(grid.get_node_ids())) < ECHOES:
            time.sleep(0.1)
        benchmark.pedantic(_exchange, (grid, arrays), rounds=3, warmup_rounds=1)

    benchmark.group = f"a round of {ECHOES} clients that send back what they get"
    _on_grid(engine, work)
    benchmark.extra_info["clients a second"] = round(ECHOES / benchmark.stats.stats.median, 1)
