"""Criterion x allocation = mask: exact counts, ties, and no layer that collapses."""

from itertools import pairwise

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.datasets import load_digits
from torch import nn

from fedsparse import models
from fedsparse.errors import MaskError, UnknownNameError
from fedsparse.sparsity import (
    Mask,
    compose,
    erk,
    layer_counts,
    mask_from_scores,
    static_mask,
    top,
    top_mask,
    top_mask_global,
)
from fedsparse.sparsity.criteria import CRITERIA, scores

QUICK = settings(max_examples=100, derandomize=True, deadline=None, database=None)
SCORED = {
    "a": np.array([[0.9, 0.1], [0.8, 0.7]], np.float32),
    "b": np.array([0.2, 0.3, 0.15], np.float32),
}


def rng(seed: int = 0) -> np.random.Generator:
    return np.random.default_rng(seed)


def kept(mask: Mask) -> dict[str, list[int]]:
    return {name: np.flatnonzero(part).tolist() for name, part in mask.items()}


@pytest.fixture(scope="module")
def digits() -> list[tuple[torch.Tensor, torch.Tensor]]:
    images, labels = load_digits(return_X_y=True)
    x = torch.tensor(images[:32], dtype=torch.float32).reshape(-1, 1, 8, 8) / 8 - 1
    return [(x, torch.tensor(labels[:32]))]


@pytest.fixture
def net() -> nn.Module:
    torch.manual_seed(0)
    return models.build("cnn", input_shape=(1, 8, 8), classes=10, width=0.5)


# -- scores to masks, by hand ---------------------------------------------------------


def test_the_highest_of_each_layer_are_kept():
    assert kept(top_mask(SCORED, {"a": 2, "b": 1})) == {"a": [0, 2], "b": [1]}


def test_a_layer_may_keep_all_or_nothing():
    assert kept(top_mask(SCORED, {"a": 4, "b": 0})) == {"a": [0, 1, 2, 3], "b": []}


def test_a_global_ranking_may_leave_a_layer_empty():
    assert kept(top_mask_global(SCORED, 3 / 7)) == {"a": [0, 2, 3], "b": []}
    assert kept(top_mask_global(SCORED, 5 / 7)) == {"a": [0, 2, 3], "b": [0, 1]}


def test_ties_go_to_the_lower_position_and_the_earlier_layer():
    flat = {"a": np.ones((2, 2), np.float32), "b": np.ones(3, np.float32)}
    assert kept(top_mask(flat, {"a": 1, "b": 2})) == {"a": [0], "b": [0, 1]}
    assert kept(top_mask_global(flat, 5 / 7)) == {"a": [0, 1, 2, 3], "b": [0]}


def test_signed_scores_are_ranked_as_they_stand():
    assert kept(top_mask({"a": np.array([-3.0, 1.0, -1.0])}, {"a": 2})) == {"a": [1, 2]}


def test_the_mask_follows_the_order_and_shapes_of_the_scores():
    mask = top_mask_global({"z": SCORED["b"], "a": SCORED["a"]}, 0.5)
    assert dict(mask.shapes) == {"z": (3,), "a": (2, 2)}
    assert mask.names == ("z", "a")


@QUICK
@given(st.lists(st.lists(st.integers(-3, 3), min_size=1, max_size=9), min_size=1, max_size=4))
def test_no_pruned_weight_has_a_higher_score_than_a_kept_one(layers):
    scored = {f"layer{i}": np.array(values, np.float32) for i, values in enumerate(layers)}
    total = sum(map(len, layers))
    for part in (0.1, 0.5, 1.0):
        mask = top_mask_global(scored, part)
        assert mask.kept == max(1, round(part * total))
        strong = [s for name in scored for s in scored[name][mask[name]]]
        weak = [s for name in scored for s in scored[name][~mask[name]]]
        assert not weak or min(strong) >= max(weak)


@pytest.mark.parametrize("allocation", ["uniform", "er", "erk"])
def test_an_allocation_decides_how_many_and_the_scores_which(allocation):
    mask = mask_from_scores(SCORED, 0.5, allocation)
    counts = layer_counts(mask.shapes, compose.ALLOCATIONS[allocation](mask.shapes, 0.5))
    assert mask.layer_kept() == counts
    assert mask == top_mask(SCORED, counts)


def test_global_is_an_allocation_by_name():
    assert mask_from_scores(SCORED, 3 / 7, "global") == top_mask_global(SCORED, 3 / 7)


# -- what is refused ------------------------------------------------------------------


@pytest.mark.parametrize(("wrong", "near"), [("erkk", "erk"), ("globl", "global")])
def test_an_unknown_allocation_proposes_the_nearest(wrong, near):
    with pytest.raises(UnknownNameError, match=f"'{wrong}'; did you mean '{near}'"):
        mask_from_scores(SCORED, 0.5, wrong)


@pytest.mark.parametrize("allocation", ["uniform", "er", "erk", "global"])
@pytest.mark.parametrize("density", [0, 1.5, float("nan"), True, "abc"])
def test_densities_are_checked(net, allocation, density):
    with pytest.raises(MaskError, match="above 0 and at most 1"):
        mask_from_scores(SCORED, density, allocation)
    with pytest.raises(MaskError, match="above 0 and at most 1"):
        static_mask(net, models.prunable(net), density, allocation=allocation, rng=rng())


@pytest.mark.parametrize("count", [-1, 5])
def test_counts_that_a_layer_cannot_hold_are_refused(count):
    with pytest.raises(MaskError, match=f"cannot keep {count} of the 4 weights of 'a'"):
        top_mask(SCORED, {"a": count, "b": 1})


