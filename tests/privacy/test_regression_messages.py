"""What one sample can move: never more than is stated, and as much as is stated."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays
from scipy import stats

from fedsparse.privacy import regression
from fedsparse.privacy.regression import (
    gradients,
    hard_threshold,
    least_squares,
    moments,
    noisy_mean,
    packed,
    project,
    shortened,
    unpacked,
)

NUMBERS = st.floats(-1e6, 1e6, width=32)
SAMPLES = st.tuples(arrays.arrays(np.float32, 4, elements=NUMBERS), NUMBERS)
POSITIVE = st.floats(0.125, 1000, width=32)


def one(sample):
    x, y = sample
    return x[None], np.array([y], np.float32)


@settings(max_examples=300, deadline=None)
@given(SAMPLES, SAMPLES, POSITIVE, POSITIVE)
def test_two_samples_moments_are_never_further_apart_than_their_sensitivity(a, b, longest, largest):
    moved = moments(*one(a), longest, largest) - moments(*one(b), longest, largest)
    assert np.linalg.norm(moved) <= regression.MOMENTS_SENSITIVITY * (1 + 1e-9)


@settings(max_examples=300, deadline=None)
@given(SAMPLES, SAMPLES, arrays.arrays(np.float64, 4, elements=NUMBERS), POSITIVE)
def test_two_samples_gradients_are_never_further_apart_than_their_sensitivity(a, b, theta, clip):
    moved = gradients(*one(a), theta, clip) - gradients(*one(b), theta, clip)
    assert np.linalg.norm(moved) <= regression.GRADIENT_SENSITIVITY * (1 + 1e-9)


@settings(max_examples=60, deadline=None)
@given(st.lists(SAMPLES, min_size=1, max_size=4), SAMPLES, POSITIVE, POSITIVE)
def test_one_sample_in_another_s_place_moves_a_client_s_sum_no_further(own, other, long, large):
    def told(samples):
        x, y = np.stack([x for x, _ in samples]), np.array([y for _, y in samples], np.float32)
        return moments(x, y, long, large)

    moved = np.linalg.norm(told(own) - told([other, *own[1:]]))
    assert moved <= regression.MOMENTS_SENSITIVITY * (1 + 1e-9)


def test_sensitivities_are_reached():
    """Samples at 60 degrees with opposite targets; gradients against each other."""
    x = np.array([[2.0, 0.0], [1.0, 3**0.5]])
    told = [moments(x[i : i + 1], y, 2.0, 5.0) for i, y in ((0, np.array([7.0])), (1, -np.ones(1)))]
    assert np.linalg.norm(told[0] - told[1]) < regression.MOMENTS_SENSITIVITY
    told[1] = moments(x[1:], np.array([-5.0]), 2.0, 5.0)
    assert np.linalg.norm(told[0] - told[1]) == pytest.approx(3 / np.sqrt(2))
    there = [gradients(x[:1], np.array([y]), np.zeros(2), 0.5) for y in (9.0, -9.0)]
    assert np.linalg.norm(there[0] - there[1]) == pytest.approx(2.0)


@pytest.mark.parametrize(
    ("sensitivity", "epsilon", "golden"),
    [
        (regression.MOMENTS_SENSITIVITY, 1.0, 7.913865),
        (regression.GRADIENT_SENSITIVITY, 1.0, 7.461263),
        (regression.MOMENTS_SENSITIVITY, 8.0, 1.273278),
    ],
)
def test_golden_noise_on_one_sample(sensitivity, epsilon, golden):
    """3 / sqrt 2 or 2, times Balle and Wang's deviation at delta = 1e-5."""
    assert regression.deviation(sensitivity, epsilon, 1e-5) == pytest.approx(golden, rel=1e-6)


@pytest.mark.parametrize("samples", [1, 25])
def test_noise_has_the_stated_deviation(samples):
    found = noisy_mean(np.full(200_000, 3.0), samples, 2.5, np.random.default_rng(0))
    assert np.std(found) == pytest.approx(2.5 / samples**0.5, rel=0.01)  # 6 standard errors
    assert np.mean(found) == pytest.approx(3.0 / samples, abs=0.03)


def test_noise_drawn_for_all_samples_at_once_is_that_of_each_added_up():
    rng = np.random.default_rng(3)
    each = (rng.standard_normal((20_000, 7)) * 1.5).sum(axis=1) / 7
    at_once = noisy_mean(np.zeros(20_000), 7, 1.5, rng)
    assert stats.ks_2samp(each, at_once).pvalue > 0.01
    wrong = noisy_mean(np.zeros(20_000), 7, 1.5 / 7**0.5, rng)
    assert stats.ks_2samp(each, wrong).pvalue < 1e-9, "a share of the noise would be seen"


