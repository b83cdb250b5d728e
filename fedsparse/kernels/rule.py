"""Which layers are computed sparsely: a break-even density by kind of layer.

It is measured once on a machine, in a tenth of a second, and kept in the user's cache folder. A run
writes into its configuration what it found, so that its workers, and a later resumption,
compute each layer in the same form and reach the same bits.
"""

import json
import os
import tempfile
import time
from dataclasses import asdict, astuple, dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np

from fedsparse.kernels import library
from fedsparse.kernels.nodes import Conv, Graph, Value

STEP = 0.05
"""Break-even densities are rounded down to a multiple of this."""
SAMPLES = 32
REPETITIONS = 7
BUILDS = 8
"""Rules that the cache keeps, of as many builds of the kernels or processors."""
LIKE = {"linear": (256, 256, 1, 1), "conv": (32, 32, 3, 8)}
"""Layers that stand for their kind: outputs, inputs, kernel, pixels a side."""


@dataclass(frozen=True)
class Rule:
    """Densities below which a linear layer, and a convolution, is computed sparsely."""

    linear_below: float
    conv_below: float

    def sparse(self, linear: bool, density: float) -> bool:
        """Whether a layer of this density is computed from its kept weights alone."""
        return density < (self.linear_below if linear else self.conv_below)


@lru_cache(maxsize=1)
def measured() -> Rule:
    """Return this machine's rule, from the cache or measured now; raises library.Unavailable."""
    key = _key()
    return _read(key) or _keep(key, measure())


def measure() -> Rule:
    """Time layers of both kinds in both forms, and return where the forms break even."""
    return Rule(_break_even(*LIKE["linear"]), _break_even(*LIKE["conv"]))


def _break_even(out: int, inputs: int, kernel: int, side: int) -> float:
    """Return the density at which sparse takes as long as dense, on a line through two points."""
    thin, thick = 0.1, 0.4
    dense, first, second = _times(out, inputs, kernel, side, (1.0, thin, thick))
    slope = (second - first) / (thick - thin)
    if slope <= 0:
        return 1.0 if second < dense else 0.0
    density = thin + (dense - first) / slope
    return round(float(np.clip(density // STEP * STEP, 0.0, 1.0)), 2)


def _times(
    out: int, inputs: int, kernel: int, side: int, densities: tuple[float, ...]
) -> list[float]:
    """Return seconds of forward and backward at each density, the least of interleaved runs."""
    # Here and not above: they import torch, which a rule from the cache does without.
    from fedsparse.kernels.program import Program
    from fedsparse.sparsity import Mask

    graph = _layer(out, inputs, kernel, side)
    rng = np.random.default_rng(0)
    (shape,) = (node.weight_shape for node in graph.nodes if isinstance(node, Conv))
    weight = rng.standard_normal(shape).astype(np.float32)
    runs = []
    for density in densities:
        mask = Mask.from_arrays({"weight": rng.random(shape) < density}) if density < 1 else None
        rule = Rule(0.0, 0.0) if mask is None else Rule(1.0, 1.0)
        program = Program(graph, mask, rule, input_gradient=True)
        values = program.pack({"weight": weight})
        program.activation(0, SAMPLES)[:] = 1.0
        program.activation(1, SAMPLES, gradient=True)[:] = 1.0
        runs.append((program, values))
    best = [float("inf")] * len(runs)
    for _ in range(REPETITIONS):
        for i, (program, values) in enumerate(runs):
            start = time.perf_counter()
            program.forward(values, SAMPLES)
            program.backward(values, SAMPLES)
            best[i] = min(best[i], time.perf_counter() - start)
    return best


def _layer(out: int, inputs: int, kernel: int, side: int) -> Graph:
    """Return the graph of one layer without bias that keeps its planes' size."""
    linear = kernel == side == 1
    conv = Conv(
        inputs=(0,),
        output=1,
        weight="weight",
        bias=None,
        out_channels=out,
        in_channels=inputs,
        kernel=(kernel, kernel),
        stride=(1, 1),
        padding=(kernel // 2, kernel // 2),
        dilation=(1, 1),
        groups=1,
        weight_shape=(out, inputs) if linear else (out, inputs, kernel, kernel),
    )
    values = (Value(inputs, side, side), Value(out, side, side))
    return Graph(values, (conv,), ("weight",), (), out)


def _key() -> str:
    kernels = library.describe()
    return f"{kernels['instruction_set']} {kernels['version']} {_processor()}"


def _processor() -> str:
    try:
        for line in Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines():
            if line.startswith(("model name", "CPU part")):
                return line.partition(":")[2].strip()
    except OSError:
        pass
    return os.uname().machine


def _cache() -> Path:
    root = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(root) / "fedsparse" / "kernels.json"


def _read(key: str) -> Rule | None:
    """Return the rule that is kept for a key; None unless it is one of two densities."""
    try:
        rule = Rule(**{name: float(value) for name, value in _content()[key].items()})
    except (ValueError, OverflowError, KeyError, TypeError, AttributeError):
        return None
    return rule if all(0 <= density <= 1 for density in astuple(rule)) else None


def _content() -> dict[str, Any]:
    """Return what the cache holds; nothing where it cannot be read."""
    try:
        content = json.loads(_cache().read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return content if isinstance(content, dict) else {}


def _keep(key: str, rule: Rule) -> Rule:
    """Keep a rule for the next run and return it, or what another process kept meanwhile.

    A folder that cannot be written only costs time.
    """
    found = _read(key)
    if found is not None:
        return found
    path = _cache()
    others = [item for item in _content().items() if item[0] != key][1 - BUILDS :]
    written = None
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.NamedTemporaryFile(
            "w", encoding="utf-8", dir=path.parent, delete=False
        ) as file:
            written = file.name
            json.dump({**dict(others), key: asdict(rule)}, file)
        os.replace(written, path)
    except OSError:
        if written is not None:
            Path(written).unlink(missing_ok=True)
    return rule
