"""Two small .tflite files of one network, as export writes them, and their multiply-adds."""

import hashlib
import json
from pathlib import Path
from typing import Any

import torch
from torch import nn

from edge_export import network as net
from edge_export.emit import emit
from edge_export.storage import Storage

DENSE, SPARSE = "dense.tflite", "sparse.tflite"


def network(zeros: float) -> net.Network:
    """A network of 1x1 convolutions, of whose weights the smallest are zero."""
    torch.manual_seed(0)
    entry, one, two = nn.Conv2d(3, 8, 3, 2, 1), nn.Conv2d(8, 16, 1), nn.Conv2d(16, 20, 1)
    with torch.no_grad():
        for weight in (one.weight, two.weight):
            count = int(zeros * weight.numel())
            if count:
                weight[weight.abs() <= weight.abs().flatten().kthvalue(count).values] = 0
    body = (entry, nn.ReLU(), one, nn.ReLU(), two, nn.ReLU(), nn.AdaptiveAvgPool2d(1))
    model = nn.Sequential(*body, nn.Flatten(), nn.Linear(20, 5)).eval()
    return net.of(model, (3, 16, 16))


def written(path: Path, storage: Storage, zeros: float = 0.0, *, sidecar: bool = False) -> Path:
    """Write a file, and what export would write beside it."""
    made = network(zeros)
    ranges = [(-4.0, 4.0)] * len(made.values) if storage.arithmetic == "static" else None
    content = emit(made, storage, ranges=ranges).content
    path.write_bytes(content)
    if sidecar:
        Path(f"{path}.json").write_text(json.dumps(beside(content, made, storage)))
    return path


def beside(content: bytes, made: net.Network, storage: Storage) -> dict[str, Any]:
    """Return what export says of a file."""
    macs, kept = made.macs()
    return {
        "format": 1,
        "sha256": hashlib.sha256(content).hexdigest(),
        "layout": "sparse" if storage.sparse else "dense",
        "values": storage.values,
        "storage": storage.name,
        "macs": macs,
        "kept_macs": kept,
    }


def both(folder: Path, *, sidecar: bool = False) -> tuple[Path, Path]:
    """Write a dense file, and a sparse one of 90 % zeros."""
    dense = written(folder / DENSE, Storage(), sidecar=sidecar)
    return dense, written(folder / SPARSE, Storage(sparse=True), 0.9, sidecar=sidecar)
