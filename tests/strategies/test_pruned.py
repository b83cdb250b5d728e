"""Patterns and pruned layers: what training produces is what was asked for, to the last round."""

import numpy as np
import pytest

from fedsparse.errors import ConfigError
from fedsparse.runs import RunFolder, checkpoint
from fedsparse.sparsity import Mask
from fedsparse.sparsity.patterns import Blocks
from strategies import foreign
from strategies.fedtiny import FedTiny
from strategies.static_mask import StaticMask
from strategies.task import Task
from tests.strategies.stage import QUICK, stage
from tests.tiny_runs import run, tiny

STATIC = ("strategy.name=static", "strategy.allocation=uniform")
POINTWISE = ("model.name=mobilenet-v1", "model.width=0.125", "strategy.layers=pointwise")


def masks(out) -> list[Mask]:
    folder = RunFolder.open(out)
    shapes = Task.of(folder.config).shapes
    trees = [checkpoint.load(folder.path / "checkpoints", r) for r in folder.checkpoints()]
    return [Mask.from_packed(shapes, tree["strategy"]["mask"]) for tree in trees]


def prepared(*assignments: str) -> StaticMask:
    strategy, grid = stage(*assignments)
    strategy.prepare(grid)
    return strategy


def in_blocks(mask: Mask, rows: int) -> bool:
    pattern = Blocks(rows)
    return all(
        np.array_equal(pattern.unfold(pattern.fold(bits) > 0, bits.shape), bits)
        for _, bits in mask.items()
    )


# -- static ---------------------------------------------------------------------------


def test_blocks_of_outputs_stay_whole_to_the_end(tmp_path):
    summary = run(tmp_path / "run", *QUICK, *STATIC, "strategy.pattern=block-2")
    found = masks(tmp_path / "run")
    assert len(set(found)) == 1
    assert in_blocks(found[0], 2)
    assert found[0].layer_kept() == {"fc1.weight": 102, "fc2.weight": 26, "fc3.weight": 16}
    assert summary["density"] == 0.1


@pytest.mark.parametrize("pattern", ["block-4", "2:4", "group-2", "channels"])
def test_every_pattern_makes_the_mask_that_it_foretold(pattern):
    strategy = prepared(*STATIC, f"strategy.pattern={pattern}", "strategy.density=0.25")
    kept = dict(strategy.mask.layer_kept())
    foretold = strategy.demands(0.25)[-1][1]
    assert kept == {n: strategy.pruned.counts(0.25, "uniform")[n] for n in kept} == foretold
    assert not any(strategy.state[n][~bits].any() for n, bits in strategy.mask.items())


def test_two_of_four_keeps_half_whatever_more_is_asked_for():
    strategy = prepared(*STATIC, "strategy.pattern=2:4", "strategy.density=0.8")
    assert strategy.density == 0.5
    for _, bits in strategy.mask.items():
        assert (bits.reshape(len(bits), -1, 4).sum(axis=2) == 2).all()


def test_whole_channels_leave_every_class_its_output():
    strategy = prepared(*STATIC, "strategy.pattern=channels", "strategy.density=0.25")
    assert strategy.mask["fc3.weight"].all()
    assert strategy.mask.layer_kept() == {"fc1.weight": 256, "fc2.weight": 64, "fc3.weight": 160}


def test_clients_scores_make_masks_of_a_pattern_too():
    strategy = prepared(
        *STATIC, "strategy.criterion=snip", "strategy.scored_by=clients", "strategy.pattern=block-4"
    )
    assert in_blocks(strategy.mask, 4)


def test_synflow_ends_in_the_pattern():
    strategy = prepared(*STATIC, "strategy.criterion=synflow", "strategy.pattern=block-4")
    assert in_blocks(strategy.mask, 4)


def test_pointwise_prunes_1x1_convolutions_alone_and_density_is_theirs():
    strategy = prepared(*STATIC, *POINTWISE, "strategy.pattern=block-2")
    assert strategy.pruned.names == tuple(f"pointwise{n}.conv.weight" for n in range(1, 14))
    pruned = sum(strategy.mask.layer_kept()[n] for n in strategy.pruned.names)
    size = sum(int(np.prod(strategy.task.shapes[n])) for n in strategy.pruned.names)
    assert pruned / size == pytest.approx(0.1, abs=0.01)
    left = [n for n in strategy.mask.names if n not in strategy.pruned.names]
    assert all(strategy.mask[name].all() for name in left)
    assert strategy.density == strategy.mask.kept / strategy.mask.size > pruned / size
    assert strategy.mask_shapes == strategy.task.shapes


# -- fedtiny --------------------------------------------------------------------------


