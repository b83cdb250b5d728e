"""The schema: names and shapes that both sides of a connection know and never send."""

import math
from dataclasses import dataclass
from functools import cached_property
from hashlib import blake2b

from fedsparse.sparsity.mask import State

Shape = tuple[int, ...]


@dataclass(frozen=True)
class Schema:
    """Names and shapes of a model's tensors, in state-dict order."""

    tensors: tuple[tuple[str, Shape], ...]

    @classmethod
    def of(cls, state: State) -> "Schema":
        """Return the schema of a state."""
        return cls(tuple((name, tuple(value.shape)) for name, value in state.items()))

    @cached_property
    def digest(self) -> bytes:
        """8 bytes that stand for every name and shape."""
        return blake2b(repr(self.tensors).encode(), digest_size=8).digest()

    @cached_property
    def shapes(self) -> dict[str, Shape]:
        """Shapes by name; not to be changed."""
        return dict(self.tensors)

    @property
    def names(self) -> tuple[str, ...]:
        """Names in order."""
        return tuple(name for name, _ in self.tensors)

    def shape(self, name: str) -> Shape:
        """Return the shape of one tensor; raises KeyError for an unknown name."""
        return self.shapes[name]

    @cached_property
    def entries(self) -> int:
        """Number of entries of all tensors together."""
        return sum(math.prod(shape) for _, shape in self.tensors)

    @cached_property
    def most_bytes(self) -> int:
        """Bytes that no honest payload of this schema exceeds, in any mode and kind of values.

        Per entry a float32 and a bit of index, per tensor a head and a scale, and the frame.
        """
        return 64 + 24 * len(self.tensors) + 4 * self.entries + (self.entries + 7) // 8
