"""A network without the channels that pruning cut off returns the same."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from edge_export import network
from edge_export.compact import block_of, compact
from tests.edge_export.networks import ZOO, lived_in, pruned, samples


def outputs(found, x):
    return network.run(found, x)[found.output].flatten(1)


@pytest.mark.parametrize("name", ZOO)
def test_the_zoo_with_half_its_rows_returns_the_same_from_less(name):
    shape = ZOO[name]
    whole = network.of(pruned(name, shape, density=1.0, rows=0.4, width=0.5), shape)
    less = compact(whole)
    x = samples(shape)
    torch.testing.assert_close(outputs(less, x), outputs(whole, x), rtol=1e-4, atol=1e-4)
    assert (less.macs()[0] < whole.macs()[0]) == (name != "linear")
    assert less.macs()[1] <= whole.macs()[1]


@given(
    st.floats(0.02, 0.6), st.integers(0, 2**31), st.sampled_from(["cnn", "resnet18", "paper-cnn"])
)
@settings(max_examples=25, deadline=None)
def test_any_mask(density, seed, name):
    shape = (1, 8, 8)
    whole = network.of(pruned(name, shape, density=density, width=0.1, seed=seed), shape)
    x = samples(shape)
    expected = outputs(whole, x)
    torch.testing.assert_close(outputs(compact(whole), x), expected, rtol=1e-4, atol=1e-3)


def two_layers(**second):
    model = nn.Sequential(
        nn.Conv2d(1, 16, 3, padding=1),
        nn.ReLU(),
        nn.Conv2d(16, 2, **second),
        nn.Flatten(),
        nn.LazyLinear(3),
    )
    model(torch.zeros(1, 1, 6, 6))
    return lived_in(model, 1.0, 1.0, torch.Generator().manual_seed(0))


@pytest.mark.parametrize(("gone", "left"), [(8, 8), (9, 8), (12, 8), (3, 16), (7, 16)])
def test_channels_that_nothing_reads_go_down_to_a_multiple_of_eight(gone, left):
    model = two_layers(kernel_size=1)
    with torch.no_grad():
        model[2].weight[:, 1 : 1 + gone] = 0
    found = compact(network.of(model, (1, 6, 6)))
    assert len(found.layers[0].weight) == left
    np.testing.assert_array_equal(found.layers[0].weight[-1], model[0].weight[15].detach())


def test_blocks_of_output_channels_stay_together():
    model = two_layers(kernel_size=1)
    with torch.no_grad():
        model[0].weight[:8, :, 0] = 0  # the same of each four, so that kernels compute them at once
        model[2].weight[:, 1:5] = 0
        model[2].weight[:, 8:12] = 0
    whole = network.of(model, (1, 6, 6))
    less = compact(whole)
    assert block_of(whole.layers[0]) == block_of(less.layers[0]) == 4
    np.testing.assert_array_equal(less.layers[0].weight[8:], whole.layers[0].weight[12:])
    assert len(less.layers[0].weight) == 12


@pytest.mark.parametrize(("bias", "left"), [(1.0, 16), (-1.0, 8)])
def test_a_constant_goes_into_the_bias_where_no_border_differs(bias, left):
    for second, channels in (({"kernel_size": 1}, 8), ({"kernel_size": 3, "padding": 1}, left)):
        model = two_layers(**second)
        with torch.no_grad():
            model[0].weight[1:9], model[0].bias[1:9] = 0, bias
        whole = network.of(model, (1, 6, 6))
        less = compact(whole)
        assert len(less.layers[0].weight) == channels
        x = samples((1, 6, 6))
        torch.testing.assert_close(outputs(less, x), outputs(whole, x), rtol=1e-5, atol=1e-5)


def test_a_network_without_zeros_is_returned_as_it_is():
    found = network.of(pruned("cnn", (1, 28, 28), density=1.0), (1, 28, 28))
    assert compact(found) is found


def test_a_network_of_zeros_keeps_a_block_a_layer():
    model = pruned("cnn", (1, 28, 28))
    with torch.no_grad():
        for layer in model.modules():
            if isinstance(layer, nn.Conv2d | nn.Linear):
                layer.weight.zero_()
    whole = network.of(model, (1, 28, 28))
    less = compact(whole)
    assert [len(layer.weight) for layer in less.weighted()] == [4, 4, 4, 10]
    x = samples((1, 28, 28))
    torch.testing.assert_close(outputs(less, x), outputs(whole, x))
