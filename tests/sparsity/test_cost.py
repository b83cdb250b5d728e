"""Costs: FLOPs and training memory of layers, worked out by hand."""

from contextlib import nullcontext

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from fedsparse import models
from fedsparse.errors import MaskError
from fedsparse.sparsity import LayerCost, Mask, MemoryCost, ModelCost, cosine


class Net(nn.Module):
    """8x8 images of two channels to 4x4 of four, to ten classes.

    72 and 640 prunable weights; 4 + 8 + 10 = 22 other parameters; 8 running statistics;
    3 * 64 + 10 = 202 activations.
    """

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(2, 4, 3, stride=2, padding=1)
        self.norm = nn.BatchNorm2d(4)
        self.relu = nn.ReLU()
        self.fc = nn.Linear(64, 10)

    def forward(self, x: Tensor) -> Tensor:
        logits: Tensor = self.fc(self.relu(self.norm(self.conv(x))).flatten(1))
        return logits


@pytest.fixture
def cost() -> ModelCost:
    return ModelCost.of(Net(), (2, 8, 8))


def first(kept: int, shape: tuple[int, ...]) -> np.ndarray:
    """Keep the first so many weights of a tensor."""
    return (np.arange(np.prod(shape)) < kept).reshape(shape)


def sparse() -> Mask:
    """9 of 72 weights, an eighth, and 2 of 640."""
    return Mask.from_arrays(
        {"conv.weight": first(9, (4, 2, 3, 3)), "fc.weight": first(2, (10, 64))}
    )


# -- arithmetic -----------------------------------------------------------------------


def test_flops_of_a_convolution_and_a_linear_layer(cost):
    # 64 outputs of 18 multiply-adds, 10 outputs of 64; 2 FLOPs each; biases are not counted.
    assert cost.layers == (
        LayerCost("conv.weight", 72, 2 * 64 * 18, 64),
        LayerCost("fc.weight", 640, 2 * 10 * 64, 10),
    )
    assert cost.forward_flops() == 2304 + 1280


@pytest.mark.parametrize(
    ("layer", "input_shape", "multiply_adds"),
    [
        (nn.Linear(3, 5), (3,), 5 * 3),
        (nn.Linear(4, 3), (5, 4), 5 * 3 * 4),
        (nn.Conv1d(2, 3, 3), (2, 8), 3 * 6 * 6),
        (nn.Conv2d(4, 4, 3, padding=1, groups=4), (4, 5, 5), 4 * 25 * 9),
        (nn.Conv2d(4, 6, 1, stride=2), (4, 6, 6), 6 * 9 * 4),
        (nn.Conv3d(1, 2, 2), (1, 3, 3, 3), 2 * 8 * 8),
    ],
    ids=["linear", "sequence", "conv1d", "depthwise", "strided", "conv3d"],
)
def test_flops_of_one_bare_layer(layer, input_shape, multiply_adds):
    (found,) = ModelCost.of(layer, input_shape).layers
    assert (found.name, found.forward_flops) == ("weight", 2 * multiply_adds)
    assert found.weights == layer.weight.numel()


def test_a_layer_that_is_used_twice_costs_twice():
    layer = nn.Linear(4, 4)
    (found,) = ModelCost.of(nn.Sequential(layer, nn.ReLU(), layer), (4,)).layers
    assert (found.weights, found.forward_flops) == (16, 2 * 2 * 16)


@pytest.mark.parametrize(
    ("name", "shape"),
    [
        ("cnn", (1, 8, 8)),
        ("resnet18", (3, 8, 8)),
        ("mobilenet-v1", (3, 8, 8)),
        ("transformer", (6,)),
    ],
)
def test_layers_are_the_prunable_weights_in_state_dict_order(name, shape):
    model = models.build(name, input_shape=shape, classes=4, width=0.125)
    found = ModelCost.of(model, shape)
    names = models.prunable(model)
    assert [layer.name for layer in found.layers] == names
    assert [layer.weights for layer in found.layers] == [
        model.get_parameter(name).numel() for name in names
    ]
    parameters = sum(p.numel() for p in model.parameters())
    assert sum(layer.weights for layer in found.layers) + found.other_parameters == parameters


def test_a_sparse_layer_costs_its_density(cost):
    assert cost.forward_flops(sparse()) == pytest.approx(2304 / 8 + 1280 * 2 / 640, rel=1e-12)


def test_a_layer_outside_the_mask_is_dense(cost):
    only = Mask.from_arrays({"conv.weight": first(9, (4, 2, 3, 3))})
    assert cost.forward_flops(only) == pytest.approx(2304 / 8 + 1280, rel=1e-12)
    assert cost.forward_flops(Mask.full({})) == cost.forward_flops()


@pytest.mark.parametrize("kept", [0, 1, 64, 320, 640])
def test_flops_are_proportional_to_kept_weights(cost, kept):
    mask = Mask.from_arrays({"fc.weight": first(kept, (10, 64))})
    assert cost.forward_flops(mask) - 2304 == pytest.approx(2 * kept, rel=1e-12)


def test_training_is_three_forward_passes_a_sample(cost):
    assert cost.train_flops(5) == 3 * 5 * 3584
    assert cost.train_flops(5, sparse()) == pytest.approx(3 * 5 * (288 + 4), rel=1e-12)
    assert cost.train_flops(0) == 0


