"""Instructions of many networks on emulated ARM cores: fits `edge_export/costs.json`, and tests it.

    .venv/bin/python -m benchmarks.export_costs [--work DIR] [--json FILE] [--write]

Each network is counted as dense f32, as static int8 and, at each density, as sparse f32, on three
cores; what was counted is kept in --work. Factors are non-negative least squares on relative
errors. The test leaves one network out of the fit and asks which export `auto` would take of it:
whether that is the cheapest by count, and what it costs more where it is not.
"""

import argparse
import hashlib
import json
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import torch
from scipy.optimize import nnls
from torch import nn

from benchmarks import machine
from edge_export import costs, emit, network, xnnpack
from edge_export.bench import arm
from edge_export.export import calibrated
from edge_export.network import Network
from edge_export.plan import EQUAL
from edge_export.storage import INT8, STATIC, Storage
from fedsparse import models
from fedsparse.runs.atomic import write_file

NETWORKS = {
    "mobilenet-v1 x0.25, 64": ("mobilenet-v1", (3, 64, 64), 0.25),
    "mobilenet-v1 x0.25, 96": ("mobilenet-v1", (3, 96, 96), 0.25),
    "mobilenet-v1 x0.5, 64": ("mobilenet-v1", (3, 64, 64), 0.5),
    "mobilenet-v1 x0.125, 64": ("mobilenet-v1", (1, 64, 64), 0.125),
    "mobilenet-v1 x0.25, 32": ("mobilenet-v1", (3, 32, 32), 0.25),
    "cnn": ("cnn", (1, 28, 28), 1.0),
    "paper-cnn": ("paper-cnn", (1, 28, 28), 1.0),
    "leaf-cnn": ("leaf-cnn", (1, 28, 28), 0.25),
    "resnet18 x0.125": ("resnet18", (3, 32, 32), 0.125),
    "mlp": ("mlp", (1, 28, 28), 1.0),
    "mobilenet-v1 x0.375, 80": ("mobilenet-v1", (3, 80, 80), 0.375),
    "mobilenet-v1 x0.5, 32": ("mobilenet-v1", (3, 32, 32), 0.5),
    "mobilenet-v1 x0.75, 64": ("mobilenet-v1", (3, 64, 64), 0.75),
    "cnn x0.5": ("cnn", (1, 28, 28), 0.5),
    "cnn x2, 8": ("cnn", (1, 8, 8), 2.0),
    "paper-cnn x0.5": ("paper-cnn", (1, 28, 28), 0.5),
    "paper-cnn x2": ("paper-cnn", (3, 32, 32), 2.0),
    "leaf-cnn x0.5": ("leaf-cnn", (1, 28, 28), 0.5),
    "resnet18 x0.25, 16": ("resnet18", (3, 16, 16), 0.25),
    "mlp x4": ("mlp", (1, 28, 28), 4.0),
    "mobilenet-v1 x0.5, 64, block-4": ("mobilenet-v1", (3, 64, 64), 0.5),
    "mobilenet-v1 x0.25, 80, block-4": ("mobilenet-v1", (1, 80, 80), 0.25),
}
"""Model, a sample's shape, width; `block-4` keeps the same of four output channels."""

FIRST = next(iter(NETWORKS))
ONE_CORE = "cortex-a72"
DENSITIES = (0.5, 0.3, 0.2, 0.1, 0.05)
DENSE, SPARSE, INTEGER = Storage(), Storage(sparse=True), Storage(INT8, STATIC)


@dataclass(frozen=True)
class Count:
    """Counted instructions of one export of a network, and what the network does in it."""

    network: str
    density: float
    core: str
    storage: str
    arithmetic: str
    does: Mapping[str, float]
    instructions: int
    file_bytes: int


Factors = dict[str, dict[str, dict[str, float]]]


def pruned(name: str, density: float) -> Network:
    """Return a network of which each layer, but the first and the last, keeps its largest."""
    model, shape, width = NETWORKS[name]
    built = models.build_seeded(model, input_shape=shape, classes=10, width=width, seed=0).eval()
    layers = [m for m in built.modules() if isinstance(m, nn.Conv2d | nn.Linear)]
    with torch.no_grad():
        for layer in layers[1:-1]:
            if isinstance(layer, nn.Conv2d) and layer.groups > 1:
                continue
            block = 4 if name.endswith("block-4") else 1
            scores = layer.weight.abs().reshape(-1, block, layer.weight[0].numel()).sum(1)
            kept = scores.flatten().topk(round(scores.numel() * density)).indices
            mask = torch.zeros(scores.numel()).index_fill_(0, kept, 1.0).reshape(scores.shape)
            layer.weight *= mask.repeat_interleave(block, 0).reshape(layer.weight.shape)
    return network.of(built, shape)


def exports(name: str) -> Iterator[tuple[float, Storage, bytes, str, dict[str, float]]]:
    """Yield each export of a network: density, storage, content, arithmetic, what it does."""
    rng = np.random.default_rng(0)
    for density in DENSITIES:
        found = pruned(name, density)
        samples = rng.standard_normal((4, *found.input_shape)).astype(np.float32)
        ranges = calibrated(found, samples)
        for storage in (DENSE, SPARSE, INTEGER):
            widen = storage.sparse and xnnpack.wants_wider_entry(found)
            content = emit.emit(found, storage, ranges=ranges, widen=widen).content
            rows = xnnpack.verdicts(found, widen=widen) if storage.sparse else []
            sparse = xnnpack.sparse_layers(rows)
            kernels = costs.arithmetic(storage, sparse)
            does = costs.features(found, sparse, kernels, widen=widen)
            yield density, storage, content, kernels, does


