"""Epsilon agrees with two public accountants, whose figures were taken down once.

dp-accounting 0.6.0 (`RdpAccountant`, `PLDAccountant`) and Opacus 1.6.0 (`RDPAccountant`), with
noise multiplier, sampling rate, rounds and delta as in each row.
"""

import math

import numpy as np
import pytest

from strategies import accounting

POISSON = [  # noise, rate, rounds, delta, Opacus, dp-accounting's RDP, and its PLD
    (1.1, 0.01, 1000, 1e-5, 1.71177, 1.71177, 1.51537),
    (1.0, 0.1, 50, 1e-5, 5.88098, 5.88543, 5.14826),
    (2.0, 0.1, 100, 1e-5, 2.58057, 2.58057, 2.33740),
    (0.6, 0.05, 20, 1e-4, 6.66454, 6.66963, 5.28854),
    (4.0, 1.0, 30, 1e-5, 6.81332, 6.81332, 6.32572),
    (1.0, 0.5, 10, 1e-3, 8.54248, 8.55476, 7.38016),
    (1.0, 1e-3, 10000, 1e-6, 0.97954, 0.97954, 0.55539),
]
FIXED = [  # noise, clients, a round, rounds, delta, dp-accounting's RDP with noise / 2
    (4.0, 1000, 10, 100, 1e-5, 0.43473),
    (2.0, 100, 10, 50, 1e-5, 9.42772),
    (8.0, 50, 25, 30, 1e-3, 5.32019),
    (2.0, 10000, 100, 1000, 1e-6, 4.02121),
]


@pytest.mark.parametrize(("noise", "rate", "rounds", "delta", "opacus", "rdp", "pld"), POISSON)
def test_sampling_by_coins_agrees_with_public_accountants(
    noise, rate, rounds, delta, opacus, rdp, pld
):
    found = accounting.spent(rounds, noise, rate, delta, "poisson")
    assert found == pytest.approx(opacus, rel=1e-4)
    assert found == pytest.approx(rdp, rel=0.01)
    assert found >= pld, "the loss distribution is all but exact, and Renyi's epsilon a bound"


@pytest.mark.parametrize(("noise", "clients", "size", "rounds", "delta", "rdp"), FIXED)
def test_cohorts_of_a_fixed_size_agree_with_a_public_accountant(
    noise, clients, size, rounds, delta, rdp
):
    found = accounting.spent(rounds, noise, size / clients, delta, "fixed")
    assert found == pytest.approx(rdp, rel=0.01)


def test_one_release_to_all_is_the_gaussian_mechanism():
    orders = np.linspace(1.5, 60, 100_000)
    bound = accounting.epsilon(orders / (2 * 3.0**2), orders, 1e-5)
    assert accounting.spent(1, 3.0, 1.0, 1e-5, "poisson") == pytest.approx(bound, rel=0.01)
    twice = accounting.spent(1, 6.0, 1.0, 1e-5, "fixed")
    assert twice == accounting.spent(1, 3.0, 1.0, 1e-5, "poisson"), "another client: twice the clip"


@pytest.mark.parametrize("sampling", ["poisson", "fixed"])
def test_more_noise_fewer_rounds_and_fewer_clients_promise_more(sampling):
    usual = accounting.spent(10, 4.0, 0.2, 1e-5, sampling)
    assert accounting.spent(10, 5.0, 0.2, 1e-5, sampling) < usual
    assert accounting.spent(9, 4.0, 0.2, 1e-5, sampling) < usual
    assert accounting.spent(10, 4.0, 0.1, 1e-5, sampling) < usual
    assert usual <= accounting.spent(10, 4.0, 1.0, 1e-5, sampling)


def test_without_noise_nothing_is_promised():
    assert accounting.spent(1, 0.0, 0.1, 1e-5, "poisson") is None


def test_an_order_s_divergence_is_the_paper_s_binomial_sum():
    alpha, noise, rate = 5, 1.3, 0.07
    a = sum(
        math.comb(alpha, k)
        * (1 - rate) ** (alpha - k)
        * rate**k
        * math.exp(k * (k - 1) / (2 * noise**2))
        for k in range(alpha + 1)
    )
    found = accounting.poisson(alpha, noise, rate)
    assert found == pytest.approx(math.log(a) / (alpha - 1), rel=1e-9)
