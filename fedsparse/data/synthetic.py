"""Synthetic sources: sparse linear regression and noisy class prototypes.

Nothing is read, everything follows from the seed; for trying methods out, for tests of
support recovery, and for timing models on images of any size.
"""

import numpy as np
from numpy.typing import NDArray

from fedsparse import seeds
from fedsparse.config import DataConfig
from fedsparse.data.dataset import Dataset, Source
from fedsparse.errors import DataError

SAMPLES = 2000
TEST_SAMPLES = 500
COARSE = 4


def sparse_regression(data: DataConfig, seed: int) -> Source:
    """y = x @ true + noise, with standard normal x of shape (n, features).

    `true` has data.nonzero entries (see `true_coefficients`), the noise is normal with
    standard deviation data.noise. Raises DataError when nonzero exceeds features.
    """
    true = true_coefficients(data, seed)

    def draw(part: str, samples: int) -> Dataset:
        rng = seeds.stream(seed, 0, seeds.SERVER, f"synthetic regression {part}")
        x = rng.standard_normal((samples, data.features))
        y = x @ true + data.noise * rng.standard_normal(samples)
        return Dataset(x.astype(np.float32), y.astype(np.float32), 1)

    return Source(draw("train", data.samples or SAMPLES), draw("test", _test_samples(data)))


def true_coefficients(data: DataConfig, seed: int) -> NDArray[np.float64]:
    """Return the coefficients that a run's regression data come from.

    (features,) with data.nonzero entries of magnitude 1 to 2, either sign, others zero.
    """
    if data.nonzero > data.features:
        raise DataError(
            f"data.nonzero = {data.nonzero} is more than data.features = {data.features}; lower it"
        )
    rng = seeds.stream(seed, 0, seeds.SERVER, "synthetic regression truth")
    true = np.zeros(data.features)
    support = rng.choice(data.features, data.nonzero, replace=False)
    true[support] = rng.choice([-1.0, 1.0], data.nonzero) * rng.uniform(1, 2, data.nonzero)
    return true


def images(data: DataConfig, seed: int) -> Source:
    """Images (n, channels, image_size, image_size): the prototype of their class plus noise.

    A prototype is a random 4x4 pattern blown up to the image's size; the noise is normal
    with standard deviation data.noise in each pixel. Classes are equally frequent. Raises
    DataError for less than two.
    """
    if data.classes < 2:
        raise DataError("data.classes = 1: synthetic images need two classes or more; raise it")
    rng = seeds.stream(seed, 0, seeds.SERVER, "synthetic images prototypes")
    coarse = rng.standard_normal((data.classes, data.channels, COARSE, COARSE), np.float32)
    cell = np.arange(data.image_size) * COARSE // data.image_size
    prototypes = coarse[:, :, cell[:, None], cell]

    def draw(part: str, samples: int) -> Dataset:
        rng = seeds.stream(seed, 0, seeds.SERVER, f"synthetic images {part}")
        y = rng.permutation(np.arange(samples, dtype=np.int64) % data.classes)
        x = rng.standard_normal((samples, *prototypes.shape[1:]), np.float32)
        x *= np.float32(data.noise)
        x += prototypes[y]
        return Dataset(x, y, data.classes)

    return Source(draw("train", data.samples or SAMPLES), draw("test", _test_samples(data)))


def _test_samples(data: DataConfig) -> int:
    return data.test_samples or TEST_SAMPLES
