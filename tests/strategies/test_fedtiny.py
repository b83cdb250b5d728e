"""FedTiny: its equations by hand, and what must hold in every round (gates G4, G6)."""

import math
from itertools import chain

import numpy as np
import pytest

from fedsparse import wire
from fedsparse.errors import ConfigError
from fedsparse.runs import RunFolder
from fedsparse.sparsity import Mask, cosine
from strategies.fedtiny import FedTiny
from strategies.task import Task
from tests.tiny_runs import rows, run, tiny


@pytest.fixture(scope="module")
def strategy() -> FedTiny:
    return FedTiny(Task.of(tiny("strategy.adjust_every=10", "strategy.stop_round=100")))


def random_mask(strategy: FedTiny, density: float) -> Mask:
    rng = np.random.default_rng(0)
    return Mask.from_arrays({n: rng.random(s) < density for n, s in strategy.task.shapes.items()})


@pytest.mark.parametrize("t", [0, 10, 50, 90, 100, 110])
def test_adjusted_count_is_the_papers_formula(strategy, t):
    expected = int(0.15 * (1 + math.cos(math.pi * t / 100)) * 1000) if t < 100 else 0
    assert strategy.adjusted_count(t, 1000) == expected


def test_adjusts_every_tenth_round_until_the_stop_round(strategy, monkeypatch):
    strategy.mask = random_mask(strategy, 0.5)
    anywhere = strategy.settings.model_copy(update={"granularity": "model"})
    monkeypatch.setattr(strategy, "settings", anywhere)
    adjusted = [t for t in range(1, 131) if strategy.adjustments(t)]
    assert adjusted == [10, 20, 30, 40, 50, 60, 70, 80, 90]
    assert cosine(0.3, 100)(100) == 0.0


def test_blocks_go_from_output_to_input_and_start_again(strategy):
    names = strategy.task.prunable
    order = [strategy.scheduled_block(i) for i in range(2 * len(names))]
    assert order[0][-1] == names[-1]
    round_trip = len({tuple(block) for block in order})
    assert sorted(chain.from_iterable(order[:round_trip])) == sorted(names)
    assert order[round_trip] == order[0]


def test_pool_size_follows_the_density():
    assert FedTiny(Task.of(tiny("strategy.density=0.01"))).settings.candidates == 3
    unset = FedTiny(Task.of(tiny("strategy.density=0.01")))
    object.__setattr__(unset.settings, "candidates", None)
    assert unset.pool_size() == 10


def test_candidates_differ_by_layer_but_not_in_density(strategy):
    pool = strategy.candidate_pool(strategy.task.pretrain(0, 0.0))
    assert len({mask.digest for mask in pool}) == len(pool) == 3
    sizes = {mask.kept for mask in pool}
    assert sizes == {round(0.1 * pool[0].size)}


def test_growth_takes_the_largest_gradients_and_drops_the_smallest_weights(strategy):
    strategy.mask = random_mask(strategy, 0.2)
    name = strategy.task.prunable[-1]
    rng = np.random.default_rng(1)
    weights = rng.normal(size=strategy.task.shapes[name]).astype(np.float32)
    kept = strategy.mask[name]
    strategy.state = {name: weights * kept}
    gradient = rng.normal(size=weights.shape) * ~kept
    adjusted = strategy.adjust({name: 4}, {name: gradient})
    grown = np.flatnonzero(adjusted[name] & ~kept)
    dropped = np.flatnonzero(kept & ~adjusted[name])
    assert set(grown) == set(np.argsort(-np.abs(gradient).reshape(-1))[:4])
    order = np.argsort(np.where(kept, np.abs(weights), np.inf).reshape(-1))
    assert set(dropped) == set(order[:4])
    assert adjusted.kept == strategy.mask.kept


def test_asks_for_the_servers_own_data():
    with pytest.raises(ConfigError, match=r"data\.public_samples"):
        FedTiny(Task.of(tiny("data.public_samples=0")))


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    out = tmp_path_factory.mktemp("runs") / "fedtiny"
    summary = run(out, "run.rounds=6", "strategy.stop_round=4", "run.keep_checkpoints=0")
    return RunFolder.open(out), summary


def checkpoints(folder: RunFolder) -> list[tuple[Mask, dict[str, np.ndarray]]]:
    from fedsparse.runs import checkpoint

    shapes = Task.of(folder.config).shapes
    trees = [checkpoint.load(folder.path / "checkpoints", r) for r in folder.checkpoints()]
    return [
        (Mask.from_packed(shapes, t["strategy"]["mask"]), t["strategy"]["state"]) for t in trees
    ]


def test_pruned_weights_are_exactly_zero_after_every_round(finished):
    for mask, state in checkpoints(finished[0]):
        assert all(not state[name][~mask[name]].any() for name in mask.names)


