"""pFedGate's gating layer: its norm against torch's three, its gates, its size."""

import pytest
import torch
from torch import nn

from clients.gate_layer import Gate, SwitchNorm
from fedsparse.sparsity.cost import gate_entries


@pytest.mark.parametrize(
    ("place", "norm"),
    [
        (0, nn.InstanceNorm2d(3)),
        (1, nn.LayerNorm([3, 5, 4])),
        (2, nn.BatchNorm2d(3)),
    ],
)
def test_each_of_the_three_statistics_alone_is_torchs_norm(place, norm):
    x = 2 + 3 * torch.randn(6, 3, 5, 4)
    switch = SwitchNorm(3)
    with torch.no_grad():
        for weights in (switch.mean_weight, switch.var_weight):
            weights[place] += 50  # softmax: that statistic alone
    torch.testing.assert_close(switch(x), norm(x), atol=1e-4, rtol=1e-4)


def test_running_statistics_are_those_of_batch_norm_and_evaluation_uses_them():
    switch, norm = SwitchNorm(3), nn.BatchNorm2d(3)
    with torch.no_grad():
        for weights in (switch.mean_weight, switch.var_weight):
            weights[2] += 50
    for _ in range(3):
        x = torch.randn(64, 3, 20, 20)
        switch(x), norm(x)
    torch.testing.assert_close(switch.running_mean, norm.running_mean)
    torch.testing.assert_close(switch.running_var, norm.running_var, rtol=1e-3, atol=1e-4)
    switch.eval(), norm.eval()
    torch.testing.assert_close(switch(x), norm(x), atol=1e-3, rtol=1e-3)


@pytest.mark.parametrize("shape", [(1, 8, 8), (3, 4, 4), (20,)])
@pytest.mark.parametrize("heads", [1, 2])
def test_gates_are_one_a_block_and_begin_where_they_are_told(shape, heads):
    gate = Gate(shape, 7, heads, start=0.8)
    with torch.no_grad():
        importance, weight = gate(torch.rand(32, *shape))
    assert importance.shape == weight.shape == (7,)
    assert (importance is weight) == (heads == 1)
    assert 0.7 < float(importance.min()) <= float(importance.max()) < 0.85
    assert gate_entries(shape, 7, heads) == sum(p.numel() for p in gate.parameters())


def test_a_single_sample_has_gates_and_leaves_statistics_alone():
    gate = Gate((1, 8, 8), 7)
    before = {name: value.clone() for name, value in gate.named_buffers()}
    importance, _ = gate(torch.rand(1, 1, 8, 8))
    assert torch.isfinite(importance).all()
    for name, value in gate.named_buffers():
        assert torch.equal(value, before[name]), name
