"""What exports weigh, answer and cost: trained MobileNets, and MobileNet-v1 1.0 at 224x224.

    .venv/bin/python -m benchmarks.bench_export [--sparse RUN] [--dense RUN] [--work DIR]
        [--json FILE] [--skip-large] [--runtime litert|tflite-runtime]

Runs are of the presets `mobilenet-sparse` and `mobilenet-dense`, made here where none is given.
Each is exported in every way, verified on all test samples, and counted on three emulated ARM
cores. The large network has random weights, its 1x1 convolutions pruned by magnitude: only its
sizes and instructions mean something.
"""

import argparse
import json
import subprocess
import sys
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from torch import nn

from benchmarks import machine
from edge_export import costs, emit, export, network, source, xnnpack
from edge_export.bench import arm
from edge_export.storage import F16, INT8, Storage
from fedsparse import models
from fedsparse.runs.atomic import write_file
from fedsparse.sparsity import patterns

WAYS = {
    "f32 dense": ("f32", "dense"),
    "f32 sparse": ("f32", "sparse"),
    "f16 sparse": ("f16", "sparse"),
    "int8 sparse": ("int8", "sparse"),
    "int8 static": ("int8", "dense"),
}
LARGE = (3, 224, 224)
ZEROS = (0.0, 0.7, 0.8, 0.9, 0.95)


@dataclass(frozen=True)
class Row:
    """One export: its file, its answers, and instructions of an inference and to set up."""

    model: str
    storage: str
    file_bytes: int
    accuracy: float | None
    accuracy_torch: float | None
    instructions: dict[str, int]
    setup_instructions: dict[str, int]


def trained(preset: str, given: Path | None, work: Path) -> Path:
    """Return the run of a preset: the given one, or one made in `work`."""
    if given is not None:
        return given
    folder = work / preset
    if not (folder / "summary.json").is_file():
        command = ["run", "--preset", preset, "--out", str(folder), "--no-report"]
        subprocess.run([sys.executable, "-m", "fedsparse.cli", *command], check=True)
    return folder


def of_run(run: Path, name: str, work: Path, runtime: str) -> Iterator[Row]:
    """Yield every export of a run that it has."""
    found = source.of(run)
    for way, (values, layout) in WAYS.items():
        if layout == "sparse" and name == "dense":
            continue
        file = work / f"{name}-{way.replace(' ', '-')}.tflite"
        done = export.export(found, file, values=values, layout=layout, samples=10**6)
        accuracies = (done.verified.accuracy, done.verified.accuracy_torch)
        yield counted(name, way, file, accuracies, costs.CORES, runtime)


def counted(
    model: str,
    way: str,
    file: Path,
    accuracies: tuple[float | None, float | None],
    cores: Sequence[str],
    runtime: str,
) -> Row:
    """Return an export's row; prints it."""
    each = {core: arm.instructions([file], core=core, runtime=runtime)[0] for core in cores}
    row = Row(
        model,
        way,
        file.stat().st_size,
        *accuracies,
        {core: cost.instructions for core, cost in each.items()},
        {core: cost.setup_instructions for core, cost in each.items()},
    )
    print(row, file=sys.stderr, flush=True)
    return row


def large(work: Path, runtime: str) -> Iterator[Row]:
    """Yield MobileNet-v1 1.0 at 224x224 with more and more zeros."""
    for zeros in ZEROS:
        model = pruned(zeros)
        found = network.of(model, LARGE)
        ways = [Storage(sparse=zeros > 0)]
        ways += [Storage(INT8, sparse=True), Storage(F16, sparse=True)] if zeros == 0.9 else []
        for way in ways:
            file = work / f"large-{zeros:g}-{way.name.replace(' ', '-')}.tflite"
            file.write_bytes(emit.emit(found, way).content)
            yield counted(f"{zeros:.0%}", way.name, file, (None, None), ["cortex-a72"], runtime)


