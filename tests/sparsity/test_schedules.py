"""Schedules: the papers' formulas, exact at values worked out by hand."""

import math
from itertools import pairwise

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fedsparse.errors import ConfigError
from fedsparse.sparsity import constant, cosine, cubic, linear

QUICK = settings(max_examples=100, derandomize=True, deadline=None, database=None)
EXACT = {"rel": 0, "abs": 1e-12}
FRACTIONS = st.floats(0, 1)


def test_constant_is_the_same_in_every_round():
    assert [constant(0.25)(t) for t in (0, 1, 1000)] == [0.25] * 3


@pytest.mark.parametrize(
    ("t", "value"), [(-3, 0.2), (0, 0.2), (1, 0.35), (2, 0.5), (3, 0.65), (4, 0.8), (9, 0.8)]
)
def test_linear_is_a_straight_line_and_flat_outside(t, value):
    assert linear(0.2, 0.8, 0, 4)(t) == pytest.approx(value, **EXACT)


@pytest.mark.parametrize(
    ("t", "value"),
    [
        (0, 0.3),
        (5, 0.15 * (1 + math.sqrt(2) / 2)),
        (10, 0.15),
        (15, 0.15 * (1 - math.sqrt(2) / 2)),
        (20, 0.0),
        (21, 0.0),
    ],
)
def test_cosine_falls_from_alpha_over_its_half_to_zero(t, value):
    assert cosine(0.3, 20)(t) == pytest.approx(value, **EXACT)


def test_cosine_is_exactly_zero_from_its_end_on():
    assert [cosine(0.3, 7)(t) for t in (7, 8, 100)] == [0.0] * 3
    assert cosine(0.3, 0)(0) == 0.0


@pytest.mark.parametrize(
    ("t", "value"),
    [(0, 1.0), (10, 1.0), (15, 0.4796875), (20, 0.2125), (25, 0.1140625), (30, 0.1), (99, 0.1)],
)
def test_cubic_prunes_fast_at_first(t, value):
    assert cubic(1.0, 0.1, 10, 30)(t) == pytest.approx(value, **EXACT)


def test_cubic_is_zhu_and_guptas_formula_in_densities():
    initial, final, t0, steps, every = 0.0, 0.95, 4, 8, 2
    density = cubic(1 - initial, 1 - final, t0, t0 + steps * every)
    for t in range(t0, t0 + steps * every + 1):
        sparsity = final + (initial - final) * (1 - (t - t0) / (steps * every)) ** 3
        assert density(t) == pytest.approx(1 - sparsity, **EXACT)


@QUICK
@given(FRACTIONS, FRACTIONS, st.integers(-5, 20), st.integers(1, 30))
def test_a_schedule_starts_and_ends_where_it_says_and_never_turns_back(start, end, t0, length):
    for schedule in (linear, cubic):
        values = [schedule(start, end, t0, t0 + length)(t) for t in range(t0 - 2, t0 + length + 3)]
        assert values[0] == values[2] == pytest.approx(start, **EXACT)
        assert values[-1] == values[-3] == pytest.approx(end, **EXACT)
        steps = [(b - a) * (1 if end >= start else -1) for a, b in pairwise(values)]
        assert min(steps) >= -1e-12


@pytest.mark.parametrize("schedule", [linear, cubic])
@pytest.mark.parametrize("end", [5, 4])
def test_a_schedule_without_length_is_refused_when_it_is_made(schedule, end):
    with pytest.raises(ConfigError, match=f"from round 5 to {end} has no length"):
        schedule(1.0, 0.1, 5, end)