def test_a_dense_gradient_costs_one_dense_pass_of_its_layers(cost):
    assert cost.dense_gradient_flops(7, ["fc.weight"]) == 7 * 1280
    assert cost.dense_gradient_flops(7, ["fc.weight", "conv.weight"]) == 7 * 3584
    assert cost.dense_gradient_flops(7, []) == 0


def test_growth_costs_two_sparse_passes_and_the_dense_gradient(cost):
    assert cost.growth_flops(7, ["fc.weight"]) == 2 * 7 * 3584 + 7 * 1280
    kept = {"conv.weight": 9, "fc.weight": 2}
    assert cost.growth_flops(7, ["fc.weight"], kept) == 2 * 7 * (288 + 4) + 7 * 1280


# -- memory ---------------------------------------------------------------------------


def test_memory_of_dense_training(cost):
    # 712 + 22 parameters and 8 statistics of 4 bytes; 16 samples of 202 activations.
    found = cost.training_memory(batch_size=16)
    assert found == MemoryCost(
        parameters=4 * 734 + 4 * 8,
        gradients=4 * 734,
        optimizer=0,
        activations=4 * 16 * 202,
        buffer=0,
    )
    assert found.total == 2968 + 2936 + 12928


def test_memory_of_sparse_training(cost):
    # 11 + 22 values. Positions: 72 bits are 9 bytes, less than 9 indices; 2 indices are 8
    # bytes, less than 640 bits.
    found = cost.training_memory(sparse(), optimizer="momentum", batch_size=1)
    assert found == MemoryCost(
        parameters=4 * 33 + 4 * 8 + 9 + 8,
        gradients=4 * 33,
        optimizer=4 * 33,
        activations=4 * 202,
        buffer=0,
    )


@pytest.mark.parametrize(("optimizer", "slots"), [("sgd", 0), ("momentum", 1), ("adam", 2)])
def test_an_optimizer_holds_its_slots_for_kept_weights_only(cost, optimizer, slots):
    found = cost.training_memory(sparse(), optimizer=optimizer, batch_size=1)
    assert found.optimizer == slots * 4 * 33


def test_a_full_mask_needs_no_positions(cost):
    full = Mask.full({"conv.weight": (4, 2, 3, 3), "fc.weight": (10, 64)})
    assert cost.training_memory(full, batch_size=2) == cost.training_memory(batch_size=2)


def test_an_empty_layer_needs_nothing(cost):
    empty = Mask.from_arrays({"fc.weight": np.zeros((10, 64), bool)})
    found = cost.training_memory(empty, batch_size=1)
    assert found.parameters == 4 * (72 + 22 + 8)


def test_memory_grows_with_the_batch_in_activations_only(cost):
    one, two = (cost.training_memory(sparse(), batch_size=size) for size in (1, 2))
    assert two.activations == 2 * one.activations
    assert two.total - one.total == one.activations


def test_fedtinys_buffer_is_a_fraction_of_a_dense_gradient():
    """At density 0.01 and alpha 0.3 the first buffer is 0.6 % of what PruneFL holds."""
    cost = ModelCost.of(nn.Linear(100, 100), (100,))
    mask = Mask.from_arrays({"weight": first(100, (100, 100))})
    grown = round(cosine(0.3, 20)(0) * mask.kept)
    fedtiny = cost.training_memory(mask, batch_size=1, buffer_entries=grown)
    prunefl = cost.training_memory(mask, batch_size=1, dense_gradient_entries=10_000)
    assert (fedtiny.buffer, prunefl.buffer) == (30 * 8, 10_000 * 4)
    assert fedtiny.buffer <= 0.02 * prunefl.buffer
    assert fedtiny.total - fedtiny.buffer == prunefl.total - prunefl.buffer


def test_a_buffer_and_a_dense_gradient_add_up(cost):
    both = cost.training_memory(batch_size=1, buffer_entries=3, dense_gradient_entries=5)
    assert both.buffer == 3 * 8 + 5 * 4


# -- what is refused, and what is left alone ------------------------------------------


def test_a_mask_of_another_model_is_refused(cost):
    other = Mask.full({"conv.weight": (4, 2, 3, 3), "head.weight": (3,)})
    for ask in (
        lambda: cost.forward_flops(other),
        lambda: cost.train_flops(1, other),
        lambda: cost.training_memory(other, batch_size=1),
    ):
        with pytest.raises(MaskError, match=r"covers 'head\.weight', which is no layer"):
            ask()


@pytest.mark.parametrize(
    ("input_shape", "outcome"),
    [((2, 8, 8), nullcontext()), ((3, 8, 8), pytest.raises(RuntimeError, match="channels"))],
    ids=["measured", "failed"],
)
def test_the_model_is_left_as_it_was(input_shape, outcome):
    torch.manual_seed(0)
    net = Net().train()
    net.norm.eval()
    before = {name: tensor.clone() for name, tensor in net.state_dict().items()}
    with outcome:
        ModelCost.of(net, input_shape)
    assert all(torch.equal(before[name], tensor) for name, tensor in net.state_dict().items())
    assert (net.training, net.conv.training, net.norm.training) == (True, True, False)
    assert all(p.requires_grad and p.grad is None for p in net.parameters())
    assert not any(module._forward_hooks for module in net.modules())
