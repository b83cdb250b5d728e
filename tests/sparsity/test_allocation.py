"""Allocation: each rule's equation, values worked out by hand, and whole counts that add up."""

from math import prod

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fedsparse.errors import MaskError
from fedsparse.sparsity import check_density, er, erk, layer_counts, rescale, uniform
from fedsparse.sparsity.allocation import ALLOCATIONS, global_counts

QUICK = settings(max_examples=200, derandomize=True, deadline=None, database=None)
RULES = [uniform, er, erk]
NET = {"a": (4, 2), "b": (10, 10), "c": (2, 2)}
"""8, 100 and 4 weights; sums of dimensions 6, 20 and 4, so ERK's raw densities .75, .2, 1."""
CONV = {"conv": (8, 4, 3, 3), "fc": (10, 8)}
"""288 and 80 weights; sums of dimensions 18 and 18, of channels 12 and 18."""
SHAPES = st.lists(
    st.lists(st.integers(1, 9), min_size=1, max_size=4).map(tuple), min_size=1, max_size=6
).map(lambda shapes: {f"layer{i}": shape for i, shape in enumerate(shapes)})
DENSITIES = st.floats(0.005, 1.0)


# -- densities ------------------------------------------------------------------------


@pytest.mark.parametrize("density", [0, -0.1, 1.5, float("nan"), float("inf"), True, "abc", None])
def test_a_density_is_a_number_above_0_and_at_most_1(density):
    with pytest.raises(MaskError, match="above 0 and at most 1"):
        check_density(density)


@pytest.mark.parametrize("density", [1, 1.0, 0.5, 1e-9, np.float64(0.25)])
def test_a_good_density_comes_back_as_a_float(density):
    assert check_density(density) == density
    assert type(check_density(density)) is float


@pytest.mark.parametrize("rule", RULES)
@pytest.mark.parametrize("density", [0, 1.5, float("nan"), True, "abc"])
def test_every_rule_checks_its_density(rule, density):
    with pytest.raises(MaskError, match="above 0 and at most 1"):
        rule(NET, density)


@pytest.mark.parametrize("rule", RULES)
@pytest.mark.parametrize("shapes", [{}, {"a": (0, 3)}, {"a": (4, 2), "b": (3, 0)}], ids=str)
def test_layers_without_weights_are_refused(rule, shapes):
    with pytest.raises(MaskError, match="no weights to share"):
        rule(shapes, 0.5)


# -- rules ----------------------------------------------------------------------------


def test_the_rules_by_name():
    assert dict(ALLOCATIONS) == {"uniform": uniform, "er": er, "erk": erk}


def test_uniform_is_the_same_everywhere():
    assert uniform(NET, 0.3) == {"a": 0.3, "b": 0.3, "c": 0.3}


def test_erk_where_no_layer_becomes_dense():
    # eps = 0.25 * 112 / (6 + 20 + 4) = 28 / 30
    expected = {"a": 0.75 * 28 / 30, "b": 0.2 * 28 / 30, "c": 28 / 30}
    assert erk(NET, 0.25) == pytest.approx(expected, rel=1e-12)


def test_erk_where_two_layers_become_dense_at_once():
    # eps = 56 / 30 puts a at 1.4 and c at 1.87: both dense, (56 - 12) of 100 are left for b.
    assert erk(NET, 0.5) == pytest.approx({"a": 1.0, "b": 0.44, "c": 1.0}, rel=1e-12)


def test_erk_where_a_layer_becomes_dense_only_because_another_did():
    # eps = 39 / 30 puts c at 1.3 and a at 0.975; without c eps = 35 / 26, a at 1.0096.
    found = erk(NET, 39 / 112)
    assert found == pytest.approx({"a": 1.0, "b": 0.27, "c": 1.0}, rel=1e-12)


def test_erk_counts_kernels_and_er_does_not():
    # ERK: both layers have dimensions that sum to 18, so half of 36.8 weights each.
    expected = {"conv": 18.4 / 288, "fc": 18.4 / 80}
    assert erk(CONV, 0.1) == pytest.approx(expected, rel=1e-12)
    # ER: raw 12/32 and 18/80, weighted by size 108 and 18, so eps = 36.8 / 126.
    expected = {"conv": 12 / 32 * 36.8 / 126, "fc": 18 / 80 * 36.8 / 126}
    assert er(CONV, 0.1) == pytest.approx(expected, rel=1e-12)


