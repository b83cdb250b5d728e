"""What noise is worth: epsilon of many rounds, each a Gaussian sum over sampled clients.

Renyi differential privacy adds up over rounds and is turned into (epsilon, delta) at the end.
Poisson sampling, everyone by a coin of their own, is accounted for as in Mironov et al. 2019;
cohorts of a fixed size without replacement as in Wang et al. 2019, theorem 27.
"""

from functools import lru_cache

import numpy as np
from numpy.typing import NDArray
from scipy.special import gammaln, logsumexp

ORDERS = (*(1 + x / 10 for x in range(1, 100)), *range(11, 64), 128, 256)
"""The orders alpha over which epsilon is the least."""

Vector = NDArray[np.float64]


def epsilon(rdp: Vector, orders: Vector, delta: float) -> float:
    """Return the least epsilon at `delta` of Renyi divergences by order.

    Canonne, Kamath and Steinke 2020, proposition 12:
    rdp + log((alpha - 1) / alpha) - (log delta + log alpha) / (alpha - 1).
    """
    found = rdp + np.log1p(-1 / orders) - (np.log(delta) + np.log(orders)) / (orders - 1)
    return max(0.0, float(np.min(found)))


@lru_cache(maxsize=64)
def spent(rounds: int, noise: float, rate: float, delta: float, sampling: str) -> float | None:
    """Return epsilon after `rounds`; None where there is no noise, and so no bound.

    `noise` is the standard deviation of the noise over the clip, `rate` the chance of a client to
    be in a round. Of `poisson`, neighbours differ by one client that is there or not, which moves
    a sum by the clip; of `fixed`, by one client that is another, which moves it by twice the clip.
    """
    if not noise:
        return None
    if sampling == "poisson":
        orders = np.asarray(ORDERS)
        rdp = np.array([poisson(order, noise, rate) for order in ORDERS])
    elif rate >= 1:
        orders = np.asarray(ORDERS)
        rdp = orders / (2 * (noise / 2) ** 2)
    else:
        orders = np.arange(2.0, 257.0)
        rdp = without_replacement(noise / 2, rate)
    return epsilon(rounds * rdp, orders, delta)


def poisson(order: float, noise: float, rate: float) -> float:
    """Return the Renyi divergence of a Poisson-sampled Gaussian of sensitivity 1.

    Mironov et al. 2019, section 3.3: A = E[(1 - q + q exp((2z - 1) / (2 sigma^2)))^alpha] over
    z ~ N(0, sigma^2), and log A / (alpha - 1). The trapezoid rule is exact to rounding for it.
    """
    if rate >= 1:
        return order / (2 * noise**2)
    z = np.arange(-20 * noise, order + 20 * noise, noise / 16)
    ratio = np.logaddexp(np.log1p(-rate), np.log(rate) + (2 * z - 1) / (2 * noise**2))
    log_a = logsumexp(order * ratio - z**2 / (2 * noise**2)) + np.log(1 / 16 / np.sqrt(2 * np.pi))
    return float(max(0.0, log_a) / (order - 1))


def without_replacement(noise: float, rate: float, most: int = 256) -> Vector:
    """Return a bound on the Renyi divergences of orders 2 to `most` of a Gaussian of sensitivity 1.

    Wang, Balle and Kasiviswanathan 2019, theorem 27, for a fraction `rate` of the clients, drawn
    without replacement, where neighbours differ in one client. The terms of an odd number lie
    between those of the even ones beside it.
    """
    terms = np.arange(2, most + 1)
    even = {j: _moment(j, noise) for j in range(2, most + 2, 2)}
    between = np.array([(even[j - j % 2] + even[j + j % 2]) / 2 for j in terms.tolist()])
    variance = 1 / noise**2
    plain = np.log(2) + terms * (terms - 1) * variance / 2
    bounds = np.minimum(np.log(4) + between, plain)
    found = np.empty(most - 1)
    for place, order in enumerate(terms):
        j = terms[: place + 1]
        choose = gammaln(order + 1) - gammaln(j + 1) - gammaln(order - j + 1)
        log_a = logsumexp(np.append(choose + j * np.log(rate) + bounds[: place + 1], 0.0))
        found[place] = min(log_a / (order - 1), order * variance / 2)
    return found


def _moment(power: int, noise: float) -> float:
    """Return log E[(exp((2z - 1) / (2 sigma^2)) - 1)^power] over z ~ N(0, sigma^2), power even."""
    step = noise / 16
    z = np.arange(-20 * noise, power + 20 * noise, step) + step / 3  # never at the zero of the term
    x = (2 * z - 1) / (2 * noise**2)
    size = np.where(x > 30, x, np.log(np.abs(np.expm1(np.minimum(x, 30)))))
    return float(
        logsumexp(power * size - z**2 / (2 * noise**2)) + np.log(1 / 16 / np.sqrt(2 * np.pi))
    )
