"""The compiled kernels: found, loaded and checked once a process; their C structs in numpy.

`src/api.h` says what each field means. Calls release Python's lock.
"""

import ctypes
import os
import sys
from collections.abc import Callable, Iterator, Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fedsparse.kernels.build import LIBRARY, source_hash

ABI = 7
BLOCK = 16_384
"""Weights whose gradient exists at one time in the search for the largest."""
SWITCH = "FEDSPARSE_KERNELS"
"""Names an instruction set (baseline, avx2, avx512), or off."""
BUILD = "python -m fedsparse.kernels.build"

CONV, NORM, RELU, MAX_POOL, AVERAGE_POOL, ADD, COPY = range(7)
OPTIMIZERS = {"sgd": 0, "momentum": 1, "adam": 2}
EVALUATING, TRAINING, GROWING = range(3)
DONE, NOT_FINITE, ONE_VALUE = range(3)

TENSOR = np.dtype(
    [
        *((name, np.int32) for name in ("channels", "height", "width")),
        *((name, np.int32) for name in ("halo", "gradient_halo")),
        *((name, np.int32) for name in ("plane", "gradient_plane", "maker")),
        *((name, np.int64) for name in ("value", "gradient")),
    ],
    align=True,
)
OP = np.dtype(
    [
        *((name, np.int32) for name in ("kind", "input", "other", "output")),
        *((name, np.int32) for name in ("input_first", "other_first")),
        *((f"{name}_{axis}", np.int32) for name in ("kernel", "stride") for axis in "hw"),
        *((f"{name}_{axis}", np.int32) for name in ("pad", "dilation") for axis in "hw"),
        *((name, np.int32) for name in ("groups", "sparse")),
        *((name, np.int64) for name in ("weight", "bias", "kept", "positions", "index")),
        *((name, np.int64) for name in ("mean", "variance", "saved")),
        ("epsilon", np.float32),
        ("momentum", np.float32),
        ("relu", np.int32),
        ("cap", np.float32),
    ],
    align=True,
)

_Pointer = ctypes.c_void_p


class Model(ctypes.Structure):
    """FsModel: the operations, the tensors, and how much room they need."""

    _fields_ = [
        *((name, _Pointer) for name in ("tensors", "ops", "positions", "index")),
        *((name, ctypes.c_int32) for name in ("tensor_count", "op_count", "input", "output")),
        *((name, ctypes.c_int64) for name in ("index_words", "pixels", "saved", "parameters")),
    ]


class Settings(ctypes.Structure):
    """FsSettings: the optimizer and its constants."""

    _fields_ = [
        ("optimizer", ctypes.c_int32),
        *((name, ctypes.c_float) for name in ("lr", "momentum", "weight_decay", "beta1")),
        *((name, ctypes.c_float) for name in ("beta2", "epsilon", "proximal", "l1")),
    ]


class Work(ctypes.Structure):
    """FsWork: the memory that a pass over samples works on."""

    _fields_ = [
        *((name, _Pointer) for name in ("arena", "parameters", "gradients", "buffers")),
        *((name, _Pointer) for name in ("x", "y", "targets")),
        *((name, ctypes.c_int32) for name in ("lanes", "frozen", "track")),
    ]


class Sums(ctypes.Structure):
    """FsSums: loss and right answers of an epoch."""

    _fields_ = [("loss", ctypes.c_double), ("correct", ctypes.c_int64)]


class Growth(ctypes.Structure):
    """FsGrowth: one layer's largest gradients of pruned weights."""

    _fields_ = [
        *((name, ctypes.c_int32) for name in ("op", "unused")),
        ("wanted", ctypes.c_int64),
        *((name, _Pointer) for name in ("entries", "position", "value")),
        ("found", ctypes.c_int64),
    ]


_M, _W = ctypes.POINTER(Model), ctypes.POINTER(Work)
_INT, _LONG = ctypes.c_int32, ctypes.c_int64


class Api(ctypes.Structure):
    """FsApi: the functions of one instruction set."""

    _fields_ = [
        ("width", _INT),
        ("index_words", ctypes.CFUNCTYPE(_LONG, _M, _INT)),
        ("compile", ctypes.CFUNCTYPE(None, _M)),
        ("arena_floats", ctypes.CFUNCTYPE(_LONG, _M, _INT, _INT)),
        ("forward", ctypes.CFUNCTYPE(None, _M, _W, _Pointer, _INT)),
        ("backward", ctypes.CFUNCTYPE(None, _M, _W, _INT)),
        (
            "train",
            ctypes.CFUNCTYPE(
                _INT,
                *(_M, _W, ctypes.POINTER(Settings), _Pointer, _Pointer, ctypes.POINTER(_LONG)),
                *(_Pointer, _Pointer, _INT, _LONG, _LONG, ctypes.POINTER(Sums)),
            ),
        ),
        ("evaluate", ctypes.CFUNCTYPE(None, _M, _W, _LONG, ctypes.POINTER(Sums), _Pointer)),
        (
            "grow",
            ctypes.CFUNCTYPE(_INT, _M, _W, _Pointer, _INT, ctypes.POINTER(Growth), _INT),
        ),
        (
            "add_exact",
            ctypes.CFUNCTYPE(None, _Pointer, _Pointer, _INT, _LONG, _Pointer, _Pointer),
        ),
        (
            "check",
            ctypes.CFUNCTYPE(
                *(ctypes.c_uint32, _Pointer, _LONG, _LONG, _LONG),
                ctypes.POINTER(ctypes.c_uint32),
            ),
        ),
    ]


