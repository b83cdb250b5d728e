"""What XNNPACK computes sparsely, by its rules; the counts on emulated ARM bear them out."""

import pytest
import torch
from torch import nn

from edge_export import network, xnnpack
from tests.edge_export.networks import lived_in, pruned


def chain(*, channels=3, stride=2, density=0.1, extra=(), end=None):
    layers = [
        *(nn.Conv2d(channels, 8, 3, stride, 1), nn.ReLU()),
        *(nn.Conv2d(8, 8, 3, 1, 1, groups=8), nn.ReLU6()),
        *(nn.Conv2d(8, 16, 1), nn.ReLU(), *extra, nn.Conv2d(16, 16, 1)),
        *(end or (nn.AdaptiveAvgPool2d(1),)),
    ]
    model = nn.Sequential(*layers, nn.Flatten(), nn.LazyLinear(3))
    model(torch.zeros(1, channels, 16, 16))
    lived_in(model, 1.0, 1.0, torch.Generator().manual_seed(0))
    with torch.no_grad():
        for layer in model:
            if isinstance(layer, nn.Conv2d) and layer.kernel_size == (1, 1):
                size = layer.weight.numel()
                layer.weight.view(-1)[: size - round(size * density)] = 0
    return network.of(model, (channels, 16, 16))


def reasons(found, *, widen=False, arm=True):
    rows = xnnpack.verdicts(found, widen=widen, arm=arm)
    return {row.layer: row.reason for row in rows}, [row.layer for row in rows if row.sparse]


def test_pointwise_layers_of_a_chain_are_sparse_and_others_say_why_not():
    said, sparse = reasons(chain())
    assert sparse == ["4", "6"]
    assert said["0"] == "a 3x3 convolution, stride 2: XNNPACK has no sparse kernel for it"
    assert said["2"].startswith("a depthwise 3x3 convolution")
    assert said["9"].startswith("a linear layer")


@pytest.mark.parametrize(("density", "sparse"), [(0.34, []), (0.33, ["4", "6"])])
def test_more_than_two_thirds_must_be_zero(density, sparse):
    said, found = reasons(chain(density=density))
    assert found == sparse
    if not sparse:
        assert said["4"] == "65.9% of the chain's 1x1 weights are zero, it takes more than 2/3"


BREAKS = {
    "no chain begins: the first convolution '0' is a 3x3 convolution, a chain needs": {"stride": 1},
    "no chain begins: the first convolution '0' is a 3x3 convolution, stride 2": {"channels": 1},
    "the chain is broken by 'max_pool' (MaxPool)": {"extra": [nn.MaxPool2d(2)]},
    "the chain is broken by '6' (3x3 convolution)": {"extra": [nn.Conv2d(16, 16, 3, 1, 1)]},
    "the chain is broken by '6' (depthwise 3x3 convolution)": {
        "extra": [nn.Conv2d(16, 16, 3, 1, 0, groups=16)]
    },
    "the chain is broken by 'flatten' (Flatten)": {"end": [nn.Identity()]},
}


@pytest.mark.parametrize("said", BREAKS)
def test_where_a_chain_is_broken_is_said(said):
    found = reasons(chain(**BREAKS[said]))
    assert found[1] == []
    assert found[0]["4"].startswith(said)


def test_a_grey_entry_is_widened_where_that_makes_a_chain():
    assert xnnpack.wants_wider_entry(chain(channels=1))
    assert not xnnpack.wants_wider_entry(chain(channels=3))
    assert not xnnpack.wants_wider_entry(chain(channels=1, density=0.5))
    assert not xnnpack.wants_wider_entry(chain(channels=1, stride=1))
    assert reasons(chain(channels=1), widen=True)[1] == ["4", "6"]


def test_x86_computes_nothing_sparsely():
    said, sparse = reasons(chain(), arm=False)
    assert sparse == []
    assert said["4"].startswith("x86")


def test_resnets_3x3_convolutions_are_never_sparse():
    shape = (3, 16, 16)
    assert reasons(network.of(pruned("resnet18", shape), shape))[1] == []


def test_mobilenet_of_large_images_is_sparse_throughout():
    shape = (3, 64, 64)
    found = network.of(pruned("mobilenet-v1", shape), shape)
    pointwise = [x.name for x in found.layers if getattr(x, "pointwise", False)]
    assert reasons(found)[1] == pointwise
    assert len(pointwise) == 13
