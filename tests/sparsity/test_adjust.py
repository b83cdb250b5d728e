"""Prune and grow: the number of weights stays, and each paper's order holds."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fedsparse.errors import MaskError
from fedsparse.sparsity import grow_and_prune, prune_and_grow

QUICK = settings(max_examples=200, derandomize=True, deadline=None, database=None)

WEIGHTS = np.array([5.0, -1.0, 3.0, 0.0, 0.0, 0.0], np.float32)
MASK = np.array([1, 1, 1, 0, 0, 0], bool)
GRADIENTS = np.array([0.0, 9.0, 0.0, 0.1, -0.7, 0.3], np.float32)


def kept(mask: np.ndarray) -> list[int]:
    return np.flatnonzero(mask).tolist()


@st.composite
def layers(draw: st.DrawFn) -> tuple[np.ndarray, np.ndarray, np.ndarray, int]:
    """Draw a layer's weights, mask and gradients with ties, and how many to move."""
    shape = draw(st.sampled_from([(1,), (7,), (3, 4), (2, 3, 2)]))
    size = int(np.prod(shape))
    values = st.lists(st.integers(-4, 4), min_size=size, max_size=size)
    mask = np.array(draw(values)) > draw(st.integers(-5, 4))
    weights = np.where(mask, np.array(draw(values)) / 2, 0).astype(np.float32)
    gradients = (np.array(draw(values)) / 4).astype(np.float32)
    count = draw(st.integers(0, size + 2))
    return weights.reshape(shape), mask.reshape(shape), gradients.reshape(shape), count


