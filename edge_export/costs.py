"""Instructions that an inference takes on an ARM core, predicted before a file is measured.

A linear model of what a network's layers do, its factors fitted to counted instructions of many
networks (`python -m benchmarks.bench_export --fit` writes `costs.json`). Good for choosing among
exports of one network; what a file costs, `fedsparse bench` counts.
"""

import json
from collections.abc import Mapping, Set
from functools import cache
from pathlib import Path

import numpy as np

from edge_export import network as net
from edge_export.network import Network
from edge_export.storage import DYNAMIC, STATIC, Storage
from fedsparse.errors import ExportError, did_you_mean

CORES = ("cortex-a53", "cortex-a72", "cortex-a76")
X86 = "x86"
TARGETS = (*CORES, X86)
FACTORS = Path(__file__).with_name("costs.json")

FEATURES = (
    "operators",
    "dense_macs",
    "linear_macs",
    "depthwise_macs",
    "kept_macs",
    "outputs",
    "sparse_outputs",
    "moved",
)
"""What an arithmetic's factors are of, each summed over the layers of one inference."""


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


def features(network: Network, sparse: Set[str]) -> dict[str, float]:
    """Return what a network does in an inference when the layers `sparse` run sparsely."""
    found = dict.fromkeys(FEATURES, 0.0)
    for layer in network.layers:
        value = network.values[layer.output]
        pixels = value.height * value.width
        outputs = pixels * value.channels
        found["operators"] += 1
        if layer.name in sparse and isinstance(layer, net.Convolution):
            found["kept_macs"] += float(np.count_nonzero(layer.weight)) * pixels
            found["sparse_outputs"] += outputs
        elif isinstance(layer, net.Convolution):
            kind = "depthwise_macs" if layer.depthwise else "dense_macs"
            found[kind] += layer.weight.size * pixels
            found["outputs"] += outputs
        elif isinstance(layer, net.Linear):
            found["linear_macs"] += layer.weight.size
            found["outputs"] += outputs
        else:
            found["moved"] += sum(_size(network, value) for value in layer.inputs)
    return found


def predict(network: Network, storage: Storage, sparse: Set[str], core: str) -> float | None:
    """Return the instructions of an inference; None where no factors are known."""
    factors = known().get(core, {}).get(arithmetic(storage, sparse))
    if factors is None:
        return None
    does = features(network, sparse)
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
