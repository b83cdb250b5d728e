"""Patterns: the structure holds, the counts are as told, and the best groups are kept."""

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

from fedsparse.errors import MaskError, UnknownNameError
from fedsparse.sparsity import mask_from_scores, patterns, top_mask
from fedsparse.sparsity.patterns import Blocks, Channels, Ratio, Shared, Unstructured, named

QUICK = settings(max_examples=50, derandomize=True, deadline=None, database=None)
NAMES = ["unstructured", "block-1", "block-2", "block-4", "1:3", "2:4", "channels", "group-3"]
SHAPES = st.one_of(
    st.tuples(st.integers(1, 9)),
    st.tuples(st.integers(1, 11), st.integers(1, 9)),
    st.tuples(st.integers(1, 7), st.integers(1, 6), st.just(3), st.integers(1, 2)),
)


@st.composite
def layers(draw):
    """Scores of one layer, many of them equal, and how many weights are to be kept."""
    shape = draw(SHAPES)
    scores = draw(arrays.arrays(np.float32, shape, elements=st.integers(0, 5)))
    return scores, draw(st.integers(0, scores.size))


def whole_blocks(bits, rows):
    matrix = bits.reshape(len(bits), -1)
    cut = [matrix[i : i + rows] for i in range(0, len(matrix), rows)]
    return all((block == block[0]).all() for block in cut)


def kept_per_run(bits, among):
    """How many are kept of each run of inputs, for each output and place in the kernel."""
    inputs = bits.reshape(len(bits), bits.shape[1] if bits.ndim > 1 else 1, -1)
    return [inputs[:, i : i + among].sum(axis=1) for i in range(0, inputs.shape[1], among)]


# -- what holds of every pattern ------------------------------------------------------


@pytest.mark.parametrize("name", NAMES)
@QUICK
@given(layers())
def test_shape_and_count_are_as_told(name, layer):
    scores, count = layer
    pattern = named(name)
    bits = pattern.keep(scores, count)
    most = pattern.most(scores.shape, count)
    assert bits.shape == scores.shape
    assert bits.dtype == np.bool_
    assert bits.sum() <= most <= scores.size
    assert (bits.sum() == 0) == (count == 0)
    divides = not isinstance(pattern, Blocks) or len(scores) % pattern.rows == 0
    assert bits.sum() == most or not divides


@pytest.mark.parametrize("name", NAMES)
@QUICK
@given(layers())
def test_the_count_is_missed_by_less_than_a_group(name, layer):
    scores, count = layer
    pattern = named(name)
    group = {
        Unstructured: 0, Ratio: 0, Blocks: getattr(pattern, "rows", 0) / 2,
        Channels: math.prod(scores.shape[1:]) / 2, Shared: len(scores) / 2,
    }[type(pattern)]  # fmt: skip
    if count > group and not isinstance(pattern, Ratio):
        assert abs(pattern.most(scores.shape, count) - count) <= group


@pytest.mark.parametrize("name", NAMES)
@QUICK
@given(layers())
def test_equal_scores_give_equal_masks(name, layer):
    scores, count = layer
    pattern = named(name)
    first = pattern.keep(scores, count)
    assert np.array_equal(first, pattern.keep(scores.copy(), count))
    assert np.array_equal(first, pattern.keep(scores.astype(np.float64), count))
    assert np.array_equal(first, pattern.keep(np.asfortranarray(scores), count))


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("shape", [(8, 6), (5, 7), (4, 4, 3, 3)])
def test_nan_and_counts_that_are_not_there_are_refused(name, shape):
    scores = np.ones(shape, np.float32)
    for count in (-1, scores.size + 1):
        with pytest.raises(MaskError, match=f"cannot keep {count} of the {scores.size} weights"):
            named(name).keep(scores, count)
    scores.flat[3] = np.nan
    for count in (0, 3, scores.size):
        with pytest.raises(MaskError, match="NaN, which has no rank"):
            named(name).keep(scores, count)


