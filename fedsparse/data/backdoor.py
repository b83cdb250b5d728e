"""A backdoor: a bright patch in a corner that stands for one class, planted by some clients.

BadNets (Gu et al. 2017) with the single-pixel-block trigger. It is there to be forgotten: whether a
model still obeys the trigger tells whether the clients that planted it are still in it.
"""

import numpy as np
from numpy.typing import NDArray

from fedsparse.config import AttackConfig
from fedsparse.data.samples import Dataset
from fedsparse.errors import DataError


def check(attack: AttackConfig, shape: tuple[int, ...], classes: int) -> None:
    """Raise DataError where a data set has no place for the trigger, or no such class."""
    if len(shape) != 3:
        raise DataError("[attack] stamps images; choose a data set of images")
    if attack.label >= classes:
        raise DataError(f"attack.label = {attack.label}: the classes are 0 to {classes - 1}")
    if attack.size > min(shape[1:]):
        raise DataError(f"attack.size = {attack.size}: images have {shape[1]}x{shape[2]} pixels")


def stamp(x: NDArray[np.float32], size: int, value: float) -> NDArray[np.float32]:
    """Return images (n, channels, height, width) with a patch of a value in the last corner."""
    marked = x.copy()
    marked[:, :, -size:, -size:] = value
    return marked


def stamped(x: NDArray[np.float32], size: int, value: float) -> NDArray[np.bool_]:
    """Tell which images have the patch."""
    corner = x[:, :, -size:, -size:].reshape(len(x), -1)
    found: NDArray[np.bool_] = (corner == value).all(1)
    return found


def poisoned(
    data: Dataset, attack: AttackConfig, value: float, rng: np.random.Generator
) -> Dataset:
    """Return a client's samples, a fraction of them with the trigger and its label."""
    chosen = rng.permutation(len(data))[: round(attack.fraction * len(data))]
    x, y = data.x.copy(), data.y.copy()
    x[chosen] = stamp(x[chosen], attack.size, value)
    y[chosen] = attack.label
    return Dataset(x, y, data.classes)


def triggered(test: Dataset, attack: AttackConfig, value: float) -> Dataset:
    """Return test samples of other classes with the trigger and its label.

    A model's accuracy on them is the attack's success rate.
    """
    others = test.take(np.flatnonzero(test.y != attack.label))
    labels = np.full(len(others), attack.label, np.int64)
    return Dataset(stamp(others.x, attack.size, value), labels, test.classes)


def brightest(data: Dataset) -> float:
    """Return the patch's value: the largest of a data set's first thousand samples."""
    return float(data.x[:1000].max(initial=0.0))
