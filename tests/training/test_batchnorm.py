"""BatchNorm statistics: measured on data and merged over clients (gate G5, unit part)."""

import numpy as np
import pytest
import torch
from torch import nn

from fedsparse.training import batchnorm


@pytest.fixture
def net() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Flatten(1))


def draw(seed: int, n: int, shift: float = 0.0) -> torch.Tensor:
    return torch.randn(n, 1, 6, 6, generator=torch.Generator().manual_seed(seed)) + shift


def test_measured_statistics_are_those_of_the_layer_input(net):
    x = draw(0, 64)
    found = batchnorm.measure(net, x)
    inside = net[0](x).detach()
    np.testing.assert_allclose(found["1.running_mean"], inside.mean((0, 2, 3)), atol=1e-6)
    np.testing.assert_allclose(found["1.running_var"], inside.var((0, 2, 3)), rtol=1e-4)


def test_momentum_zero_leaves_statistics_alone(net):
    before = batchnorm.statistics(net)
    with batchnorm.statistics_momentum(net, 0.0):
        net(draw(1, 8))
    after = batchnorm.statistics(net)
    assert all(np.array_equal(before[name], after[name]) for name in before)
    assert net[1].momentum == 0.1


def test_iid_clients_merge_to_the_pooled_statistics(net):
    parts = [draw(seed, 500) for seed in range(4)]
    merged = batchnorm.merge([batchnorm.measure(net, x) for x in parts], [500] * 4)
    pooled = batchnorm.measure(net, torch.cat(parts))
    np.testing.assert_allclose(merged["1.running_var"], pooled["1.running_var"], rtol=0.02)
    spread = np.sqrt(pooled["1.running_var"])
    assert np.all(np.abs(merged["1.running_mean"] - pooled["1.running_mean"]) < 0.02 * spread)


def test_unlike_clients_differ_by_the_spread_of_their_means(net):
    parts = [draw(seed, 400, shift=2.0 * seed) for seed in range(3)]
    measured = [batchnorm.measure(net, x) for x in parts]
    weights = [1.0, 2.0, 1.0]
    average = batchnorm.merge(measured, weights, "average")
    total = batchnorm.merge(measured, weights, "total")
    means = np.stack([m["1.running_mean"] for m in measured]).astype(np.float64)
    share = np.array(weights) / 4
    centre = share @ means
    apart = share @ (means - centre) ** 2
    np.testing.assert_allclose(
        total["1.running_var"] - average["1.running_var"], apart, rtol=1e-4, atol=1e-5
    )
    assert apart.min() > 0.01


def test_the_total_rule_is_the_pooled_variance_of_unlike_clients(net):
    parts = [draw(seed, 400, shift=3.0 * seed) for seed in range(3)]
    measured = [batchnorm.measure(net, x) for x in parts]
    pooled = batchnorm.measure(net, torch.cat(parts))["1.running_var"]
    total = batchnorm.merge(measured, [400] * 3, "total")["1.running_var"]
    average = batchnorm.merge(measured, [400] * 3, "average")["1.running_var"]
    np.testing.assert_allclose(total, pooled, rtol=0.01)
    assert np.any(average < 0.9 * pooled)