@pytest.mark.parametrize("name", NAMES)
def test_an_empty_layer_keeps_nothing(name):
    assert named(name).keep(np.zeros((0, 4), np.float32), 0).shape == (0, 4)
    assert named(name).keep(np.zeros((4, 0), np.float32), 0).shape == (4, 0)


# -- each by itself -------------------------------------------------------------------


@QUICK
@given(layers(), st.integers(1, 5))
def test_blocks_are_whole_and_those_of_largest_sum(layer, rows):
    scores, count = layer
    bits = Blocks(rows).keep(scores, count)
    assert whole_blocks(bits, rows)
    sums = Blocks(rows).fold(scores)
    kept = Blocks(rows).fold(bits) > 0
    assert not kept.any() or kept.all() or sums[kept].min() >= sums[~kept].max()
    assert sums.sum() == scores.sum()


@QUICK
@given(layers())
def test_blocks_of_one_are_single_weights(layer):
    scores, count = layer
    assert np.array_equal(Blocks(1).keep(scores, count), Unstructured().keep(scores, count))


@QUICK
@given(layers(), st.integers(1, 5), st.integers(1, 5))
def test_a_ratio_holds_in_each_run_of_inputs(layer, one, other):
    scores, count = layer
    ratio = Ratio(min(one, other), max(one, other))
    bits = ratio.keep(scores, count)
    assert all(kept.max(initial=0) <= ratio.kept for kept in kept_per_run(bits, ratio.among))
    free = ratio.keep(scores, scores.size)
    assert not (bits & ~free).any(), "fewer weights are the best of those that the ratio allows"
    if bits.any() and (free & ~bits).any():
        assert scores[bits].min() >= scores[free & ~bits].max()


@QUICK
@given(layers())
def test_two_of_four_keeps_the_two_largest(layer):
    scores, _ = layer
    bits = Ratio(2, 4).keep(scores, scores.size)
    shape = (len(scores), scores.shape[1] if scores.ndim > 1 else 1, -1)
    for output, kept in zip(scores.reshape(shape), bits.reshape(shape), strict=True):
        for place in range(output.shape[1]):
            for i in range(0, len(output), 4):
                run = output[i : i + 4, place]
                best = np.argsort(-run, kind="stable")[:2]
                assert set(np.flatnonzero(kept[i : i + 4, place])) == set(best)


@QUICK
@given(layers())
def test_channels_are_whole_and_those_of_largest_sum(layer):
    scores, count = layer
    rows = Channels().keep(scores, count).reshape(len(scores), -1)
    assert (rows.all(axis=1) | ~rows.any(axis=1)).all()
    sums = scores.reshape(len(scores), -1).sum(axis=1)
    kept = rows.any(axis=1)
    assert not kept.any() or kept.all() or sums[kept].min() >= sums[~kept].max()


@QUICK
@given(layers(), st.integers(1, 4))
def test_outputs_share_few_patterns_that_suit_them(layer, number):
    scores, count = layer
    bits = Shared(number).keep(scores, count)
    rows = bits.reshape(len(scores), -1)
    assert len(np.unique(rows, axis=0)) <= number
    assert len(set(rows.sum(axis=1))) == 1
    common = Shared(1).keep(scores, count)
    assert scores[bits].sum() >= scores[common].sum()


def test_as_many_patterns_as_outputs_keep_the_best_of_each():
    scores = np.random.default_rng(0).random((6, 10)).astype(np.float32)
    bits = Shared(6).keep(scores, 18)
    for row, kept in zip(scores, bits, strict=True):
        assert set(np.flatnonzero(kept)) == set(np.argsort(-row)[:3])


def test_outputs_that_are_alike_come_together_wherever_they_are():
    one, other = np.array([9.0, 9, 0, 0]), np.array([0.0, 0, 9, 9])
    scores = np.stack([one, other, one, one, other, one])
    assert np.array_equal(Shared(2).keep(scores, 12), scores > 0)


