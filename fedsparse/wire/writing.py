"""Writing payloads: `payload.py` says what is in them."""

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fedsparse.errors import WireError
from fedsparse.sparsity.mask import Mask, State
from fedsparse.wire import index_coding, values
from fedsparse.wire.checksum import crc32
from fedsparse.wire.payload import (
    CRC,
    DIGEST,
    HEAD,
    MAGIC,
    MODES,
    NONZERO,
    VERSION,
    Kind,
    Mode,
)
from fedsparse.wire.schema import Schema
from fedsparse.wire.values import KINDS


@dataclass(frozen=True)
class _Piece:
    """A run of bytes whose exact length is known before it is written."""

    length: int
    write: Callable[[], bytes]


def encode(
    state: State,
    *,
    mask: Mask | None = None,
    mode: Mode = "full",
    base: Mask | None = None,
    values: Kind | str = "f32",
) -> bytes:
    """Return the payload of a state; entries that the mask prunes are not sent.

    Mode "shared" sends values alone to a receiver that holds `mask`; "delta" sends the
    positions in which `mask` differs from `base`, which the receiver holds; "auto" takes
    the shortest that `base` allows. Raises WireError when state, mask and mode do not fit.
    """
    pieces = _plan(state, mask, mode, base, values)
    body = b"".join(piece.write() for piece in pieces)
    return body + CRC.pack(crc32(body))


def encode_kept(
    kept: State, schema: Schema, mask: Mask | None, *, values: Kind | str = "f32"
) -> bytes:
    """Return the payload that `decode_kept` reads: what `encode` makes in mode "shared".

    `kept` holds, in the schema's order, of a masked tensor the kept values alone. Without a
    mask the payload is that of the whole state. Raises WireError for values that do not fit.
    """
    counts = {} if mask is None else mask.layer_kept()
    for name, shape in schema.tensors:
        value = kept.get(name)
        if value is None or value.size != counts.get(name, math.prod(shape)):
            raise WireError(f"'{name}' does not have as many values as its mask or shape says")
        if value.dtype != np.float32:
            raise WireError(f"'{name}' is {value.dtype}; pass float32")
    if mask is None:
        return encode({n: kept[n].reshape(shape) for n, shape in schema.tensors}, values=values)
    _check_kind(values)
    head = _head("shared", values, schema)
    pieces = (_value_piece(kept[name], values).write() for name in schema.names)
    body = b"".join([head, mask.digest, *pieces])
    return body + CRC.pack(crc32(body))


def payload_size(
    state: State,
    *,
    mask: Mask | None = None,
    mode: Mode = "full",
    base: Mask | None = None,
    values: Kind | str = "f32",
) -> int:
    """Return exactly len(encode(...)) without writing any value."""
    return sum(piece.length for piece in _plan(state, mask, mode, base, values)) + CRC.size


def _plan(state: State, mask: Mask | None, mode: str, base: Mask | None, kind: str) -> list[_Piece]:
    """Return the pieces of a payload in order."""
    _check(state, mask, kind)
    if mode == "auto":
        return _shortest(state, mask, base, kind)
    if mode not in MODES:
        raise WireError(f"mode '{mode}' is unknown; choose one of: auto, {', '.join(MODES)}")
    head = _head(mode, kind, Schema.of(state))
    pieces = [_literal(head), _literal(_mask_part(state, mask, mode, base))]
    for name, array in state.items():
        if mask is None or name not in mask:
            pieces.append(_value_piece(np.asarray(array), kind))
        else:
            pieces += _masked_pieces(array, name, mask, mode, base, kind)
    return pieces


def _head(mode: str, kind: str, schema: Schema) -> bytes:
    return HEAD.pack(MAGIC, VERSION, MODES.index(mode), KINDS.index(kind), schema.digest)


def _check_kind(kind: str) -> None:
    if kind not in KINDS:
        raise WireError(f"values '{kind}' is unknown; choose one of: {', '.join(KINDS)}")


def _check(state: State, mask: Mask | None, kind: str) -> None:
    _check_kind(kind)
    for name, array in state.items():
        if not isinstance(array, np.ndarray) or array.dtype != np.float32:
            raise WireError(f"'{name}' is {getattr(array, 'dtype', type(array))}; pass float32")
    for name in mask.names if mask is not None else ():
        if name not in state:
            raise WireError(f"the mask covers '{name}', which is not in the state")
        if state[name].shape != mask.shapes[name]:  # type: ignore[union-attr]
            raise WireError(f"'{name}' and its mask differ in shape")
    if mask is not None and mask.names != tuple(name for name in state if name in mask):
        raise WireError("the mask's tensors are not in the state's order; build it in that order")


def _shortest(state: State, mask: Mask | None, base: Mask | None, kind: str) -> list[_Piece]:
    if mask is None or base is None or base.shapes != mask.shapes:
        return _plan(state, mask, "full", None, kind)
    if mask != base:
        modes = ["full", "delta"]
    elif (len(state) + 7) // 8 + len(mask) >= DIGEST:  # full has a bit and a byte a tensor
        modes = ["shared"]
    else:
        modes = ["shared", "full"]
    plans = [_plan(state, mask, mode, base, kind) for mode in modes]
    return min(plans, key=lambda pieces: sum(piece.length for piece in pieces))


def _mask_part(state: State, mask: Mask | None, mode: str, base: Mask | None) -> bytes:
    if mode == "full":
        masked = [mask is not None and name in mask for name in state]
        return np.packbits(np.array(masked, np.bool_)).tobytes()
    if mask is None:
        raise WireError(f"mode '{mode}' needs a mask")
    if mode == "shared":
        return mask.digest
    if base is None or base.shapes != mask.shapes:
        raise WireError("mode 'delta' needs a base mask of the same tensors")
    return base.digest


def _literal(content: bytes) -> _Piece:
    return _Piece(len(content), lambda: content)


def _value_piece(array: NDArray[Any], kind: str) -> _Piece:
    return _Piece(
        values.size(kind, array.size),
        lambda: values.write(np.ascontiguousarray(array).reshape(-1), kind),
    )


def _masked_pieces(
    array: NDArray[np.float32], name: str, mask: Mask, mode: str, base: Mask | None, kind: str
) -> Iterator[_Piece]:
    flat, bits = np.ascontiguousarray(array).reshape(-1), mask[name].reshape(-1)
    positions = np.flatnonzero(bits).astype(np.int32)
    kept = flat[positions]
    if mode == "full":
        index = index_coding.plan(positions, flat.size)
        dense = 1 + values.size(kind, flat.size)
        shorter = dense < index.length + values.size(kind, len(kept))
        if shorter and kind == "f32" and np.all(kept != 0):
            yield _literal(bytes([NONZERO]))
            yield _value_piece(np.where(bits, flat, np.float32(0)), kind)
            return
        yield _Piece(index.length, lambda: index_coding.write(index))
    elif mode == "delta":
        assert base is not None
        flips = np.flatnonzero(bits ^ base[name].reshape(-1)).astype(np.int32)
        flipped = index_coding.plan(flips, flat.size)
        yield _Piece(flipped.length, lambda: index_coding.write(flipped))
    yield _value_piece(kept, kind)