def test_fedtiny_moves_whole_blocks_of_the_layers_that_it_prunes(tmp_path):
    run(
        tmp_path / "run", *QUICK, "run.rounds=5", "run.keep_checkpoints=0", "strategy.stop_round=4",
        "strategy.pattern=block-2", "strategy.granularity=model", "strategy.base=uniform",
    )  # fmt: skip
    found = masks(tmp_path / "run")
    assert len(set(found)) > 2
    assert all(in_blocks(mask, 2) for mask in found)
    assert len({tuple(mask.layer_kept().items()) for mask in found}) == 1


def test_fedtiny_grows_the_blocks_of_largest_gradients():
    strategy, grid = stage("strategy.pattern=block-2", "strategy.selection=none")
    strategy.prepare(grid)
    before, name = strategy.mask[strategy.task.prunable[0]], strategy.task.prunable[0]
    rng = np.random.default_rng(0)
    gradient = rng.normal(size=before.shape) * ~before
    after = strategy.adjust({name: 6}, {name: gradient})[name]
    pairs = Blocks(2)
    grown = np.flatnonzero(pairs.fold(after & ~before))
    assert set(grown) == set(np.argsort(-pairs.fold(np.abs(gradient)).reshape(-1))[:3])
    weights = np.where(before, np.abs(strategy.state[name]), np.inf)
    dropped = np.flatnonzero(pairs.fold(before & ~after))
    assert set(dropped) == set(np.argsort(pairs.fold(weights).reshape(-1))[:3])


def test_fedtiny_adjusts_only_the_layers_that_it_prunes():
    strategy, grid = stage(*POINTWISE, "strategy.granularity=model", "strategy.candidates=2")
    strategy.prepare(grid)
    assert set(strategy.adjustments(1)) <= set(strategy.pruned.names)
    left = [n for n in strategy.mask.names if n not in strategy.pruned.names]
    assert all(strategy.mask[name].all() for name in left)
    for plan, _ in strategy.demands(0.1):
        assert set(plan.grow) <= set(strategy.pruned.names)


@pytest.mark.parametrize("pattern", ["2:4", "channels", "group-4"])
def test_fedtiny_moves_nothing_but_weights_and_blocks(pattern):
    with pytest.raises(ConfigError, match=f"'{pattern}': fedtiny moves single weights or blocks"):
        FedTiny(Task.of(tiny(f"strategy.pattern={pattern}")))


# -- asynchronous strategies ----------------------------------------------------------


def test_masks_that_get_sparser_keep_their_blocks():
    strategy = prepared(
        "strategy.name=fedbuff", "strategy.allocation=uniform", "strategy.pattern=block-2",
        "strategy.start_density=0.5", "strategy.prune_until=2", "fleet.profile=ideal",
    )  # fmt: skip
    first = strategy.mask
    strategy.prune(1)
    second = strategy.mask
    strategy.prune(2)
    assert in_blocks(first, 2)
    assert in_blocks(second, 2)
    assert in_blocks(strategy.mask, 2)
    assert first.density == 0.5 > second.density > strategy.mask.density == 0.1


# -- what is refused ------------------------------------------------------------------


@pytest.mark.parametrize(
    ("assignments", "message"),
    [
        (("strategy.pattern=blok-2",), r"strategy\.pattern = 'blok-2'.*did you mean 'block-2'"),
        (("strategy.pattern=4:2",), r"strategy\.pattern = '4:2': pattern '4:2' keeps 4 of 2"),
        (("strategy.layers=dense",), r"strategy\.layers = 'dense': must be 'all' or 'pointwise'"),
        (("strategy.pattern=2:4", "strategy.allocation=global"), "a global ranking is of single"),
        (("strategy.layers=pointwise",), "model 'cnn' has no 1x1 convolution"),
        (("strategy.pattern=channels", "model.name=linear"), "the model's only layer gives its"),
        (
            ("strategy.name=fedbuff", "strategy.pattern=group-2", "strategy.start_density=0.5",
             "fleet.profile=ideal"),
            "outputs that share a pattern would part",
        ),
        (("strategy.name=fedspa", "strategy.pattern=block-2"), r"unknown key 'strategy\.pattern'"),
        (("strategy.name=fedavg", "strategy.layers=pointwise"), r"unknown key 'strategy\.layers'"),
    ],
)  # fmt: skip
def test_what_does_not_go_together_is_one_line(assignments, message):
    chosen = [] if any("strategy.name" in a for a in assignments) else [STATIC[0]]
    with pytest.raises(ConfigError, match=message) as error:
        foreign.make(Task.of(tiny(*chosen, *assignments)))
    assert "\n" not in str(error.value)
