"""Synthetic sources: what is promised about them holds, and the seed decides all."""

import numpy as np
import pytest

from fedsparse import data
from fedsparse.config import DataConfig
from fedsparse.data import synthetic
from fedsparse.errors import DataError

REGRESSION = DataConfig(name="synthetic-regression", samples=300, features=20, nonzero=4)
IMAGES = DataConfig(name="synthetic-images", samples=203, image_size=10, channels=1)


def test_regression_is_linear_in_the_true_support():
    source = synthetic.sparse_regression(REGRESSION.model_copy(update={"noise": 0.0}), 3)
    true = synthetic.true_coefficients(REGRESSION, 3)
    assert np.count_nonzero(true) == 4
    assert np.all((np.abs(true[true != 0]) >= 1) & (np.abs(true) <= 2)[true != 0])
    for part in (source.train, source.test):
        np.testing.assert_allclose(part.x @ true, part.y, atol=1e-5)


def test_regression_noise_has_the_level_asked_for():
    noisy = REGRESSION.model_copy(update={"noise": 0.5, "samples": 4000})
    source = synthetic.sparse_regression(noisy, 3)
    rest = source.train.y - source.train.x @ synthetic.true_coefficients(noisy, 3)
    assert rest.std() == pytest.approx(0.5, rel=0.05)


def test_regression_has_real_targets_and_one_output():
    train = synthetic.sparse_regression(REGRESSION, 0).train
    assert (train.x.shape, train.x.dtype, train.y.dtype) == ((300, 20), np.float32, np.float32)
    assert train.classes == 1


def test_more_true_entries_than_features_are_refused():
    with pytest.raises(DataError, match=r"data\.nonzero = 21 .*data\.features = 20"):
        synthetic.sparse_regression(REGRESSION.model_copy(update={"nonzero": 21}), 0)


def test_images_are_their_class_prototype_plus_noise():
    clean = synthetic.images(IMAGES.model_copy(update={"noise": 0.0}), 1)
    for label in range(10):
        same = clean.train.x[clean.train.y == label]
        assert np.all(same == same[0])
    noisy = synthetic.images(IMAGES.model_copy(update={"noise": 0.3}), 1)
    assert np.array_equal(noisy.train.y, clean.train.y)
    assert (noisy.train.x - clean.train.x).std() == pytest.approx(0.3, rel=0.05)


def test_prototypes_differ_by_class_and_serve_both_sets():
    clean = synthetic.images(IMAGES.model_copy(update={"noise": 0.0}), 1)
    assert len(np.unique(clean.train.x, axis=0)) == 10
    together = np.concatenate([clean.train.x, clean.test.x])
    assert len(np.unique(together, axis=0)) == 10


def test_images_have_the_shape_asked_for_and_balanced_classes():
    train = synthetic.images(IMAGES, 0).train
    assert (train.x.shape, train.x.dtype, train.y.dtype) == ((203, 1, 10, 10), np.float32, np.int64)
    assert set(np.bincount(train.y)) == {20, 21}


@pytest.mark.parametrize("make", [synthetic.sparse_regression, synthetic.images])
def test_sizes_have_defaults_and_follow_the_configuration(make):
    small = DataConfig(image_size=4, channels=1, features=6, nonzero=2)
    source = make(small, 0)
    assert (len(source.train), len(source.test)) == (2000, 500)
    sized = make(small.model_copy(update={"samples": 30, "test_samples": 7}), 0)
    assert (len(sized.train), len(sized.test)) == (30, 7)


@pytest.mark.parametrize(
    ("make", "config"), [(synthetic.sparse_regression, REGRESSION), (synthetic.images, IMAGES)]
)
def test_the_seed_decides_every_value(make, config):
    first, again, other = make(config, 5), make(config, 5), make(config, 6)
    assert np.array_equal(first.train.x, again.train.x)
    assert np.array_equal(first.test.y, again.test.y)
    assert not np.array_equal(first.train.x, other.train.x)
    assert not np.array_equal(first.train.x[:50], first.test.x[:50])


@pytest.mark.parametrize(("config", "shape"), [(REGRESSION, (20,)), (IMAGES, (1, 10, 10))])
def test_a_fleet_can_be_dealt_synthetic_data(config, shape):
    config = config.model_copy(update={"partition": "iid", "public_samples": 0})
    federated = data.load(config, clients=4, seed=0)
    assert federated.input_shape == shape
    assert sum(map(len, federated.partition)) == config.samples