class Unavailable(Exception):
    """The kernels cannot be used here: why, and what helps, '' where only compiling does."""

    def __init__(self, reason: str, remedy: str = "") -> None:
        super().__init__(reason)
        self.remedy = remedy


@lru_cache(maxsize=1)
def _library() -> ctypes.CDLL:
    sources = _sources()
    lacking = Unavailable("the kernels were not compiled when fedsparse was installed")
    for path in _candidates():
        try:
            library = ctypes.CDLL(str(path))
            library.fs_api.restype = ctypes.POINTER(Api)
            library.fs_api.argtypes = [ctypes.c_char_p]
            for name in ("fs_isa", "fs_version", "fs_compiler"):
                getattr(library, name).restype = ctypes.c_char_p
            # A struct may have changed although the number was forgotten.
            if library.fs_abi() == ABI and sources in library.fs_version().decode():
                return library
            lacking = Unavailable(
                f"the kernels were compiled from other sources; run {BUILD}", BUILD
            )
        except (OSError, AttributeError):
            continue
    raise lacking


def _sources() -> str:
    """Return the hash of the sources beside this file, '' where there are none."""
    folder = Path(__file__).parent / "src"
    return source_hash(folder) if (folder / "api.h").is_file() else ""


def _candidates() -> Iterator[Path]:
    """Yield where the library can lie: beside this file, or in an installation.

    `flwr run .` puts a copy of the sources first on the path, without the library.
    """
    folders = [Path(__file__).parent]
    folders += [Path(entry or ".") / "fedsparse" / "kernels" for entry in sys.path]
    for folder in dict.fromkeys(folder.absolute() for folder in folders):
        if (path := folder / LIBRARY).is_file():
            yield path


@lru_cache(maxsize=8)
def load(wanted: str = "") -> Api:
    """Return the functions of an instruction set; the widest, or $FEDSPARSE_KERNELS, if ''.

    Raises Unavailable when they are not compiled, not for this processor, or switched off.
    """
    found = _library().fs_api(wanted.encode() or None)
    if not found:
        name = wanted or os.environ.get(SWITCH, "")
        raise Unavailable(
            f"the kernels are switched off by {SWITCH}=off"
            if name == "off"
            else f"the kernels have no form '{name}' for this processor",
            remedy="" if wanted else f"unset {SWITCH}",
        )
    api: Api = found.contents
    return api


Vectors = Sequence[tuple[NDArray[np.float32], float]]
Adder = Callable[[Vectors, NDArray[np.float64], NDArray[np.float64]], None]
Checker = Callable[[bytes, int, int, int], tuple[int, int]]


def exact_adder() -> Adder | None:
    """Return add(vectors and their weights, coarse, fine); None without kernels.

    Arrays are contiguous and of one length; the vectors may lie at any address.
    """
    try:
        call = load().add_exact
    except Unavailable:
        return None

    def add(vectors: Vectors, coarse: NDArray[np.float64], fine: NDArray[np.float64]) -> None:
        count = len(vectors)
        call(
            (_Pointer * count)(*[_address(values) for values, _ in vectors]),
            (ctypes.c_double * count)(*[weight for _, weight in vectors]),
            count,
            len(coarse),
            _address(coarse),
            _address(fine),
        )

    return add


def payload_checker() -> Checker | None:
    """Return check(payload, length, first, count); None without kernels.

    It gives the CRC-32 of a payload's first bytes, and the largest magnitude, as bits, of `count`
    floats from byte `first` on, which must lie within them: 0x7f800000 or more where one is NaN or
    infinite.
    """
    try:
        call = load().check
    except Unavailable:
        return None

    def check(payload: bytes, length: int, first: int, count: int) -> tuple[int, int]:
        largest = ctypes.c_uint32()
        where = payload if type(payload) is bytes else _address(np.frombuffer(payload, np.uint8))
        return call(where, length, first, count, largest), largest.value

    return check


def _address(array: NDArray[Any]) -> int:
    address: int = array.__array_interface__["data"][0]
    return address


def describe() -> dict[str, str]:
    """Return the instruction set that runs, its compiler and version; raises Unavailable."""
    load()
    library = _library()
    return {
        "instruction_set": library.fs_isa().decode(),
        "compiler": library.fs_compiler().decode(),
        "version": library.fs_version().decode(),
    }
