"""Linear layers trained by their kept weights alone, on the torch backend.

A wide, thin layer is replaced for a round by one whose parameter holds kept values in CSR
order: forward and input gradient are sparse products, the weight gradient is sampled at the
kept places, and optimizer state exists for kept weights only. Small or dense layers stay as
they are: there the masked dense product is faster (`benchmarks/bench_training.py`).
"""

import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from fedsparse.sparsity import Mask

# Torch says this once a process, of a form that has been in beta since 2021.
warnings.filterwarnings("ignore", message="Sparse CSR tensor support", category=UserWarning)

LEAST_ENTRIES = 2**18
"""Weights of a layer from which the sparse products can win: 512 x 512."""
BELOW = 0.1
"""Density up to which they win on such layers."""


@dataclass(frozen=True)
class _Places:
    """Where a layer's kept weights are: CSR of the weight, and of its transpose.

    `turn` takes values from the order of the first to that of the second.
    """

    shape: tuple[int, int]
    rows: Tensor
    columns: Tensor
    row_starts: Tensor
    rows_turned: Tensor
    column_starts: Tensor
    turn: Tensor

    def csr(self, values: Tensor) -> Tensor:
        """Return the weight as a sparse matrix."""
        return _csr(self.row_starts, self.columns, values, self.shape)

    def csr_turned(self, values: Tensor) -> Tensor:
        """Return the transposed weight as a sparse matrix."""
        return _csr(self.column_starts, self.rows_turned, values[self.turn], self.shape[::-1])


def _csr(starts: Tensor, places: Tensor, values: Tensor, shape: tuple[int, ...]) -> Tensor:
    return torch.sparse_csr_tensor(starts, places, values, shape, check_invariants=False)


@lru_cache(maxsize=8)
def _places(mask: Mask, name: str) -> _Places:
    """Find a layer's kept weights once a worker, however many of its clients share the mask."""
    bits = mask[name]
    rows, columns = np.nonzero(bits)
    rank = np.cumsum(bits.reshape(-1), dtype=np.int64).reshape(bits.shape) - 1
    columns_turned, rows_turned = np.nonzero(bits.T)

    def starts(counts: NDArray[Any]) -> Tensor:
        return torch.from_numpy(np.concatenate([[0], np.cumsum(counts)]).astype(np.int32))

    return _Places(
        shape=(bits.shape[0], bits.shape[1]),
        rows=torch.from_numpy(rows),
        columns=torch.from_numpy(columns.astype(np.int32)),
        row_starts=starts(bits.sum(1)),
        rows_turned=torch.from_numpy(rows_turned.astype(np.int32)),
        column_starts=starts(bits.sum(0)),
        turn=torch.from_numpy(rank[rows_turned, columns_turned]),
    )


class _Product(torch.autograd.Function):
    """x (batch, inputs) times a transposed sparse weight: (batch, outputs)."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, values: Tensor, places: _Places) -> Tensor:
        ctx.places = places
        ctx.save_for_backward(x, values)
        return (places.csr(values) @ x.t()).t()

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, Tensor, None]:
        x, values = ctx.saved_tensors
        turned = gradients[0].t().contiguous()
        to_input = (ctx.places.csr_turned(values) @ turned).t() if ctx.needs_input_grad[0] else None
        zero = ctx.places.csr(torch.zeros_like(values))
        sampled = torch.sparse.sampled_addmm(zero, turned, x, beta=0.0)
        return to_input, sampled.values(), None


class SparseLinear(nn.Module):
    """A linear layer (..., inputs) -> (..., outputs) whose parameter is the kept weights."""

    def __init__(self, layer: nn.Linear, places: _Places) -> None:
        super().__init__()
        self.places = places
        self.values = nn.Parameter(self.pick(layer.weight.detach()))
        self.bias = layer.bias

    def pick(self, dense: Tensor) -> Tensor:
        """Return the kept entries of a tensor shaped like the weight."""
        return dense[self.places.rows, self.places.columns.long()]

    def spread(self, values: Tensor) -> Tensor:
        """Return a tensor shaped like the weight with `values` at the kept places."""
        place = (self.places.rows, self.places.columns.long())
        return values.new_zeros(self.places.shape).index_put(place, values)

    @property
    def weight(self) -> Tensor:
        """The dense weight, for a model that uses it beside the layer; gradients pass."""
        return self.spread(self.values)

    def forward(self, x: Tensor) -> Tensor:
        """Return the layer's output in float32, under autocast too."""
        with torch.autocast(x.device.type, enabled=False):
            flat = x.float().reshape(-1, x.shape[-1])
            out: Tensor = _Product.apply(flat, self.values, self.places)  # type: ignore[no-untyped-call]
            if self.bias is not None:
                out = out + self.bias
        return out.reshape(*x.shape[:-1], -1)


@contextmanager
def replaced(
    model: nn.Module, mask: Mask | None, below: float | None
) -> Iterator[dict[str, SparseLinear]]:
    """Train fitting layers by their kept weights within the block; yield them by weight name.

    `below` is the density up to which a layer is replaced, `BELOW` if None. Afterwards the
    trained values stand in the layers' own weights.
    """
    chosen = {} if mask is None else _fitting(model, mask, BELOW if below is None else below)
    sparse = {}
    for name, layer in chosen.items():
        assert mask is not None
        sparse[name] = SparseLinear(layer, _places(mask, name))
        _put(model, name, sparse[name])
    try:
        yield sparse
    finally:
        for name, layer in chosen.items():
            with torch.no_grad():
                layer.weight.copy_(sparse[name].weight)
            _put(model, name, layer)


def _put(model: nn.Module, weight: str, layer: nn.Module) -> None:
    path = weight.rpartition(".")[0]
    parent, _, attribute = path.rpartition(".")
    setattr(model.get_submodule(parent), attribute, layer)


def _fitting(model: nn.Module, mask: Mask, below: float) -> dict[str, nn.Linear]:
    """Return the plain linear layers that are wide and thin enough, by weight name.

    Not one that a parameter is shared with, that a hook watches, or that holds weights
    where the mask has none.
    """
    named = list(model.named_parameters(remove_duplicate=False))
    found = {}
    for name, density in mask.layer_density().items():
        if density > below or np.prod(mask.shapes[name]) < LEAST_ENTRIES or "." not in name:
            continue
        layer = model.get_submodule(name.rpartition(".")[0])
        if type(layer) is not nn.Linear or layer.weight.device.type != "cpu":
            continue
        shared = sum(parameter is layer.weight for _, parameter in named) > 1
        hooked = layer._forward_hooks or layer._forward_pre_hooks or layer._backward_hooks
        if shared or hooked or not layer.weight.requires_grad:
            continue
        if np.count_nonzero(layer.weight.detach().numpy()[~mask[name]]):
            continue
        found[name] = layer
    return found
