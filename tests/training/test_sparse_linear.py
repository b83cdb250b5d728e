"""Linear layers trained by their kept weights: what masked dense training gives, in less."""

import numpy as np
import pytest
import torch
from torch import nn

from fedsparse import models
from fedsparse.config import ClientConfig
from fedsparse.data import Dataset
from fedsparse.errors import TrainingError
from fedsparse.sparsity import Mask
from fedsparse.training import local, sparse_linear

pytestmark = pytest.mark.filterwarnings("ignore:Sparse CSR tensor support:UserWarning")

DENSE = {"sparse_linear_below": 0.0}


def net(inputs: int = 512, **kwargs) -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Linear(inputs, 512, **kwargs), nn.ReLU(), nn.Linear(512, 512), nn.ReLU(),
        nn.Linear(512, 3),
    )  # fmt: skip


def masked(model: nn.Module, density: float = 0.02) -> Mask:
    draw = np.random.default_rng(1)
    shapes = models.shapes(model, models.prunable(model))
    bits = {name: draw.random(shape) < density for name, shape in shapes.items()}
    bits["2.weight"][5] = False  # a row and a column without a weight
    bits["2.weight"][:, 7] = False
    mask = Mask.from_arrays(bits)
    mask.apply_({name: model.get_parameter(name).data for name in mask.names})
    return mask


def samples(shape: tuple[int, ...] = (37, 512)) -> Dataset:
    draw = np.random.default_rng(2)
    x = draw.normal(size=shape).astype(np.float32)
    return Dataset(x, draw.integers(0, 3, shape[0]), 3)


def trained(settings: ClientConfig, density: float = 0.02, **kwargs):
    model = net()
    found = local.train(
        model, samples(), settings, rng=np.random.default_rng(3), mask=masked(model, density),
        **kwargs,
    )  # fmt: skip
    return models.get_state(model), found


@pytest.mark.parametrize("changed", [{}, {"optimizer": "adam"}, {"momentum": 0.0}])
def test_a_round_and_its_optimizer_state_are_those_of_masked_dense_training(changed):
    both = []
    for below in ({}, DENSE):
        settings = ClientConfig(lr=0.02, batch_size=16, weight_decay=0.1, **changed, **below)
        _, first = trained(settings, proximal_mu=0.1)
        both.append((*trained(settings, optimizer_state=first.slots()), first))
    (state, result, first), (dense, expected, before) = both
    for name, value in dense.items():
        np.testing.assert_allclose(state[name], value, rtol=1e-4, atol=1e-6, err_msg=name)
    assert result.loss == pytest.approx(expected.loss, rel=1e-5)
    for slots, wanted in ((first.slots(), before.slots()), (result.slots(), expected.slots())):
        assert {slot: list(v) for slot, v in slots.items()} == {
            s: list(v) for s, v in wanted.items()
        }
        for slot, values in wanted.items():
            for name, value in values.items():
                np.testing.assert_allclose(slots[slot][name], value, rtol=1e-3, atol=1e-6)


def test_only_kept_weights_are_trained_meanwhile_and_the_model_is_as_before():
    model = net()
    mask, layers = masked(model), list(model)
    with sparse_linear.replaced(model, mask, None) as sparse:
        assert set(sparse) == {"0.weight", "2.weight"}  # the last is small
        entries = sum(parameter.numel() for parameter in model.parameters())
        kept = mask.layer_kept()
        assert entries == kept["0.weight"] + kept["2.weight"] + 512 + 512 + 3 * 512 + 3
        weight = sparse["2.weight"].weight
        assert torch.equal(weight, layers[2].weight)
        assert weight.requires_grad
        x = torch.randn(2, 4, 512)
        found, expected = (layer(x).detach() for layer in (sparse["2.weight"], layers[2]))
        np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-5)
    assert list(model) == layers


def test_layers_come_back_after_an_error():
    model = net()
    layers = list(model)
    with pytest.raises(TrainingError):
        local.train(
            model, samples(), ClientConfig(lr=1e30, batch_size=8), rng=np.random.default_rng(3),
            mask=masked(model),
        )  # fmt: skip
    assert list(model) == layers


def test_layers_that_would_not_gain_or_not_be_the_same_stay():
    model = net()
    mask = masked(model)
    with sparse_linear.replaced(model, None, None) as sparse:
        assert not sparse
    with sparse_linear.replaced(model, mask, 0.01) as sparse:
        assert not sparse
    with torch.no_grad():
        model[0].weight.fill_(0.5)  # weights where the mask has none
    model[2].register_forward_hook(lambda *_: None)
    with sparse_linear.replaced(model, mask, None) as sparse:
        assert not sparse
    shared = net()
    shared[2].weight = shared[0].weight
    with sparse_linear.replaced(shared, masked(shared), None) as sparse:
        assert not sparse