def pruned_candidates(mask: np.ndarray, gradients: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    candidates = np.flatnonzero(~mask)
    return candidates, gradients.reshape(-1)[candidates]


# -- by hand --------------------------------------------------------------------------


def test_the_smallest_weight_goes_and_the_largest_gradient_comes():
    assert kept(prune_and_grow(WEIGHTS, MASK, GRADIENTS, 1)) == [0, 2, 4]
    assert kept(prune_and_grow(WEIGHTS, MASK, GRADIENTS, 2)) == [0, 4, 5]


def test_a_weight_dropped_just_now_grows_again_only_with_regrow():
    assert kept(prune_and_grow(WEIGHTS, MASK, GRADIENTS, 1, regrow=True)) == [0, 1, 2]
    assert kept(prune_and_grow(WEIGHTS, MASK, GRADIENTS, 2, regrow=True)) == [0, 1, 4]


def test_fedtiny_grows_among_its_candidates_and_drops_as_many_of_the_old():
    found = grow_and_prune(WEIGHTS, MASK, np.array([3, 5]), np.array([0.1, -0.3]), 1)
    assert kept(found) == [0, 2, 5]


def test_just_grown_weights_are_never_pruned_though_they_are_zero():
    found = grow_and_prune(WEIGHTS, MASK, *pruned_candidates(MASK, GRADIENTS), 2)
    assert kept(found) == [0, 4, 5]


def test_candidates_that_nobody_sent_or_that_are_kept_do_not_count():
    candidates = np.array([0, 1, 3, 4, 5])
    gradients = np.array([8.0, 9.0, 0.0, np.nan, 0.3])
    assert kept(grow_and_prune(WEIGHTS, MASK, candidates, gradients, 2)) == [0, 2, 5]


def test_ties_go_to_the_lower_position():
    equal = np.ones(6, np.float32)
    assert kept(prune_and_grow(equal, MASK, equal, 1)) == [1, 2, 3]
    assert kept(grow_and_prune(equal, MASK, np.array([5, 4, 3]), np.ones(3), 1)) == [1, 2, 3]


@pytest.mark.parametrize("count", [2, 3, 100])
def test_at_least_one_weight_stays(count):
    assert kept(prune_and_grow(WEIGHTS, MASK, GRADIENTS, count)) == [0, 4, 5]
    found = grow_and_prune(WEIGHTS, MASK, *pruned_candidates(MASK, GRADIENTS), count)
    assert kept(found) == [0, 4, 5]


def test_no_more_moves_than_there_is_to_grow():
    mask = np.array([1, 1, 1, 1, 1, 0], bool)
    weights = np.array([5, 4, 3, 2, 1, 0], np.float32)
    assert kept(prune_and_grow(weights, mask, GRADIENTS, 4)) == [0, 1, 2, 3, 5]
    assert kept(grow_and_prune(weights, mask, np.array([5]), np.ones(1), 4)) == [0, 1, 2, 3, 5]
    full = np.ones(6, bool)
    for regrow in (False, True):
        assert prune_and_grow(weights, full, GRADIENTS, 3, regrow=regrow).all()


def test_a_layer_with_one_weight_or_none_stays_as_it_is():
    for mask in (np.array([0, 1, 0], bool), np.zeros(3, bool)):
        weights = mask.astype(np.float32)
        assert np.array_equal(prune_and_grow(weights, mask, np.ones(3), 2), mask)
        found = grow_and_prune(weights, mask, *pruned_candidates(mask, np.ones(3)), 2)
        assert np.array_equal(found, mask)


def test_no_candidates_move_nothing():
    none = np.array([], np.int64)
    assert np.array_equal(grow_and_prune(WEIGHTS, MASK, none, none, 2), MASK)


# -- what always holds ----------------------------------------------------------------


@QUICK
@given(layers(), st.booleans())
def test_pruning_and_growing_keeps_the_count_and_follows_the_order(layer, regrow):
    weights, mask, gradients, count = layer
    before = mask.copy()
    found = prune_and_grow(weights, mask, gradients, count, regrow=regrow)
    assert np.array_equal(mask, before)
    assert found.shape == mask.shape
    assert found.sum() == mask.sum()
    dropped, grown = mask & ~found, found & ~mask
    moved = max(0, min(count, mask.sum() - 1, (~mask).sum()))
    if not regrow:
        assert dropped.sum() == grown.sum() == moved
        assert not (grown & mask).any()
    if dropped.any() and not regrow:
        assert np.abs(weights[dropped]).max() <= np.abs(weights[mask & found]).min()
        left = ~mask & ~found
        strongest_left = np.abs(gradients[left]).max() if left.any() else 0
        assert np.abs(gradients[grown]).min() >= strongest_left


@QUICK
@given(layers())
def test_growing_and_pruning_keeps_the_count_and_follows_the_order(layer):
    weights, mask, gradients, count = layer
    candidates, strength = pruned_candidates(mask, gradients)
    found = grow_and_prune(weights, mask, candidates, strength, count)
    dropped, grown = mask & ~found, found & ~mask
    moved = max(0, min(count, mask.sum() - 1, np.count_nonzero(strength)))
    assert dropped.sum() == grown.sum() == moved
    if moved:
        assert np.abs(weights[dropped]).max() <= np.abs(weights[mask & found]).min()
        left = ~mask & ~found
        strongest_left = np.abs(gradients[left]).max() if left.any() else 0
        assert np.abs(gradients[grown]).min() >= max(strongest_left, 0.25)


@QUICK
@given(layers())
def test_with_every_gradient_sent_fedtinys_order_is_rigls_without_regrowth(layer):
    weights, mask, gradients, count = layer
    gradients = np.where(gradients == 0, np.float32(0.1), gradients)
    found = grow_and_prune(weights, mask, *pruned_candidates(mask, gradients), count)
    assert np.array_equal(found, prune_and_grow(weights, mask, gradients, count))


@QUICK
@given(layers(), st.randoms(use_true_random=False))
def test_the_order_of_candidates_does_not_matter(layer, random):
    weights, mask, gradients, count = layer
    candidates, strength = pruned_candidates(mask, gradients)
    order = list(range(len(candidates)))
    random.shuffle(order)
    one = grow_and_prune(weights, mask, candidates, strength, count)
    two = grow_and_prune(weights, mask, candidates[order], strength[order], count)
    assert np.array_equal(one, two)


# -- what is refused ------------------------------------------------------------------


def test_a_negative_count_is_refused():
    with pytest.raises(MaskError, match="cannot adjust -1 weights"):
        prune_and_grow(WEIGHTS, MASK, GRADIENTS, -1)
    with pytest.raises(MaskError, match="cannot adjust -1 weights"):
        grow_and_prune(WEIGHTS, MASK, np.array([3]), np.ones(1), -1)


def test_unlike_shapes_are_refused():
    with pytest.raises(MaskError, match=r"weights .* differ in shape"):
        prune_and_grow(WEIGHTS[:5], MASK, GRADIENTS, 1)
    with pytest.raises(MaskError, match=r"gradients .* differ in shape"):
        prune_and_grow(WEIGHTS, MASK, np.ones(7), 1)
    with pytest.raises(MaskError, match=r"weights .* differ in shape"):
        grow_and_prune(WEIGHTS.reshape(2, 3), MASK, np.array([3]), np.ones(1), 1)


@pytest.mark.parametrize("place", [-1, 6])
def test_candidates_outside_the_layer_are_refused(place):
    with pytest.raises(MaskError, match=r"must lie in \[0, 6\)"):
        grow_and_prune(WEIGHTS, MASK, np.array([3, place]), np.ones(2), 1)


@pytest.mark.parametrize(("candidates", "gradients"), [([4, 4], [1, 2]), ([3, 4], [1])], ids=str)
def test_candidates_are_distinct_and_have_a_gradient_each(candidates, gradients):
    with pytest.raises(MaskError, match="distinct positions with one gradient each"):
        grow_and_prune(WEIGHTS, MASK, np.array(candidates), np.array(gradients), 2)
