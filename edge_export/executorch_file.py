"""From a module to an ExecuTorch program (.pte) lowered to XNNPACK, and the outputs of one.

The folded and compacted network becomes a module again where it is covered. Its XNNPACK runtime is
given no hint of sparsity, so zeros are stored and computed as they are.
"""

import importlib
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from torch import nn

from edge_export.emit import Emitted
from edge_export.network import Network
from edge_export.rebuilt import module_of
from edge_export.storage import Storage, Stored
from edge_export.verify import Floats, Track, silent
from fedsparse.errors import ExportError, MissingExtraError

FEATURE, EXTRA = "the export to .pte", "executorch"


def emit(network: Network, storage: Storage, description: str) -> Emitted:
    """Write a network as an ExecuTorch program for one sample at a time, in f32.

    Raises MissingExtraError without the extra `executorch`, ExportError when it does not lower.
    """
    sample = torch.zeros(1, *network.input_shape)
    stored = tuple(
        Stored(
            layer.name,
            layer.weight.shape,
            int(np.count_nonzero(layer.weight)),
            False,
            layer.weight.nbytes,
            layer.weight.nbytes,
        )
        for layer in network.weighted()
    )
    return Emitted(lowered(module_of(network), sample), stored)


def lowered(module: nn.Module, sample: torch.Tensor) -> bytes:
    """Return a module as a program for inputs of a sample's shape; raises as `emit` does."""
    exir = _package("executorch.exir")
    xnnpack = _package("executorch.backends.xnnpack.partition.xnnpack_partitioner")
    with _quiet("the model"):
        exported = torch.export.export(module.eval(), (sample,))
        edge = exir.to_edge_transform_and_lower(
            exported, partitioner=[xnnpack.XnnpackPartitioner()]
        )
        return bytes(edge.to_executorch().buffer)


def run(content: bytes, samples: Floats, track: Track = iter) -> Floats:
    """Return a program's outputs (n, outputs), one sample at a time.

    Raises MissingExtraError without the extra `executorch`, ExportError for what does not run.
    """
    runtime = _package("executorch.runtime")
    with _quiet("the file"):
        program = runtime.Runtime.get().load_program(content)
        method = program.load_method("forward")
        rows = [
            method.execute([torch.from_numpy(samples[number : number + 1])])[0].numpy().ravel()
            for number in track(range(len(samples)))
        ]
    return np.stack(rows)


def _package(name: str) -> Any:
    try:
        with silent():
            return importlib.import_module(name)
    except ImportError:
        raise MissingExtraError(FEATURE, EXTRA) from None


@contextmanager
def _quiet(what: str) -> Iterator[None]:
    """Silence the libraries' remarks, and say in one line what they stop at."""
    try:
        with warnings.catch_warnings(), silent():
            warnings.simplefilter("ignore")
            yield
    except Exception as error:  # theirs share no base but this one
        lines = [line.strip() for line in str(error).splitlines() if line.strip()]
        reason = lines[0][:160] if lines else type(error).__name__
        raise ExportError(f"ExecuTorch does not take {what}: {reason}") from None
