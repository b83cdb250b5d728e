"""Instructions that an inference takes on an ARM core, predicted before a file is measured.

A linear model of what a network's layers do, its factors fitted to counted instructions of many
networks (`python -m benchmarks.export_costs --write` writes `costs.json`). Good for choosing among
exports of one network; what a file costs, `fedsparse bench` counts.
"""

import json
from collections.abc import Mapping, Set
from functools import cache
from pathlib import Path

import numpy as np

from edge_export import network as net
from edge_export.bench import arm_root
from edge_export.compact import block_of
from edge_export.network import Network
from edge_export.storage import DYNAMIC, STATIC, Storage
from fedsparse.errors import ExportError, did_you_mean
from fedsparse.kernels.nodes import Value

CORES = tuple(arm_root.CORES)
X86 = "x86"
TARGETS = (*CORES, X86)
FACTORS = Path(__file__).with_name("costs.json")

FEATURES = (
    "operators",
    "macs",
    "deep_macs",
    "tiles",
    "taps",
    "linear_macs",
    "linear_tiles",
    "depthwise_macs",
    "depthwise_outputs",
    "depthwise_strips",
    "entry_strips",
    "kept_macs",
    "kept_steps",
    "sparse_rows",
    "sparse_outputs",
    "moved",
    "ends",
)
"""What an arithmetic's factors are of, each summed over the layers of one inference."""

ROWS = {"f32": 6, "f32 sparse": 6, "int8 static": 4, "int8 dynamic": 4}
"""Pixels that a dense kernel computes at once, of those that are there or not."""
COLUMNS = 8
"""Channels that it computes at once."""
DEPTH = 8
"""Input channels that an int8 kernel takes at once, of those that are there or not."""
STRIP = 4
"""Pixels of a row that kernels for channels-first images compute at once."""
PIXELS = (32, 16, 8, 4, 2, 1)
"""Pixels that a sparse kernel takes in a step."""


def check_target(name: str) -> str:
    """Return a target's name; raises ExportError that proposes the nearest."""
    if name not in TARGETS:
        raise ExportError(f"unknown target '{name}'{did_you_mean(name, TARGETS)}")
    return name


def arithmetic(storage: Storage, sparse: Set[str]) -> str:
    """Return which kernels a file runs on: f32, sparse f32, or int8."""
    if storage.arithmetic in (STATIC, DYNAMIC):
        return f"int8 {storage.arithmetic}"
    return "f32 sparse" if sparse else "f32"


def features(
    network: Network, sparse: Set[str], kernels: str, *, widen: bool = False
) -> dict[str, float]:
    """Return what a network does in an inference when the layers `sparse` run sparsely.

    `kernels` is what `arithmetic` returns; `widen` as for `emit`.
    """
    found = dict.fromkeys(FEATURES, 0.0)
    found["operators"] = len(network.layers)
    found["ends"] = _size(network, 0) + _size(network, network.output)
    if widen:
        image = network.values[0]
        found["tiles"] += image.height * image.width
    for number, layer in enumerate(network.layers):
        value = network.values[layer.output]
        pixels = value.height * value.width
        if layer.name in sparse and isinstance(layer, net.Convolution):
            kept = float(np.count_nonzero(layer.weight))
            steps = _steps(pixels) / block_of(layer)
            found["kept_macs"] += kept * pixels
            found["kept_steps"] += kept * steps
            found["sparse_rows"] += value.channels * steps
            found["sparse_outputs"] += pixels * value.channels
        elif isinstance(layer, net.Convolution) and layer.depthwise:
            found["depthwise_macs"] += layer.weight.size * pixels
            found["depthwise_outputs"] += pixels * value.channels
            found["depthwise_strips"] += value.channels * _strips(value)
        elif isinstance(layer, net.Convolution) and sparse and number == 0:
            found["entry_strips"] += -(-value.channels // STRIP) * _strips(value)
        elif isinstance(layer, net.Convolution):
            for name, amount in _dense(layer, pixels, ROWS[kernels]).items():
                found[name] += amount
        elif isinstance(layer, net.Linear):
            tiles = -(-len(layer.weight) // COLUMNS)
            found["linear_macs"] += tiles * COLUMNS * layer.weight.shape[1]
            found["linear_tiles"] += tiles
        else:
            found["moved"] += sum(_size(network, value) for value in layer.inputs)
    return found


def _dense(layer: net.Convolution, pixels: int, rows: int) -> dict[str, float]:
    """Return what a dense kernel does, whole tiles counted."""
    channels, taps = layer.weight.shape[1], layer.weight[0, 0].size
    blocks = -(-len(layer.weight) // COLUMNS)
    computed = -(-pixels // rows) * rows
    return {
        "macs": computed * blocks * COLUMNS * taps * channels,
        "deep_macs": computed * blocks * COLUMNS * taps * -(-channels // DEPTH) * DEPTH,
        "tiles": computed * blocks,
        "taps": computed * blocks * (taps if taps > 1 else 0),
    }


def _strips(value: Value) -> int:
    return value.height * -(-value.width // STRIP)


def _steps(pixels: int) -> int:
    """Return how many steps a sparse kernel takes over an image."""
    steps = 0
    for size in PIXELS:
        steps += pixels // size
        pixels %= size
    return steps


def predict(
    network: Network, storage: Storage, sparse: Set[str], core: str, *, widen: bool = False
) -> float | None:
    """Return the instructions of an inference; None where no factors are known."""
    kernels = arithmetic(storage, sparse)
    factors = known().get(core, {}).get(kernels)
    if factors is None:
        return None
    does = features(network, sparse, kernels, widen=widen)
    return sum(factors.get(name, 0.0) * amount for name, amount in does.items())


@cache
def known() -> Mapping[str, Mapping[str, Mapping[str, float]]]:
    """Return the factors of each core and arithmetic."""
    if not FACTORS.is_file():
        return {}
    read: dict[str, dict[str, dict[str, float]]] = json.loads(FACTORS.read_text())["factors"]
    return read


def _size(network: Network, value: int) -> int:
    found = network.values[value]
    return found.channels * found.height * found.width