# -- by hand --------------------------------------------------------------------------

HAND = np.array(
    [
        [9, 1, 0, 0],
        [0, 8, 0, 7],
        [0, 0, 6, 0],
        [5, 0, 6, 0],
        [4, 0, 0, 2],
    ],
    np.float32,
)


@pytest.mark.parametrize(
    ("name", "count", "kept"),
    [
        ("unstructured", 4, [0, 5, 7, 10]),
        ("block-2", 4, [0, 4, 10, 14]),  # blocks of 9 + 0 and 6 + 6
        ("block-4", 5, [0, 4, 8, 12]),  # 14 of the first four rows; the last row is its own block
        ("2:4", 20, [0, 1, 5, 7, 8, 10, 12, 14, 16, 19]),
        ("2:4", 3, [0, 5, 7]),
        ("1:3", 20, [0, 3, 5, 7, 10, 11, 14, 15, 16, 19]),  # of inputs 0 to 2, and of input 3
        ("channels", 8, [4, 5, 6, 7, 12, 13, 14, 15]),
        ("group-1", 5, [0, 4, 8, 12, 16]),
    ],
)
def test_what_is_kept_of_a_small_layer(name, count, kept):
    assert np.flatnonzero(named(name).keep(HAND, count)).tolist() == kept


def test_ties_go_to_the_lower_position():
    ones = np.ones((4, 4), np.float32)
    found = {name: np.flatnonzero(named(name).keep(ones, 4)).tolist() for name in NAMES}
    assert found == {
        "unstructured": [0, 1, 2, 3],
        "block-1": [0, 1, 2, 3],
        "block-2": [0, 1, 4, 5],
        "block-4": [0, 4, 8, 12],
        "1:3": [0, 3, 4, 7],
        "2:4": [0, 1, 4, 5],
        "channels": [0, 1, 2, 3],
        "group-3": [0, 4, 8, 12],
    }


# -- names ----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "pattern"),
    [
        ("unstructured", Unstructured()),
        ("block-4", Blocks(4)),
        ("2:4", Ratio(2, 4)),
        ("channels", Channels()),
        ("group-8", Shared(8)),
    ],
)
def test_a_pattern_is_named_by_a_text(text, pattern):
    assert named(text) == pattern


@pytest.mark.parametrize("text", ["", "block", "block-0", "block--2", "0:4", "2:", "2:4:8", "²:4"])
def test_other_texts_are_refused(text):
    with pytest.raises(UnknownNameError, match="unknown pattern"):
        named(text)


def test_the_nearest_name_is_proposed():
    with pytest.raises(UnknownNameError, match="'channel'; did you mean 'channels'"):
        named("channel")
    with pytest.raises(MaskError, match=r"'4:2' keeps 4 of 2; swap them"):
        named("4:2")


# -- masks of patterns ----------------------------------------------------------------


@pytest.mark.parametrize("allocation", ["uniform", "er", "erk"])
@pytest.mark.parametrize("name", NAMES)
def test_a_pattern_goes_with_every_allocation(name, allocation):
    rng = np.random.default_rng(0)
    scored = {"a": rng.random((16, 12)), "b": rng.random((24, 16)), "c": rng.random((8, 24, 1, 1))}
    pattern = named(name)
    mask = mask_from_scores(scored, 0.25, allocation, pattern)
    plain = mask_from_scores(scored, 0.25, allocation).layer_kept()
    assert mask == top_mask(scored, plain, pattern)
    assert mask.layer_kept() == {n: pattern.most(s.shape, plain[n]) for n, s in scored.items()}
    assert abs(mask.density - 0.25) < 0.06


def test_a_global_ranking_is_of_single_weights():
    with pytest.raises(MaskError, match="of single weights; choose another allocation"):
        mask_from_scores({"a": HAND}, 0.5, "global", Blocks(2))


def test_every_form_of_name_has_an_example():
    assert {type(named(text)) for text in patterns.EXAMPLES} == set(patterns.PATTERNS.values())