@pytest.mark.parametrize("allocation", ["uniform", "er", "erk", "global"])
def test_no_scores_make_no_mask(allocation):
    with pytest.raises(MaskError, match="no weights to share"):
        mask_from_scores({}, 0.5, allocation)


def test_an_unknown_criterion_proposes_the_nearest(net):
    with pytest.raises(UnknownNameError, match="'synflo'; did you mean 'synflow'"):
        static_mask(net, models.prunable(net), 0.5, "synflo", rng=rng())


# -- static masks ---------------------------------------------------------------------


@pytest.mark.parametrize("allocation", ["uniform", "er", "erk", "global"])
@pytest.mark.parametrize("criterion", CRITERIA)
def test_every_criterion_goes_with_every_allocation(net, digits, criterion, allocation):
    names = models.prunable(net)
    before = models.get_state(net)
    mask = static_mask(net, names, 0.1, criterion, allocation, digits, rng=rng())
    assert mask.kept == round(0.1 * mask.size)
    assert dict(mask.shapes) == models.shapes(net, names)
    if allocation != "global":
        rates = compose.ALLOCATIONS[allocation](mask.shapes, 0.1)
        assert mask.layer_kept() == layer_counts(mask.shapes, rates)
    after = models.get_state(net)
    assert all(np.array_equal(before[name], after[name]) for name in before)
    assert net.training


def test_magnitude_under_erk_keeps_the_largest_weights_of_each_layer(net):
    names = models.prunable(net)
    mask = static_mask(net, names, 0.1, rng=rng())
    counts = layer_counts(mask.shapes, erk(mask.shapes, 0.1))
    for name, bits in mask.items():
        magnitude = np.abs(net.get_parameter(name).detach().numpy())
        assert bits.sum() == counts[name]
        assert magnitude[bits].min() > magnitude[~bits].max()


def test_random_masks_follow_their_generator(net):
    names = models.prunable(net)
    one, same, other = (static_mask(net, names, 0.1, "random", rng=rng(seed)) for seed in (0, 0, 1))
    assert one == same
    assert one != other
    assert one.layer_kept() == other.layer_kept()


def test_full_density_keeps_everything(net, digits):
    names = models.prunable(net)
    for criterion in CRITERIA:
        mask = static_mask(net, names, 1.0, criterion, "erk", digits, rng=rng())
        assert mask == Mask.full(mask.shapes)


def test_batches_may_come_from_a_generator(net, digits):
    names = models.prunable(net)
    one = static_mask(net, names, 0.1, "snip", "erk", iter(digits), rng=rng())
    assert one == static_mask(net, names, 0.1, "snip", "erk", digits, rng=rng())


# -- SynFlow's hundred steps ----------------------------------------------------------


def test_synflow_prunes_in_a_hundred_steps_each_inside_the_last(net, digits, monkeypatch):
    steps: list[tuple[float, Mask]] = []

    def watch(scored, density, allocation, pattern):
        steps.append((density, mask_from_scores(scored, density, allocation, pattern)))
        return steps[-1][1]

    monkeypatch.setattr(compose, "mask_from_scores", watch)
    mask = static_mask(net, models.prunable(net), 0.01, "synflow", "global", digits, rng=rng())
    densities, masks = zip(*steps, strict=True)
    assert densities == pytest.approx([0.01 ** (k / 100) for k in range(1, 101)], rel=1e-12)
    assert all((after - before).kept == 0 for before, after in pairwise(masks))
    assert masks[-1] == mask


def test_synflow_collapses_no_layer_where_magnitude_in_one_step_does():
    """At density 0.01, ranked globally; the last layer is the one that magnitude empties.

    Its weights are scaled down, which changes no path's rank and so not SynFlow's mask.
    """
    torch.manual_seed(0)
    net = models.build("paper-cnn", input_shape=(1, 28, 28), classes=10)
    names, image = models.prunable(net), [(torch.zeros(1, 1, 28, 28), torch.zeros(1))]
    with torch.no_grad():
        net.fc2.weight.mul_(0.01)
    magnitude = static_mask(net, names, 0.01, "magnitude", "global", rng=rng())
    assert magnitude.layer_kept()["fc2.weight"] == 0
    mask = static_mask(net, names, 0.01, "synflow", "global", image, rng=rng())
    assert mask.kept == round(0.01 * mask.size)
    assert min(mask.layer_kept().values()) > 0
    # A path is left from the input to the output: every layer carries the same flow.
    flow = scores("synflow", net, names, image, rng=rng(), mask=mask)
    sums = {name: float(score.sum(dtype=float)) for name, score in flow.items()}
    assert min(sums.values()) > 0
    assert sums["conv1.weight"] == pytest.approx(sums["conv2.weight"], rel=1e-4)
    assert sums["conv2.weight"] == pytest.approx(sums["fc1.weight"], rel=1e-4)


@pytest.mark.parametrize("dtype", [np.float32, np.float64, np.int64])
def test_the_top_is_that_of_a_stable_sort(dtype):
    rng = np.random.default_rng(0)
    for size in (1, 2, 7, 100):
        flat = rng.integers(-3, 4, size).astype(dtype)
        for count in range(size + 1):
            first = np.argsort(-flat, kind="stable")[:count]
            assert np.array_equal(np.flatnonzero(top(flat, count)), np.sort(first))


def test_nan_has_no_rank():
    with pytest.raises(MaskError, match="NaN"):
        top(np.array([1.0, np.nan, 2.0, 0.0]), 2)
