"""The bounded search finds exactly the largest gradients of a dense gradient."""

import numpy as np
import pytest
import torch
from torch import nn

from fedsparse.data import Dataset
from fedsparse.errors import MaskError
from fedsparse.sparsity import Mask
from fedsparse.training import growth
from fedsparse.training.local import tensors


class Net(nn.Module):
    """Convolutions with and without groups, BatchNorm, an activation in place, a linear layer."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(2, 8, 3, padding=1, stride=2, bias=False)
        self.norm = nn.BatchNorm2d(8)
        self.relu = nn.ReLU(inplace=True)
        self.group = nn.Conv2d(8, 12, 3, padding=1, groups=4)
        self.head = nn.Linear(12 * 16, 5)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.relu(self.norm(self.conv(x)))
        return self.head(self.relu(self.group(x)).flatten(1))


@pytest.fixture
def net() -> Net:
    torch.manual_seed(0)
    return Net().train()


@pytest.fixture
def batch() -> Dataset:
    rng = np.random.default_rng(0)
    x = rng.normal(size=(16, 2, 8, 8)).astype(np.float32)
    return Dataset(x, rng.integers(0, 5, 16), 5)


def half_mask(net: Net) -> Mask:
    rng = np.random.default_rng(1)
    names = ["conv.weight", "group.weight", "head.weight"]
    shapes = {name: tuple(net.get_parameter(name).shape) for name in names}
    return Mask.from_arrays({name: rng.random(shape) < 0.5 for name, shape in shapes.items()})


def dense_gradients(net: Net, batch: Dataset) -> dict[str, np.ndarray]:
    x, y = tensors(batch)
    loss = nn.functional.cross_entropy(net(x), y)
    names = ["conv.weight", "group.weight", "head.weight"]
    found = torch.autograd.grad(loss, [net.get_parameter(name) for name in names])
    return {name: g.numpy().reshape(-1) for name, g in zip(names, found, strict=True)}


@pytest.mark.parametrize("block", [1, 37, 10_000])
def test_equals_the_top_of_the_dense_gradient(net, batch, block, monkeypatch):
    monkeypatch.setattr(growth, "BLOCK_ENTRIES", block)
    mask = half_mask(net)
    found = growth.top_gradients(net, mask, batch, dict.fromkeys(mask.names, 9))
    for name, dense in dense_gradients(net, batch).items():
        pruned = np.flatnonzero(~mask[name].reshape(-1))
        expected = np.sort(pruned[np.argsort(-np.abs(dense[pruned]), kind="stable")[:9]])
        index, value = found[name]
        assert index.tolist() == expected.tolist()
        np.testing.assert_allclose(value, dense[index], rtol=1e-4, atol=1e-7)


def test_asks_for_no_more_than_is_pruned(net, batch):
    mask = half_mask(net)
    pruned = int((~mask["conv.weight"]).sum())
    index, _ = growth.top_gradients(net, mask, batch, {"conv.weight": 10_000})["conv.weight"]
    assert len(index) == pruned
    assert not mask["conv.weight"].reshape(-1)[index].any()


def test_leaves_the_model_as_it_was(net, batch):
    before = {name: value.clone() for name, value in net.state_dict().items()}
    growth.top_gradients(net, half_mask(net), batch, {"head.weight": 3})
    assert all(torch.equal(before[name], value) for name, value in net.state_dict().items())
    assert net.training
    assert all(p.requires_grad and p.grad is None for p in net.parameters())


def test_no_dense_gradient_is_ever_made(net, batch, monkeypatch):
    monkeypatch.setattr(growth, "BLOCK_ENTRIES", 200)
    offered, held = [], []
    offer = growth._Largest.offer

    def watch(self, index, value):
        offer(self, index, value)
        offered.append(len(index))
        held.append(len(self.index))

    monkeypatch.setattr(growth._Largest, "offer", watch)
    growth.top_gradients(net, half_mask(net), batch, {"head.weight": 5})
    assert max(offered) <= 200 < net.head.weight.numel()
    assert max(held) <= 200 + 5


def test_equal_gradients_go_to_the_lower_position_whatever_the_blocks(monkeypatch):
    monkeypatch.setattr(growth, "BLOCK_ENTRIES", 4)
    value = np.array([1, -3, 2, 2, 3, 0, -2, 2, 3, 2], np.float32)
    for size in (1, 2, 3, 10):
        buffer = growth._Largest(5)
        for start in range(0, 10, size):
            part = value[start : start + size]
            buffer.offer(np.arange(start, start + len(part)), part)
        index, kept = buffer.take()
        assert index.tolist() == [1, 2, 3, 4, 8]
        assert kept.tolist() == [-3, 2, 2, 3, 3]


def test_names_a_layer_that_it_cannot_grow(batch):
    class Odd(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.table = nn.Bilinear(4, 4, 5)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            flat = x.flatten(1)[:, :4]
            return self.table(flat, flat)

    odd = Odd()
    mask = Mask.full({"table.weight": (5, 4, 4)})
    with pytest.raises(MaskError, match="Bilinear"):
        growth.top_gradients(odd, mask, batch, {"table.weight": 1})
