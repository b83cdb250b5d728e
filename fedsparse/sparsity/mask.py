"""The mask: which weights of a model are kept, as one immutable value.

Masks cover prunable tensors only, in state-dict order, one bit a weight. They are
compared and hashed by a digest of names, shapes and bits, which is also how two sides of
a connection know that they hold the same mask.
"""

import json
import math
import os
from collections.abc import Iterator, Mapping
from functools import cached_property
from hashlib import blake2b
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray
from safetensors.numpy import load as load_tensors
from safetensors.numpy import save as save_tensors

from fedsparse.errors import MaskError

if TYPE_CHECKING:
    import torch

State = dict[str, NDArray[np.float32]]
"""Parameters and float buffers of a model, in state-dict order."""

Bits = NDArray[np.bool_]
_SHAPE_PREFIX = "shape:"
_DIGEST = "digest:"


class Mask:
    """Names, shapes and packed bits of a model's prunable tensors; never changes."""

    def __init__(
        self, shapes: Mapping[str, tuple[int, ...]], packed: Mapping[str, NDArray[np.uint8]]
    ) -> None:
        self.shapes = MappingProxyType({n: tuple(int(d) for d in s) for n, s in shapes.items()})
        if set(packed) != set(self.shapes):
            raise MaskError("packed bits and shapes name unlike tensors; pass the same names")
        self.packed = MappingProxyType({n: _frozen(packed[n], s) for n, s in self.shapes.items()})

    @classmethod
    def from_arrays(cls, arrays: Mapping[str, NDArray[np.bool_]]) -> "Mask":
        """Make a mask from one boolean array a tensor; raises MaskError for other types."""
        for name, array in arrays.items():
            if np.asarray(array).dtype != np.bool_:
                found = np.asarray(array).dtype
                raise MaskError(f"mask of '{name}' is {found}; pass booleans, as in scores > 0")
        return cls(
            {name: np.shape(array) for name, array in arrays.items()},
            {name: np.packbits(array) for name, array in arrays.items()},
        )

    @classmethod
    def full(cls, shapes: Mapping[str, tuple[int, ...]]) -> "Mask":
        """Return the mask that keeps everything."""
        return cls.from_arrays({name: np.ones(shape, bool) for name, shape in shapes.items()})

    @classmethod
    def from_packed(
        cls, shapes: Mapping[str, tuple[int, ...]], packed: Mapping[str, NDArray[np.uint8]]
    ) -> "Mask":
        """Make a mask from bits packed by `numpy.packbits`; raises MaskError if they do not fit."""
        return cls(shapes, packed)

    @property
    def names(self) -> tuple[str, ...]:
        """Names of the tensors in state-dict order."""
        return tuple(self.shapes)

    def __getitem__(self, name: str) -> Bits:
        if name not in self.shapes:
            raise MaskError(f"the mask does not cover '{name}'")
        shape = self.shapes[name]
        bits = np.unpackbits(self.packed[name], count=_entries(shape)).view(np.bool_)
        bits.flags.writeable = False
        return bits.reshape(shape)

    def items(self) -> Iterator[tuple[str, Bits]]:
        """Yield each tensor's name and read-only bits."""
        for name in self.shapes:
            yield name, self[name]

    def __len__(self) -> int:
        return len(self.shapes)

    def __contains__(self, name: object) -> bool:
        return name in self.shapes

    @cached_property
    def size(self) -> int:
        """Number of weights covered."""
        return sum(_entries(shape) for shape in self.shapes.values())

    @cached_property
    def _layer_kept(self) -> dict[str, int]:
        return {n: int(np.bitwise_count(bits).sum()) for n, bits in self.packed.items()}

    def layer_kept(self) -> dict[str, int]:
        """Return the number of kept weights by tensor."""
        return dict(self._layer_kept)

    @property
    def kept(self) -> int:
        """Number of weights kept."""
        return sum(self._layer_kept.values())

    @property
    def density(self) -> float:
        """The kept fraction; 1 for a mask that covers nothing."""
        return self.kept / self.size if self.size else 1.0

    def layer_density(self) -> dict[str, float]:
        """Return the kept fraction by tensor; 1 for an empty tensor."""
        return {
            name: kept / max(1, _entries(self.shapes[name])) if _entries(self.shapes[name]) else 1.0
            for name, kept in self._layer_kept.items()
        }

    @cached_property
    def digest(self) -> bytes:
        """16 bytes that stand for names, shapes and bits."""
        digest = blake2b(digest_size=16)
        for name, shape in self.shapes.items():
            digest.update(repr((name, shape)).encode())
            digest.update(self.packed[name].tobytes())
        return digest.digest()

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Mask) and self.digest == other.digest

    def __hash__(self) -> int:
        return hash(self.digest)

    def __repr__(self) -> str:
        return f"Mask({len(self)} tensors, {self.kept} of {self.size} kept)"

    def __and__(self, other: "Mask") -> "Mask":
        return self._combined(other, np.bitwise_and)

    def __or__(self, other: "Mask") -> "Mask":
        return self._combined(other, np.bitwise_or)

    def __xor__(self, other: "Mask") -> "Mask":
        return self._combined(other, np.bitwise_xor)

    def __sub__(self, other: "Mask") -> "Mask":
        return self._combined(other, lambda a, b: a & ~b)

    def _combined(self, other: "Mask", operation: object) -> "Mask":
        self._check_like(other)
        assert callable(operation)
        return Mask(
            self.shapes, {n: operation(self.packed[n], other.packed[n]) for n in self.shapes}
        )

    def _check_like(self, other: "Mask") -> None:
        if list(self.shapes.items()) != list(other.shapes.items()):
            raise MaskError("the masks are of unlike models; compare masks of one model")

    def hamming(self, other: "Mask") -> int:
        """Return how many weights only one of the masks keeps."""
        return (self ^ other).kept

    def overlap(self, other: "Mask") -> float:
        """Return kept by both over kept by either (Jaccard); 1 when neither keeps any."""
        either = (self | other).kept
        return (self & other).kept / either if either else 1.0

    def apply_(self, tensors: "Mapping[str, torch.Tensor | NDArray[np.floating]]") -> None:
        """Set pruned entries to zero in place; raises MaskError for a missing or unlike tensor."""
        for name, shape in self.shapes.items():
            tensor = tensors.get(name)
            if tensor is None:
                raise MaskError(f"no tensor '{name}' to apply the mask to")
            if tuple(tensor.shape) != shape:
                raise MaskError(f"'{name}' has shape {tuple(tensor.shape)}, its mask {shape}")
            if isinstance(tensor, np.ndarray):
                tensor[~self[name]] = 0
            else:
                _clear(tensor, ~self[name])

    def take(self, state: State) -> State:
        """Return a state with, of the tensors that the mask covers, the kept values alone."""
        return {n: v[self[n]] if n in self else v for n, v in state.items()}

    def spread(self, kept: State) -> State:
        """Return whole tensors, zero where pruned, of what `take` returned."""
        state = dict(kept)
        for name in kept.keys() & self.shapes.keys():
            state[name] = np.zeros(self.shapes[name], kept[name].dtype)
            state[name][self[name]] = kept[name]
        return state

    def to_bytes(self) -> bytes:
        """Return the mask as the content of a safetensors file; equal masks give equal bytes."""
        tensors = {name: np.array(bits) for name, bits in self.packed.items()}
        for name, shape in self.shapes.items():
            tensors[_SHAPE_PREFIX + name] = np.array(shape, np.int64)
        tensors[_DIGEST] = np.frombuffer(self.digest, np.uint8)
        return save_tensors(tensors, metadata={"order": "\n".join(self.names)})

    @classmethod
    def from_bytes(cls, content: bytes) -> "Mask":
        """Return the mask that `to_bytes` wrote; raises MaskError when it is no whole one."""
        try:
            tensors = load_tensors(content)
            header = json.loads(content[8 : 8 + int.from_bytes(content[:8], "little")])
            digest = tensors.pop(_DIGEST).tobytes()
            names = header["__metadata__"]["order"].split("\n") if tensors else []
            shapes = {n: tuple(int(d) for d in tensors[_SHAPE_PREFIX + n]) for n in names}
            mask = cls(shapes, {name: tensors[name] for name in names})
        except KeyError as error:
            raise MaskError(f"the mask lacks {error}") from None
        except Exception as error:
            raise MaskError(f"the mask cannot be read: {error}") from None
        if mask.digest != digest:
            raise MaskError("the mask is damaged: its bits do not match its digest")
        return mask

    def save(self, path: Path | str) -> None:
        """Write the mask as safetensors, whole or not at all; it is on the disk afterwards."""
        path = Path(path)
        temporary = path.with_name(f".{path.name}.tmp-{os.getpid()}")
        try:
            with temporary.open("wb") as file:
                file.write(self.to_bytes())
                file.flush()
                os.fsync(file.fileno())
            os.replace(temporary, path)
        finally:
            temporary.unlink(missing_ok=True)

    @classmethod
    def load(cls, path: Path | str) -> "Mask":
        """Read a mask that `save` wrote; raises MaskError when the file is no whole mask."""
        try:
            return cls.from_bytes(Path(path).read_bytes())
        except FileNotFoundError:
            raise MaskError(f"no mask file '{path}'") from None
        except (MaskError, OSError) as error:
            raise MaskError(f"'{path}' is no mask file: {error}") from None


def _clear(tensor: "torch.Tensor", pruned: Bits) -> None:
    """Set some entries of a tensor to zero, which may be a parameter."""
    import torch

    with torch.no_grad():
        tensor.masked_fill_(torch.from_numpy(pruned).to(tensor.device), 0)


def _entries(shape: tuple[int, ...]) -> int:
    return math.prod(shape)


def _frozen(packed: NDArray[np.uint8], shape: tuple[int, ...]) -> NDArray[np.uint8]:
    """Return checked, read-only bits; unused bits of the last byte must be zero."""
    entries = _entries(shape)
    if (found := np.asarray(packed).dtype) != np.uint8:
        raise MaskError(f"mask bits are {found}; pass bytes, as numpy.packbits makes them")
    bits = np.array(packed, copy=True)
    if min(shape, default=0) < 0 or bits.shape != ((entries + 7) // 8,):
        raise MaskError(f"{bits.size} bytes of mask bits do not fit shape {shape}")
    if entries % 8 and bits[-1] & (0xFF >> (entries % 8)):
        raise MaskError("mask bits are set beyond the tensor's end")
    bits.flags.writeable = False
    return bits
