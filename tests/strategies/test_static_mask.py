"""Static masks: every criterion under every allocation, and a mask that never moves (G6)."""

import numpy as np
import pytest
import torch

from fedsparse.errors import ConfigError, TooFewRepliesError
from fedsparse.runs import RunFolder, checkpoint
from fedsparse.sparsity import Mask
from simulations.grid import CohortGrid
from strategies.static_mask import StaticMask
from strategies.task import Task
from tests.strategies.stage import QUICK, stage
from tests.tiny_runs import run, tiny

STATIC = "strategy.name=static"
CRITERIA = ["random", "magnitude", "snip", "saliency", "grasp", "synflow", "fisher"]

SHARES = {
    # 144 of 1440 weights: a tenth of each layer's 1024, 256 and 160
    "uniform": [102.4, 25.6, 16.0],
    # in proportion to inputs plus outputs, 80, 32 and 26 of 138: with no kernel, ER is ERK
    "er": [144 * 80 / 138, 144 * 32 / 138, 144 * 26 / 138],
    "erk": [144 * 80 / 138, 144 * 32 / 138, 144 * 26 / 138],
}


def checkpoints(folder: RunFolder) -> list[tuple[Mask, dict[str, np.ndarray]]]:
    shapes = Task.of(folder.config).shapes
    trees = [checkpoint.load(folder.path / "checkpoints", r) for r in folder.checkpoints()]
    saved = [tree["strategy"] for tree in trees]
    return [(Mask.from_packed(shapes, tree["mask"]), tree["state"]) for tree in saved]


@pytest.mark.parametrize("allocation", ["uniform", "er", "erk", "global"])
@pytest.mark.parametrize("criterion", CRITERIA)
def test_every_criterion_and_allocation_runs_under_one_mask(tmp_path, criterion, allocation):
    out = tmp_path / "run"
    summary = run(
        out, *QUICK, STATIC, f"strategy.criterion={criterion}", f"strategy.allocation={allocation}"
    )
    assert summary["density"] == 0.1
    (mask, before), (after_mask, after) = checkpoints(RunFolder.open(out))
    assert mask == after_mask
    assert mask.kept == 144
    if allocation in SHARES:
        apart = np.array(list(mask.layer_kept().values())) - SHARES[allocation]
        assert np.abs(apart).max() <= 1
    for state in (before, after):
        assert not any(state[name][~mask[name]].any() for name in mask.names)
    assert any((before[name] != after[name]).any() for name in mask.names)


def test_the_mask_stands_still_and_pruned_weights_at_zero_whatever_the_optimizer(tmp_path):
    for optimizer in ("sgd", "adam"):
        out = tmp_path / optimizer
        run(
            out, *QUICK, STATIC, "run.rounds=3", "run.keep_checkpoints=0",
            f"client.optimizer={optimizer}", "client.weight_decay=0.01",
            "client.keep_optimizer=true", "fleet.clients_per_round=2",
        )  # fmt: skip
        found = checkpoints(RunFolder.open(out))
        assert len(found) == 4
        assert len({mask for mask, _ in found}) == 1
        assert not any(state[n][~mask[n]].any() for mask, state in found for n in mask.names)
        assert {row["mask_change"] for row in RunFolder.open(out).metrics()} == {0}


def test_clients_scores_make_the_mask_of_their_weighted_mean():
    """Top of sum_k n_k |g_k w| / n within each layer, worked out with plain torch."""
    strategy, grid = stage(
        STATIC, "strategy.criterion=snip", "strategy.allocation=uniform",
        "strategy.scored_by=clients", "strategy.score_samples=1000", "data.public_samples=0",
        "strategy.pretrain_epochs=0",
    )  # fmt: skip
    strategy.prepare(grid)
    fresh = Task.of(strategy.task.config)
    model, samples = fresh.model.eval(), 0
    total = {name: np.zeros(shape) for name, shape in fresh.shapes.items()}
    for client in range(4):
        own = fresh.data.client(client).train
        samples += len(own)
        output = model(torch.from_numpy(own.x))
        model.zero_grad()
        torch.nn.functional.cross_entropy(output, torch.from_numpy(own.y)).backward()
        for name, weight in model.named_parameters():
            if name in total:
                total[name] += len(own) * np.abs((weight.grad * weight.detach()).numpy())
    for name, kept in zip(total, (102, 26, 16), strict=True):
        top = np.argsort(-total[name].reshape(-1) / samples)[:kept]
        assert set(np.flatnonzero(strategy.mask[name])) == set(top), name


def test_scores_are_dense_up_only_for_what_can_be_pruned():
    strategy, grid = stage(STATIC, "strategy.criterion=snip", "strategy.scored_by=clients")
    strategy.prepare(grid)
    traffic = grid.read_traffic()
    assert set(traffic.up) == set(range(4))
    assert all(4 * 1440 < size < 4 * 1440 + 64 for size in traffic.up.values())
    assert all(4 * 1482 < size < 4 * 1482 + 64 for size in traffic.down.values())


@pytest.mark.parametrize("criterion", ["random", "magnitude", "synflow"])
def test_clients_do_not_score_by_what_looks_at_no_data(criterion):
    config = tiny(STATIC, f"strategy.criterion={criterion}", "strategy.scored_by=clients")
    with pytest.raises(ConfigError, match=f"'{criterion}' looks at no data; score it by the serv"):
        StaticMask(Task.of(config))


@pytest.mark.parametrize("criterion", ["snip", "saliency", "grasp", "fisher"])
def test_the_server_scores_by_data_only_if_it_has_some(criterion):
    config = tiny(STATIC, f"strategy.criterion={criterion}", "data.public_samples=0")
    with pytest.raises(ConfigError, match=r"data\.public_samples"):
        StaticMask(Task.of(config))


class Damaging(CohortGrid):
    """A grid on which the payload of client 2 loses its last byte."""

    def send_and_receive(self, messages, *, timeout=None):
        """Cut one payload."""
        replies = list(super().send_and_receive(messages, timeout=timeout))
        for array in replies[2].content["arrays"].values():
            array.data = array.data[:-1]
        return replies


def test_a_client_whose_scores_are_damaged_is_named_and_left_out():
    scored = ("strategy.criterion=snip", "strategy.scored_by=clients")
    strategy, grid = stage(STATIC, *scored, grid=Damaging)
    strategy.prepare(grid)
    assert strategy.mask.kept == 144
    assert list(strategy.failures) == [2]
    strict, grid = stage(STATIC, *scored, "fleet.min_replies=1.0", grid=Damaging)
    with pytest.raises(TooFewRepliesError, match=r"3 of 4 clients.*client 2: the payload is dama"):
        strict.prepare(grid)
    assert strict.mask is None