def count(work: Path) -> list[Count]:
    """Count every export on every core; what lies in `work` is not counted again.

    Dense and integer kernels compute zeros, too: one density stands for all. Sparse kernels are
    the same on all three cores, which the first network shows; others are counted on one.
    """
    found: list[Count] = []
    for name in NETWORKS:
        known: dict[tuple[str, str], int] = {}
        for density, storage, content, kernels, does in exports(name):
            for core in costs.CORES:
                same = (kernels, core)
                sparse = kernels == "f32 sparse"
                if sparse and name != FIRST:
                    known[same] = instructions(work, content, ONE_CORE)
                elif sparse or same not in known:
                    known[same] = instructions(work, content, core)
                row = (name, density, core, storage.name, kernels, does, known[same])
                found.append(Count(*row, len(content)))
            print(f"{name}, {storage.name} at {density}: {known[same]:,} on {core}", flush=True)
    return found


def instructions(work: Path, content: bytes, core: str) -> int:
    """Return what an inference takes, from `work` where it was counted before."""
    place = work / f"{hashlib.sha256(content).hexdigest()[:24]}-{core}.json"
    if not place.is_file():
        with tempfile.TemporaryDirectory() as folder:
            file = Path(folder) / "model.tflite"
            file.write_bytes(content)
            (cost,) = arm.instructions([file], core=core)
        write_file(place, json.dumps({"instructions": cost.instructions}).encode())
    return int(json.loads(place.read_text())["instructions"])


def fit(counts: Sequence[Count]) -> Factors:
    """Return factors by core and arithmetic; a network counts the same, large or small."""
    found: Factors = {}
    for core, kernels in sorted({(c.core, c.arithmetic) for c in counts}):
        rows = [c for c in counts if (c.core, c.arithmetic) == (core, kernels)]
        amounts = np.array([[row.does[name] for name in costs.FEATURES] for row in rows])
        weight = 1 / np.array([row.instructions for row in rows])
        scale = np.maximum(amounts.max(axis=0), 1.0)
        solution, _ = nnls(amounts / scale * weight[:, None], np.ones(len(rows)))
        pairs = zip(costs.FEATURES, solution / scale, strict=True)
        found.setdefault(core, {})[kernels] = {n: float(v) for n, v in pairs if v > 0}
    return found


def predicted(factors: Factors, row: Count) -> float:
    """Return what factors say of an export."""
    known = factors[row.core].get(row.arithmetic, {})
    return sum(known.get(name, 0.0) * amount for name, amount in row.does.items())


@dataclass(frozen=True)
class Choice:
    """What `auto` takes of a network that was left out of the fit, beside the cheapest."""

    network: str
    density: float
    core: str
    taken: str
    cheapest: str
    right: bool
    excess: float
    error: float


def choices(counts: Sequence[Count]) -> list[Choice]:
    """Return `auto`'s choice in each case: a network, a density and a core."""
    found = []
    for name in NETWORKS:
        factors = fit([c for c in counts if c.network != name])
        for density in DENSITIES:
            for core in costs.CORES:
                rows = [
                    c for c in counts if (c.network, c.density, c.core) == (name, density, core)
                ]
                found.append(_choice(rows, factors))
    return found


def _choice(rows: Sequence[Count], factors: Factors) -> Choice:
    guesses = {row.storage: predicted(factors, row) for row in rows}
    least = min(guesses.values())
    near = [row for row in rows if guesses[row.storage] <= least * (1 + EQUAL)]
    taken = min(near, key=lambda row: row.file_bytes)
    best = min(rows, key=lambda row: row.instructions)
    excess = taken.instructions / best.instructions - 1
    error = max(abs(guesses[row.storage] / row.instructions - 1) for row in rows)
    return Choice(
        taken.network,
        taken.density,
        taken.core,
        taken.storage,
        best.storage,
        excess <= 0.001,  # counts of the same kernels differ by that
        excess,
        error,
    )


def main() -> None:
    """Count, fit, test, and print what was found."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--work", type=Path, default=Path("runs/export-costs"))
    parser.add_argument("--json", type=Path)
    parser.add_argument("--write", action="store_true", help="write edge_export/costs.json")
    given = parser.parse_args()
    given.work.mkdir(parents=True, exist_ok=True)
    counts = count(given.work)
    cases = choices(counts)
    print("\n| network | density | core | auto takes | cheapest | costs more |")
    print("| --- | --- | --- | --- | --- | --- |")
    for case in cases:
        more = "" if case.right else f"{case.excess:.1%}"
        words = (case.network, f"{case.density:g}", case.core, case.taken, case.cheapest, more)
        print(f"| {' | '.join(words)} |")
    right = sum(case.right for case in cases)
    print(
        f"\n`auto` takes the cheapest in {right} of {len(cases)} cases ({right / len(cases):.1%})"
    )
    factors = fit(counts)
    if given.write:
        content = {"runtime": "ai-edge-litert", "unit": "instructions", "factors": factors}
        write_file(costs.FACTORS, (json.dumps(content, indent=2) + "\n").encode())
    if given.json:
        result = {
            "machine": machine.describe(),
            "counts": [{k: v for k, v in asdict(row).items() if k != "does"} for row in counts],
            "choices": [asdict(case) for case in cases],
        }
        write_file(given.json, (json.dumps(result) + "\n").encode())


if __name__ == "__main__":
    main()
