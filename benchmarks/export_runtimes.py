"""Every export of the zoo in both runtimes, here and on emulated ARM: how far outputs differ.

    .venv/bin/python -m benchmarks.export_runtimes [--python PATH] [--core NAME] [--json FILE]

Outputs for one seeded input, against LiteRT's on this machine. `--python` is an interpreter whose
packages hold tflite-runtime and numpy 1, for that runtime on this machine. Float outputs differ by
the order of additions; integer ones by a step of the last layer where a sum lies between two.
"""

import argparse
import json
import tempfile
from pathlib import Path

import numpy as np
import torch
from torch import nn

from edge_export import emit, network, xnnpack
from edge_export.bench import arm, local
from edge_export.bench.worker import random_input
from edge_export.export import calibrated
from edge_export.reading import parsed
from edge_export.storage import F16, INT8, STATIC, Storage
from edge_export.verify import run
from fedsparse import models
from fedsparse.runs.atomic import write_file

ZOO = {
    "linear": (1, 28, 28),
    "mlp": (1, 28, 28),
    "cnn": (1, 28, 28),
    "leaf-cnn": (1, 28, 28),
    "paper-cnn": (1, 28, 28),
    "resnet18": (3, 16, 16),
    "mobilenet-v1": (3, 64, 64),
    "mobilenet-edge": (1, 28, 28),
}
DENSITY = 0.1
STORAGES = (
    Storage(),
    Storage(sparse=True),
    Storage(F16, sparse=True),
    Storage(INT8, sparse=True),
    Storage(INT8, STATIC),
)


def files(folder: Path) -> dict[str, Path]:
    """Write every export of the zoo at a tenth of its weights; return the files by name."""
    found = {}
    for name, shape in ZOO.items():
        model = models.build_seeded(name, input_shape=shape, classes=10, width=0.25, seed=0)
        with torch.no_grad():
            for layer in model.modules():
                if isinstance(layer, nn.Linear) or getattr(layer, "groups", 0) == 1:
                    kept = torch.rand(layer.weight.shape) < DENSITY
                    layer.weight *= kept / DENSITY**0.5  # signals keep their size
            for layer in model.modules():
                if isinstance(layer, nn.BatchNorm2d):
                    layer.momentum = 1.0
            model.train()(torch.randn(64, *shape))  # statistics as of trained networks
        made = network.of(model.eval(), shape)
        ranges = calibrated(
            made, np.random.default_rng(0).standard_normal((64, *shape)).astype(np.float32)
        )
        for storage in STORAGES:
            widen = storage.sparse and xnnpack.wants_wider_entry(made)
            file = folder / f"{name}-{storage.name.replace(' ', '-')}.tflite"
            file.write_bytes(emit.emit(made, storage, ranges=ranges, widen=widen).content)
            found[f"{name}, {storage.name}"] = file
    return found


def outputs_here(content: bytes) -> tuple[np.ndarray, ...]:
    """Return what a file gives on this machine for the input that every place is given."""
    shape = parsed(content, "file").subgraphs[0].tensors[0].shape
    sample = random_input(shape, "float32")[0]
    return (run(content, (sample.transpose(2, 0, 1) if sample.ndim == 3 else sample)[None]),)


def main() -> None:
    """Run every file everywhere and print the differences."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--python", type=Path)
    parser.add_argument("--core", default="cortex-a76")
    parser.add_argument("--json", type=Path)
    given = parser.parse_args()
    torch.manual_seed(0)
    with tempfile.TemporaryDirectory() as folder:
        known = files(Path(folder))
        places = list(known.values())
        here = [outputs_here(file.read_bytes()) for file in places]
        others = {
            f"{runtime}, {given.core}": [
                row.outputs for row in arm.instructions(places, core=given.core, runtime=runtime)
            ]
            for runtime in arm.ARM_RUNTIMES
        }
        if given.python is not None:
            rows = local.measure(places, runtime="tflite-runtime", python=given.python)
            others["tflite-runtime, here"] = [row.outputs for row in rows]
    found = {
        place: {
            name: float(np.abs(here[n][0] - outputs[n][0]).max()) for n, name in enumerate(known)
        }
        for place, outputs in others.items()
    }
    print(f"| export | {' | '.join(found)} |\n| --- |{' --- |' * len(found)}")
    for name in known:
        cells = " | ".join(f"{found[place][name]:.1e}" for place in found)
        print(f"| {name} | {cells} |")
    for place, differences in found.items():
        print(f"\n{place}: largest difference {max(differences.values()):.2g}")
    if given.json:
        write_file(given.json, (json.dumps(found, indent=1) + "\n").encode())


if __name__ == "__main__":
    main()