def test_every_layer_keeps_its_count(finished):
    masks = [mask for mask, _ in checkpoints(finished[0])]
    assert len({tuple(mask.layer_kept().values()) for mask in masks}) == 1
    assert masks[0].kept == round(0.1 * masks[0].size)


def test_the_mask_moves_and_then_stands_still(finished):
    changes = [row["mask_change"] for row in rows(finished[0].path)]
    assert sum(changes[1:4]) > 0
    assert changes[4:] == [0, 0, 0]


def test_only_the_scheduled_block_changes(finished):
    masks = [mask for mask, _ in checkpoints(finished[0])]
    names = masks[0].names
    last = {n for n in names if not np.array_equal(masks[0][n], masks[1][n])}
    assert last <= {names[-1]}


def test_bytes_up_are_the_kept_values_and_the_top_gradients(finished):
    """Gate G4: up = 4 nnz + 4 dense entries, and on adjustment rounds the buffer."""
    folder, _ = finished
    task = Task.of(folder.config)
    (mask, state), *_ = checkpoints(folder)
    dense = sum(v.size for n, v in state.items() if n not in mask.names)
    exact = 4 * (mask.kept + dense)
    clients = folder.config.fleet.clients
    per_round = {row["round"]: row["bytes_up"] for row in rows(folder.path)}
    overhead = 64 + 8 * len(task.schema.names)
    assert exact <= per_round[6] / clients <= exact + overhead
    strategy = FedTiny(task)
    strategy.mask = mask
    buffer = sum(strategy.adjustments(1).values())
    assert buffer > 0
    assert exact < per_round[1] / clients <= exact + 8 * buffer + 2 * overhead


def test_flops_and_buffer_against_dense_and_prunefl(finished):
    """Gate G4: arithmetic by density; the buffer is a small part of a dense gradient."""
    task = Task.of(tiny("strategy.density=0.01"))
    strategy = FedTiny(task)
    mask = strategy.mask = random_mask(strategy, 0.01)
    by_layer = {layer.name: layer.forward_flops for layer in task.cost.layers}
    expected = sum(d * by_layer[n] for n, d in mask.layer_density().items()) / sum(
        by_layer.values()
    )
    ratio = task.cost.train_flops(10, mask) / task.cost.train_flops(10)
    assert ratio == pytest.approx(expected, rel=0.1)
    kept = mask.layer_kept()
    buffer = max(8 * strategy.adjusted_count(t, sum(kept.values())) for t in range(100))
    assert buffer <= 0.02 * 4 * mask.size


def test_selection_sends_statistics_and_counts_them(tmp_path):
    adaptive = run(tmp_path / "a", "run.rounds=1", "strategy.stop_round=0")
    vanilla = run(
        tmp_path / "v", "run.rounds=1", "strategy.stop_round=0", "strategy.selection=vanilla"
    )
    up_a, up_v = (rows(tmp_path / x)[0]["bytes_up"] for x in "av")
    assert up_v == 0
    task = Task.of(tiny())
    from fedsparse.training import batchnorm

    one = len(wire.encode(batchnorm.statistics(task.model)))
    assert up_a == 4 * 3 * one
    assert adaptive["bytes_down"] > vanilla["bytes_down"]


@pytest.mark.parametrize(
    "setting",
    ["selection=none", "granularity=model", "granularity=layer", "order=forward",
     "variance_rule=total", "loss_weights=uniform", "reestimate=none", "base=uniform",
     "values=f16", "values=int8"],
)  # fmt: skip
def test_every_option_runs_and_keeps_the_density(tmp_path, setting):
    summary = run(tmp_path / "run", "run.rounds=2", f"strategy.{setting}")
    assert summary["density"] == pytest.approx(0.1, abs=0.001)
    assert math.isfinite(summary["loss"])


IMAGES = ("data.name=synthetic-images", "data.image_size=16", "data.samples=80")
WIDTHS = {"resnet18": 0.0625, "mobilenet-v1": 0.125, "leaf-cnn": 0.125, "paper-cnn": 1, "mlp": 1}


@pytest.mark.parametrize("model", WIDTHS)
def test_every_layer_of_every_model_can_be_adjusted(model, tmp_path):
    """Whatever its layers are called, and whether or not it has BatchNorm."""
    run(
        tmp_path / "run",
        *IMAGES,
        "data.public_samples=20",
        f"model.name={model}",
        f"model.width={WIDTHS[model]}",
        "strategy.granularity=model",
        "fleet.clients=2",
        "run.rounds=2",
    )
    adjusted = rows(tmp_path / "run")[1]
    assert adjusted["clients_failed"] == 0
    assert adjusted["mask_change"] > 0
