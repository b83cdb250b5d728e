"""The Gaussian mechanism: how much noise (epsilon, delta) takes, and where noise comes from.

The exact ("analytic") calibration of Balle and Wang (ICML 2018), which holds for any epsilon,
where the textbook formula sqrt(2 log(1.25 / delta)) / epsilon asks for more and only holds below 1.
"""

import os
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray
from scipy.special import log_ndtr

Floats = NDArray[np.float64]


def delta_of(deviation: float, epsilon: float) -> float:
    """Return the least delta of noise of this deviation on a value of sensitivity 1, at epsilon.

    Balle and Wang 2018, theorem 8:
    Phi(1 / (2 sigma) - epsilon sigma) - exp(epsilon) Phi(-1 / (2 sigma) - epsilon sigma).
    """
    half, far = 1 / (2 * deviation), epsilon * deviation
    return float(np.exp(log_ndtr(half - far)) - np.exp(epsilon + log_ndtr(-half - far)))


@lru_cache(maxsize=64)
def deviation_for(epsilon: float, delta: float) -> float:
    """Return the least deviation of noise that keeps a value of sensitivity 1 private.

    Never below it: of the last two numbers of the bisection, the larger one.
    """
    low, high = 1e-9, 1.0
    while delta_of(high, epsilon) > delta:
        low, high = high, 2 * high
    while (high - low) > 1e-12 * high:
        middle = (low + high) / 2
        low, high = (middle, high) if delta_of(middle, epsilon) > delta else (low, middle)
    return high


def normals(size: int, rng: np.random.Generator | None) -> Floats:
    """Return standard normals, (size,), of a stream, or of the operating system where it is None.

    A seeded stream is for simulation alone: who knows the seed can take the noise off.
    """
    return system_normals(size) if rng is None else rng.standard_normal(size)


def system_uniforms(size: int) -> Floats:
    """Return numbers in (0, 1) of 53 bits from the operating system's generator."""
    bits = np.frombuffer(os.urandom(8 * size), np.uint64) >> np.uint64(11)
    return (bits.astype(np.float64) + 0.5) * 2.0**-53


def system_normals(size: int) -> Floats:
    """Return standard normals from the operating system's generator (Box and Muller 1958)."""
    radius = np.sqrt(-2 * np.log(system_uniforms(size)))
    found: Floats = radius * np.cos(2 * np.pi * system_uniforms(size))
    return found
