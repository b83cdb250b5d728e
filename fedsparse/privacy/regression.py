"""What a sample says of a linear regression, bounded: moments for NLDP, gradients for LDP-IHT.

Each sample's message is a vector of bounded length, in units of its bound, and a device adds
Gaussian noise for the largest distance between any two samples' messages: the sensitivity. Zhu,
Ding, Aggarwal, Xu and Wang, "Improved Analysis of Sparse Linear Regression in Local Differential
Privacy Model" (ICLR 2024) is the model; sensitivities and noise scales are worked out here.
"""

from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

from fedsparse.privacy.gaussian import Floats, deviation_for, normals

MOMENTS_SENSITIVITY = 3 / 2**0.5
"""Largest distance of (svec(x x'), x y) between two samples with |x| <= 1 and |y| <= 1.

For unit x, z at an angle of cosine c, and targets of 1 and -1, the squared distance is
(2 - 2 c^2) + (2 + 2 c), largest at c = 1/2: 9/2. Shorter samples are nearer: over any c it is
|x|^4 + |z|^4 + |x|^2 + |z|^2 + 2 t - 2 t^2 with t = |x| |z| c, and 2 t - 2 t^2 is 1/2 at most.
"""

GRADIENT_SENSITIVITY = 2.0
"""Largest distance of two vectors of length 1 at most."""

SHORTEST = 1e-300
"""Length to which a gradient is clipped at least: nothing is divided by a bound of 0."""

CHUNK = 65536
"""Samples that are worked on at once."""


# -- NLDP: x x' and x y -----------------------------------------------------------------


def shortened(x: Floats, y: Floats, longest: float, largest: float) -> tuple[Floats, Floats]:
    """Return samples (n, d) of length `longest` at most, and targets (n,) within +-`largest`.

    A sample that is too long is shortened together with its target, which leaves y = x'theta as it
    was: only the second bound can bias an estimate.
    """
    lengths = np.linalg.norm(x, axis=1)
    share = np.minimum(1.0, longest / np.maximum(lengths, 1e-300))
    return x * share[:, None], np.clip(y * share, -largest, largest)


def moments(
    x: NDArray[np.floating], y: NDArray[np.floating], longest: float, largest: float
) -> Floats:
    """Return the sum over samples of (svec(x x') / r^2, x y / (r tau)): (d (d + 1) / 2 + d,).

    r is `longest`, tau `largest`. Two samples' summands differ by `MOMENTS_SENSITIVITY` at most.
    """
    d = x.shape[1]
    square, cross = np.zeros((d, d)), np.zeros(d)
    for begin in range(0, len(x), CHUNK):
        part = slice(begin, begin + CHUNK)
        own, target = shortened(
            x[part].astype(np.float64), y[part].astype(np.float64), longest, largest
        )
        square += own.T @ own
        cross += own.T @ target
    return np.concatenate([packed(square / longest**2), cross / (longest * largest)])


def packed(square: Floats) -> Floats:
    """Return svec of a symmetric matrix: its diagonal, then sqrt 2 times what is above it.

    Distances are those of whole matrices, so that an entry beside the diagonal, which stands there
    twice, needs only half the variance of noise.
    """
    return np.concatenate([np.diagonal(square), 2**0.5 * square[_above(len(square))]])


def unpacked(vector: Floats, d: int) -> Floats:
    """Return the symmetric matrix (d, d) of a `packed` one."""
    square = np.zeros((d, d))
    square[_above(d)] = vector[d:] / 2**0.5
    square = square + square.T
    square[np.diag_indices(d)] = vector[:d]
    return np.asarray(square, np.float64)


@lru_cache(maxsize=8)
def _above(d: int) -> tuple[NDArray[np.intp], NDArray[np.intp]]:
    return np.triu_indices(d, 1)


# -- LDP-IHT: gradients -----------------------------------------------------------------


def gradients(
    x: NDArray[np.floating], y: NDArray[np.floating], theta: Floats, clip: float
) -> Floats:
    """Return the sum over samples of x (x'theta - y), each clipped to length C, over C: (d,).

    Two samples' summands differ by `GRADIENT_SENSITIVITY` at most, whatever theta and C are: where
    these make no number of a sample, it says nothing, as no noise would hide that.
    """
    total = np.zeros(x.shape[1])
    least = max(clip, SHORTEST)
    for begin in range(0, len(x), CHUNK):
        part = slice(begin, begin + CHUNK)
        own = x[part].astype(np.float64)
        with np.errstate(over="ignore", invalid="ignore"):
            miss = own @ theta - y[part].astype(np.float64)
            lengths = np.linalg.norm(own, axis=1) * np.abs(miss)
            share = miss / np.maximum(lengths, least)
        total += own.T @ np.where(np.isfinite(share), share, 0.0)
    return total


def clip_of(clip: float, decay: float, round_number: int) -> float:
    """Return the bound on gradients in a round, from 1 on."""
    return float(clip * decay ** max(0, round_number - 1))


# -- noise ------------------------------------------------------------------------------


def deviation(sensitivity: float, epsilon: float, delta: float) -> float:
    """Return the deviation of the noise on one sample's message, in each entry."""
    return sensitivity * deviation_for(epsilon, delta)


def noisy_mean(
    total: Floats, samples: int, deviation: float, rng: np.random.Generator | None
) -> Floats:
    """Return the mean of messages that each got noise of their own, from their clean sum.

    The sum of `samples` independent N(0, s^2) is N(0, samples s^2): it is drawn as one. What is
    sent is so a function of messages that are private one by one, and as private as they are.
    """
    found: Floats = (total + samples**0.5 * deviation * normals(len(total), rng)) / samples
    return found


# -- what the server makes of them ------------------------------------------------------


def least_squares(square: Floats, cross: Floats, noise: Floats, threshold: float) -> Floats:
    """Return SoftThreshold_lambda(S^-1 b) of a noisy mean of x x' (d, d) and of x y (d,).

    `noise` holds the deviations of what was added to a diagonal entry of S, and to one of b. Noise
    alone has eigenvalues up to sqrt(2 d) of the first (the edge of the semicircle): directions in
    which S has no larger one are not told from noise, nor is S from a singular matrix, and the
    inverse leaves them out. lambda is `threshold` times the deviation of a coefficient, on average.
    """
    d = len(cross)
    values, vectors = np.linalg.eigh(square)
    known = values > max((2 * d) ** 0.5 * noise[0], 1e-12 * abs(values[-1]))
    inverse = (vectors[:, known] / values[known]) @ vectors[:, known].T
    theta: Floats = inverse @ cross
    spread = noise[1] ** 2 + noise[0] ** 2 * float(theta @ theta) / 2
    size = threshold * (spread * float(np.sum(inverse**2)) / d) ** 0.5
    found: Floats = np.sign(theta) * np.maximum(np.abs(theta) - size, 0.0)
    return found


def hard_threshold(theta: Floats, kept: int) -> Floats:
    """Return a vector whose `kept` largest entries stay, of equal ones the first; others are 0."""
    found = np.zeros_like(theta)
    best = np.argsort(-np.abs(theta), kind="stable")[:kept]
    found[best] = theta[best]
    return found


def project(theta: Floats, radius: float) -> Floats:
    """Return the nearest vector of length `radius` at most."""
    length = float(np.linalg.norm(theta))
    return theta * (radius / length) if length > radius else theta
