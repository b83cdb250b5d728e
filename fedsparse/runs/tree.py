"""A nested structure as JSON beside numbered tensors, and back, without pickle.

Checkpoints are made of this. Arrays, bytes and numpy scalars become tensors, equal bytes
one; what JSON cannot hold (nan, infinities, tuples, keys that are no strings) is written as
a one-entry object whose key starts with '$'.
"""

import hashlib
import math
from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fedsparse.errors import RunFolderError


class Tensors(dict[str, NDArray[Any]]):
    """Tensors by name, and the names of the bytes among them: what is there is not hashed again."""

    def __init__(self) -> None:
        super().__init__()
        self.names: dict[bytes, str] = {}


_NATIVE = {"b1", "i1", "i2", "i4", "i8", "u1", "u2", "u4", "u8", "f2", "f4", "f8"}
"""Kinds and bytes of the numbers that safetensors holds."""


def encode(tree: Any, tensors: Tensors, where: str = "") -> Any:
    """Return `tree` as JSON-able values; its arrays are added to `tensors` by number.

    Raises RunFolderError for a value that cannot be stored, with its place in the tree.
    """
    if tree is None or isinstance(tree, bool | str):
        return tree
    if isinstance(tree, np.ndarray):
        return {"$array": _store(tree, tensors, where)}
    if isinstance(tree, np.generic):
        return {"$scalar": _store(np.asarray(tree), tensors, where)}
    if isinstance(tree, bytes):
        return {"$bytes": _store_bytes(tree, tensors)}
    if isinstance(tree, int):
        return tree
    if isinstance(tree, float):
        return tree if math.isfinite(tree) else {"$float": repr(tree)}
    if isinstance(tree, list | tuple):
        items = [encode(v, tensors, f"{where}/{i}") for i, v in enumerate(tree)]
        return items if isinstance(tree, list) else {"$tuple": items}
    if isinstance(tree, Mapping):
        return _encode_mapping(tree, tensors, where)
    raise RunFolderError(
        f"cannot store {type(tree).__name__} at '{where or '/'}' of a checkpoint; "
        "use numpy arrays, bytes, numbers, strings, lists and dicts"
    )


def decode(node: Any, tensors: Mapping[str, NDArray[Any]]) -> Any:
    """Return what `encode` was given; arrays are writable copies, equal bytes one object.

    Raises KeyError, TypeError or ValueError when the two do not fit each other.
    """
    return _decode(node, tensors, {})


def _decode(node: Any, tensors: Mapping[str, NDArray[Any]], read: dict[str, bytes]) -> Any:
    """Decode; `read` holds the bytes that were met before, by name."""
    if isinstance(node, list):
        return [_decode(item, tensors, read) for item in node]
    if not isinstance(node, dict):
        return node
    value: Any
    tag, value = next(iter(node.items())) if len(node) == 1 else ("", None)
    match tag:
        case "$array":
            return _fetch(value, tensors)
        case "$scalar":
            return _fetch(value, tensors)[()]
        case "$bytes":
            if value not in read:
                read[value] = tensors[value].tobytes()
            return read[value]
        case "$float":
            return float(value)
        case "$tuple":
            return tuple(_decode(item, tensors, read) for item in value)
        case "$map":
            return {_decode(k, tensors, read): _decode(v, tensors, read) for k, v in value}
    return {key: _decode(item, tensors, read) for key, item in node.items()}


def _encode_mapping(tree: Mapping[Any, Any], tensors: Tensors, where: str) -> Any:
    if all(isinstance(key, str) and not key.startswith("$") for key in tree):
        return {key: encode(value, tensors, f"{where}/{key}") for key, value in tree.items()}
    pairs = tree.items()
    return {"$map": [[encode(k, tensors), encode(v, tensors, f"{where}/{k}")] for k, v in pairs]}


def _store(array: NDArray[Any], tensors: Tensors, where: str) -> list[Any]:
    """Add an array under the next number; one that safetensors lacks goes as its bytes."""
    if array.dtype.hasobject:
        raise RunFolderError(
            f"cannot store an array of objects at '{where or '/'}' of a checkpoint; "
            "use numbers, bytes or strings"
        )
    name = str(len(tensors))
    little = np.asarray(array, dtype=array.dtype.newbyteorder("<"), order="C")
    if f"{little.dtype.kind}{little.dtype.itemsize}" in _NATIVE:
        tensors[name] = little
        return [name]
    tensors[name] = np.frombuffer(little.tobytes(), np.uint8)
    return [name, little.dtype.str, list(little.shape)]


def _store_bytes(content: bytes, tensors: Tensors) -> str:
    """Add bytes under their digest: many clients keep the same, which is stored once."""
    name = tensors.names.get(content)
    if name is None:
        name = tensors.names[content] = hashlib.blake2b(content, digest_size=16).hexdigest()
        tensors[name] = np.frombuffer(content, np.uint8)
    return name


def _fetch(stored: list[Any], tensors: Mapping[str, NDArray[Any]]) -> NDArray[Any]:
    name, *kind = stored
    if not kind:
        return tensors[name].copy()
    dtype, shape = kind
    return np.frombuffer(tensors[name].tobytes(), np.dtype(dtype)).reshape(shape).copy()
