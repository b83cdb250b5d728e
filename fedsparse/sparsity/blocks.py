"""A model's parameters cut into contiguous blocks, of which a client uses some (pFedGate).

Every parameter tensor is flattened and cut into at most `count` blocks of ceil(N / count)
entries, the last one shorter; block 0 of a tensor is always used, which keeps the signal's path
open (Chen et al., ICML 2023, section "block-wise generation").
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from numpy.typing import NDArray
from torch import nn

from fedsparse.errors import MaskError
from fedsparse.sparsity.mask import Mask

Counts = NDArray[np.int64]
"""Used entries of each block, the first ones: 0 for a block that is dropped."""

Flags = NDArray[np.bool_]


@dataclass(frozen=True, eq=False)
class Blocks:
    """The blocks of some tensors, tensor by tensor in the order of `shapes`.

    `linear` names the tensors of linear layers: their blocks compete among themselves.
    """

    shapes: Mapping[str, tuple[int, ...]]
    count: int
    linear: frozenset[str] = frozenset()

    @classmethod
    def of(cls, model: nn.Module, count: int) -> "Blocks":
        """Return the blocks of a model's parameters; its buffers have none."""
        linear = {
            f"{name}.{own}" if name else own
            for name, module in model.named_modules()
            if isinstance(module, nn.Linear)
            for own, _ in module.named_parameters()
        }
        shapes = {name: tuple(p.shape) for name, p in model.named_parameters()}
        return cls(shapes, count, frozenset(linear))

    @cached_property
    def by_tensor(self) -> dict[str, NDArray[np.int64]]:
        """Entries of each block, by tensor."""
        return {name: _cut(math.prod(shape), self.count) for name, shape in self.shapes.items()}

    @cached_property
    def sizes(self) -> NDArray[np.int64]:
        """Entries of each block."""
        return np.concatenate(list(self.by_tensor.values()))

    @cached_property
    def first(self) -> Flags:
        """Which blocks are the first of their tensors."""
        return np.concatenate([np.arange(len(sizes)) == 0 for sizes in self.by_tensor.values()])

    @cached_property
    def in_linear(self) -> Flags:
        """Which blocks are of linear layers."""
        return np.concatenate(
            [np.full(len(s), name in self.linear) for name, s in self.by_tensor.items()]
        )

    @cached_property
    def places(self) -> dict[str, slice]:
        """Where the blocks of each tensor stand among all."""
        found, begin = {}, 0
        for name, sizes in self.by_tensor.items():
            found[name] = slice(begin, begin + len(sizes))
            begin += len(sizes)
        return found

    def __len__(self) -> int:
        return len(self.sizes)

    @cached_property
    def entries(self) -> int:
        """Entries of all blocks."""
        return int(self.sizes.sum())

    @property
    def least(self) -> float:
        """The smallest budget: the fraction that first blocks are of all."""
        return float(self.sizes[self.first].sum() / self.entries)

    def mask(self, counts: Counts) -> Mask:
        """Return the mask that keeps the first `counts` entries of each block."""
        return Mask.from_arrays(
            {name: self.kept_of(name, counts).reshape(shape) for name, shape in self.shapes.items()}
        )

    def kept_of(self, name: str, counts: Counts) -> Flags:
        """Return which entries of a tensor, flat, are among the first `counts` of their blocks."""
        sizes = self.by_tensor[name]
        kept = np.empty(2 * len(sizes), np.int64)
        kept[0::2] = counts[self.places[name]]
        kept[1::2] = sizes - kept[0::2]
        return np.repeat(np.arange(len(kept)) % 2 == 0, kept)

    def counts(self, mask: Mask) -> Counts:
        """Return how many entries of each block a mask keeps.

        Raises MaskError for a mask of other tensors, or one that keeps others than the first
        entries of its blocks.
        """
        if dict(mask.shapes) != dict(self.shapes):
            raise MaskError("the mask is not of these blocks' tensors")
        found = np.concatenate(
            [
                np.add.reduceat(mask[name].reshape(-1), np.r_[0, np.cumsum(sizes)[:-1]], dtype=int)
                for name, sizes in self.by_tensor.items()
            ]
        )
        if self.mask(found) != mask:
            raise MaskError("the mask keeps entries in the midst of a block")
        return found

    def to_bytes(self, counts: Counts) -> bytes:
        """Return counts in a bit a block or, where a block is used in part, 4 bytes a block."""
        whole = counts == self.sizes
        if ((counts == 0) | whole).all():
            return np.packbits(whole).tobytes()
        return counts.astype("<u4").tobytes()

    def from_bytes(self, content: bytes) -> Counts:
        """Return what `to_bytes` was given; raises MaskError for anything else."""
        if len(content) == 4 * len(self):
            counts = np.frombuffer(content, "<u4").astype(np.int64)
        elif len(content) == (len(self) + 7) // 8:
            whole = np.unpackbits(np.frombuffer(content, np.uint8), count=len(self))
            counts = np.where(whole, self.sizes, 0)
        else:
            raise MaskError(f"{len(content)} bytes do not tell the use of {len(self)} blocks")
        if (counts > self.sizes).any():
            raise MaskError("more of a block is said to be used than there is")
        return counts

    def layer_kept(self, counts: Counts, names: Sequence[str]) -> dict[str, int]:
        """Return the used entries of some tensors."""
        return {name: int(counts[self.places[name]].sum()) for name in names}


def _cut(entries: int, count: int) -> NDArray[np.int64]:
    """Return block sizes: ceil(N / count) each, the last what is left; one each of a few."""
    size = max(1, -(-entries // count))
    whole, left = divmod(entries, size)
    return np.array([size] * whole + ([left] if left else []), np.int64)