def test_a_long_sample_is_shortened_with_its_target_and_keeps_its_relation():
    x, theta = np.array([[3.0, 4.0], [0.3, 0.4]]), np.array([2.0, -1.0])
    short, target = shortened(x, x @ theta, 1.0, 10.0)
    np.testing.assert_allclose(short, [[0.6, 0.8], [0.3, 0.4]])
    np.testing.assert_allclose(target, short @ theta)
    assert shortened(x, np.array([100.0, -100.0]), 1.0, 10.0)[1].tolist() == [10.0, -10.0]


def test_moments_are_sums_over_samples_however_many_are_worked_on_at_once(monkeypatch):
    rng = np.random.default_rng(0)
    x, y, theta = rng.standard_normal((11, 3)), rng.standard_normal(11), np.ones(3)
    monkeypatch.setattr(regression, "CHUNK", 4)
    each = sum(moments(x[i : i + 1], y[i : i + 1], 1.5, 1.0) for i in range(11))
    np.testing.assert_allclose(moments(x, y, 1.5, 1.0), each)
    each = sum(gradients(x[i : i + 1], y[i : i + 1], theta, 1.0) for i in range(11))
    np.testing.assert_allclose(gradients(x, y, theta, 1.0), each)


def test_packing_keeps_a_matrix_and_its_length():
    square = np.array([[1.0, 2.0, 3.0], [2.0, 4.0, 5.0], [3.0, 5.0, 6.0]])
    np.testing.assert_allclose(unpacked(packed(square), 3), square)
    assert np.linalg.norm(packed(square)) == pytest.approx(np.linalg.norm(square))


NOTHING = np.zeros(2)


def test_without_noise_it_is_least_squares():
    x = np.random.default_rng(1).standard_normal((30, 4))
    y = x @ np.array([1.0, 0.0, -2.0, 0.0]) + 0.1
    found = least_squares(x.T @ x / 30, x.T @ y / 30, NOTHING, 1.0)
    np.testing.assert_allclose(found, np.linalg.lstsq(x, y, rcond=None)[0])


def test_what_is_not_told_from_noise_is_zero_and_a_singular_matrix_is_no_error():
    square, cross = np.diag([4.0, 1.0, 0.0]), np.array([4.0, 1.0, 5.0])
    np.testing.assert_allclose(least_squares(square, cross, NOTHING, 0.0), [1.0, 1.0, 0.0])
    noisy = np.array([1.0, 0.0])  # noise of eigenvalues up to sqrt(6)
    np.testing.assert_allclose(least_squares(square, cross, noisy, 0.0), [1.0, 0.0, 0.0])
    assert not least_squares(square, cross, np.array([9.0, 0.0]), 0.0).any()


def test_coefficients_are_thresholded_by_their_noise():
    found = least_squares(np.eye(2), np.array([3.0, 0.4]), np.array([0.0, 0.5]), 1.0)
    np.testing.assert_allclose(found, [2.5, 0.0])


def test_hard_thresholds_and_balls():
    theta = np.array([1.0, -3.0, 3.0, 0.5])
    assert hard_threshold(theta, 1).tolist() == [0, -3, 0, 0], "of equal ones the first stays"
    assert hard_threshold(theta, 3).tolist() == [1, -3, 3, 0]
    np.testing.assert_allclose(project(np.array([3.0, 4.0]), 1.0), [0.6, 0.8])
    np.testing.assert_allclose(project(np.array([0.3, 0.4]), 1.0), [0.3, 0.4])


HOSTILE = {
    "a bound that is 0": (np.zeros(3), 0.0),
    "a bound that underflows": (np.zeros(3), regression.clip_of(20.0, 1e-200, 3)),
    "a model beyond all numbers": (np.full(3, 1.7e308), 1.0),
    "a model that is none": (np.full(3, np.nan), 1.0),
}


@pytest.mark.parametrize("name", HOSTILE)
def test_no_model_and_no_bound_makes_a_sample_say_more_than_its_noise_covers(name):
    """What is no number under such a one would tell of a sample whatever is added to it."""
    theta, clip = HOSTILE[name]
    rng = np.random.default_rng(0)
    x = rng.normal(size=(6, 3))
    y = np.array([0.0, 1.0, 0.5, 0.0, 2.0, -1.0])
    for row in range(6):
        found = regression.gradients(x[row : row + 1], y[row : row + 1], theta, clip)
        assert np.linalg.norm(found) <= 1 + 1e-12
