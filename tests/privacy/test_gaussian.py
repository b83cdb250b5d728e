"""How much noise a promise takes: by its definition, and by values worked out elsewhere."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import integrate, stats

from fedsparse.privacy.gaussian import delta_of, deviation_for, normals


def divergence(deviation, epsilon):
    """Return the integral of (p - exp(epsilon) q)+ for p = N(1, s^2), q = N(0, s^2)."""
    p, q = stats.norm(1, deviation), stats.norm(0, deviation)
    begin = 0.5 + epsilon * deviation**2  # from here on p is the larger one
    found, _ = integrate.quad(
        lambda x: p.pdf(x) - np.exp(epsilon) * q.pdf(x), begin, begin + 40 * deviation, epsabs=1e-13
    )
    return found


@pytest.mark.parametrize("epsilon", [0.1, 1.0, 4.0])
@pytest.mark.parametrize("delta", [1e-5, 1e-2])
def test_noise_keeps_the_promise_by_its_definition_and_no_less_noise_does(epsilon, delta):
    deviation = deviation_for(epsilon, delta)
    assert divergence(deviation, epsilon) == pytest.approx(delta, rel=1e-4)
    assert delta_of(deviation, epsilon) <= delta
    assert delta_of(deviation * (1 - 1e-6), epsilon) > delta


@pytest.mark.parametrize(
    ("epsilon", "delta", "deviation"),
    [(1.0, 1e-5, 3.730632), (8.0, 1e-5, 0.600229), (0.5, 1e-5, 7.031827)],
)
def test_golden_deviations(epsilon, delta, deviation):
    assert deviation_for(epsilon, delta) == pytest.approx(deviation, rel=1e-6)


def test_it_is_less_than_the_textbook_s():
    for epsilon in (0.1, 0.5, 1.0):
        assert deviation_for(epsilon, 1e-5) < np.sqrt(2 * np.log(1.25e5)) / epsilon


@settings(max_examples=60, deadline=None)
@given(st.floats(1e-3, 64), st.floats(1e-12, 0.999))
def test_any_promise_within_bounds_has_noise_that_keeps_it(epsilon, delta):
    deviation = deviation_for(epsilon, delta)
    assert 0 < deviation < np.inf
    assert delta_of(deviation, epsilon) <= delta


def test_the_system_s_noise_is_never_the_same_and_a_stream_s_always():
    assert (normals(9, None) != normals(9, None)).all()
    first, second = (normals(9, np.random.default_rng(1)) for _ in range(2))
    np.testing.assert_array_equal(first, second)