def patterned(work: Path, runtime: str) -> Iterator[Row]:
    """Yield `mobilenet-edge` at 28x28, 1x1 weights 90 % zero in each pattern, untrained."""
    shape = (1, 28, 28)
    for width in (0.25, 0.5):
        for text in ("dense", "unstructured", "block-2", "block-4"):
            model = models.build_seeded(
                "mobilenet-edge", input_shape=shape, classes=10, width=width, seed=0
            )
            with torch.no_grad():
                for layer in model.modules():
                    if text != "dense" and isinstance(layer, nn.Conv2d) and is_pointwise(layer):
                        scores = layer.weight.abs().numpy()
                        kept = patterns.named(text).keep(scores, round(scores.size * 0.1))
                        layer.weight *= torch.from_numpy(kept)
            found = network.of(model.eval(), shape)
            way = Storage(sparse=text != "dense")
            widen = way.sparse and xnnpack.wants_wider_entry(found)
            file = work / f"edge-{width:g}-{text}.tflite"
            file.write_bytes(emit.emit(found, way, widen=widen).content)
            name = f"width {width:g}, {text}"
            yield counted(name, way.name, file, (None, None), ["cortex-a72"], runtime)


def is_pointwise(layer: nn.Conv2d) -> bool:
    """Whether a convolution is one of 1x1."""
    return layer.kernel_size == (1, 1)


def pruned(zeros: float) -> nn.Module:
    """Return MobileNet-v1 1.0 for 1,000 classes with this share of zeros in its 1x1 weights."""
    model = models.build_seeded("mobilenet-v1", input_shape=LARGE, classes=1000, width=1.0, seed=0)
    with torch.no_grad():
        for layer in model.modules():
            if zeros and isinstance(layer, nn.Conv2d) and layer.kernel_size == (1, 1):
                size = layer.weight.numel()
                least = layer.weight.abs().flatten().kthvalue(round(size * zeros)).values
                layer.weight *= layer.weight.abs() > least
    return model.eval()


def table(rows: Sequence[Row]) -> str:
    """Return rows as a table, beside the first of the same model."""
    cores = list(rows[0].instructions)
    lines = [
        f"| model | export | file | of dense | accuracy | {' | '.join(cores)} | set-up |",
        f"| --- | --- | --- | --- | --- | {' | '.join('---' for _ in cores)} | --- |",
    ]
    for row in rows:
        first = next((r for r in rows if r.model == row.model), row)
        if len(cores) == 1:
            first = rows[0]
        shown = "" if row.accuracy is None else f"{row.accuracy:.4f}"
        counts = [
            f"{row.instructions[core] / 1e6:.3f} M ({ratio(first, row, core):.2f}x)"
            for core in cores
        ]
        share = row.file_bytes / first.file_bytes
        setup = row.setup_instructions[cores[-1]] / 1e6
        cells = [row.model, row.storage, f"{row.file_bytes / 1000:,.0f} kB", f"{share:.3f}", shown]
        lines.append(f"| {' | '.join([*cells, *counts])} | {setup:,.0f} M |")
    return "\n".join(lines)


def ratio(first: Row, row: Row, core: str) -> float:
    """Return how many times fewer instructions a row takes than the first."""
    return first.instructions[core] / row.instructions[core]


def main() -> None:
    """Export, verify and count everything; print the tables."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--sparse", type=Path)
    parser.add_argument("--dense", type=Path)
    parser.add_argument("--work", type=Path, default=Path("runs/bench-export"))
    parser.add_argument("--json", type=Path)
    parser.add_argument("--runtime", default="litert")
    parser.add_argument("--skip-large", action="store_true")
    given = parser.parse_args()
    given.work.mkdir(parents=True, exist_ok=True)
    small: list[Row] = []
    for name, path in (("sparse", given.sparse), ("dense", given.dense)):
        run = trained(f"mobilenet-{name}", path, given.work)
        small += of_run(run, name, given.work, given.runtime)
    print(table(small))
    big = [] if given.skip_large else list(large(given.work, given.runtime))
    if big:
        print(f"\n{table(big)}")
    edge = [] if given.skip_large else list(patterned(given.work, given.runtime))
    for first in range(0, len(edge), 4):
        print(f"\n{table(edge[first : first + 4])}")
    if given.json:
        result = {
            "machine": machine.describe(),
            "runtime": given.runtime,
            "trained": [asdict(row) for row in small],
            "large": [asdict(row) for row in big],
            "patterns": [asdict(row) for row in edge],
        }
        write_file(given.json, (json.dumps(result, indent=1) + "\n").encode())


if __name__ == "__main__":
    main()