@pytest.mark.parametrize("rule", RULES)
def test_full_density_is_dense_everywhere(rule):
    assert rule(NET, 1.0) == pytest.approx({"a": 1.0, "b": 1.0, "c": 1.0}, rel=1e-12)
    assert layer_counts(NET, rule(NET, 1.0)) == {"a": 8, "b": 100, "c": 4}


@QUICK
@given(SHAPES, DENSITIES)
def test_every_rule_spends_the_budget_and_no_layer_exceeds_1(shapes, density):
    total = sum(map(prod, shapes.values()))
    for rule in RULES:
        found = rule(shapes, density)
        assert list(found) == list(shapes)
        assert all(0 < d <= 1 for d in found.values())
        spent = sum(d * prod(shapes[name]) for name, d in found.items())
        assert spent == pytest.approx(density * total, rel=1e-9)


@QUICK
@given(SHAPES, DENSITIES, st.data())
def test_rescaling_solves_the_fixed_point(shapes, density, data):
    """One eps gives every layer min(1, eps raw), and these spend the budget."""
    raw = {name: data.draw(st.floats(0.01, 5)) for name in shapes}
    found = rescale(shapes, raw, density)
    sizes = {name: prod(shape) for name, shape in shapes.items()}
    below = [found[name] / raw[name] for name in shapes if found[name] < 1]
    eps = below[0] if below else max(1 / value for value in raw.values())
    for name in shapes:
        assert found[name] == pytest.approx(min(1.0, eps * raw[name]), rel=1e-9)
    spent = sum(min(1.0, eps * raw[name]) * sizes[name] for name in shapes)
    assert spent == pytest.approx(density * sum(sizes.values()), rel=1e-9)


def test_rescaling_does_not_see_the_scale_of_raw():
    raw = {"a": 3.0, "b": 1.0, "c": 2.0}
    tenfold = {name: 10 * value for name, value in raw.items()}
    assert rescale(NET, raw, 0.3) == pytest.approx(rescale(NET, tenfold, 0.3), rel=1e-12)


# -- whole counts ---------------------------------------------------------------------


def test_counts_by_largest_remainder():
    # Shares 2.8, 18.6, 0.6 sum to 22: floors 2, 18, 0 leave two, which go to .8 and .6 of b.
    densities = {"a": 0.35, "b": 0.186, "c": 0.15}
    assert layer_counts(NET, densities) == {"a": 3, "b": 18, "c": 1}


def test_an_empty_layer_takes_one_from_the_largest():
    # Shares 0.2, 10, 0.1: the whole budget of 10 is in b, which gives one to each other.
    densities = {"a": 0.025, "b": 0.1, "c": 0.025}
    assert layer_counts(NET, densities) == {"a": 1, "b": 8, "c": 1}


def test_every_layer_keeps_one_even_where_the_budget_does_not_reach():
    assert layer_counts(NET, uniform(NET, 0.01)) == {"a": 1, "b": 1, "c": 1}


@QUICK
@given(SHAPES, DENSITIES, st.sampled_from(RULES))
def test_counts_sum_to_the_rounded_budget_wherever_each_layer_can_hold_one(shapes, density, rule):
    sizes = {name: prod(shape) for name, shape in shapes.items()}
    shares = {name: d * sizes[name] for name, d in rule(shapes, density).items()}
    counts = layer_counts(shapes, rule(shapes, density))
    assert all(1 <= counts[name] <= sizes[name] for name in shapes)
    assert sum(counts.values()) == max(round(sum(shares.values())), len(shapes))
    assert abs(sum(shares.values()) - density * sum(sizes.values())) < 1e-6
    if min(shares.values()) >= 1:
        assert all(abs(counts[name] - shares[name]) < 1 + 1e-6 for name in shapes)


def test_a_global_ranking_keeps_the_rounded_budget_and_at_least_one():
    scores = {"a": np.zeros((4, 2)), "b": np.zeros(92)}
    assert global_counts(scores, 0.114) == 11
    assert global_counts(scores, 1.0) == 100
    assert global_counts(scores, 0.001) == 1
    with pytest.raises(MaskError, match="no weights to share"):
        global_counts({}, 0.5)
