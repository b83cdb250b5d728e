"""The second route to a .tflite file: litert-torch converts the module, `rewrite.py` the file.

It takes any module that torch.export takes, and needs the extra `export`, two gigabytes of it.
Nothing is planned layer by layer, because the layers are the converter's.
"""

import importlib
import io
import tempfile
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, redirect_stdout
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from edge_export import plan
from edge_export.emit import Emitted
from edge_export.network import Network
from edge_export.plan import Candidate, Plan
from edge_export.rebuilt import module_of
from edge_export.rewrite import digest, rewritten
from edge_export.source import Source
from edge_export.storage import STORED, Storage
from edge_export.verify import silent
from edge_export.xnnpack import Verdict
from fedsparse.errors import ExportError, MissingExtraError

REASON = "converted by litert-torch: what is computed sparsely is not predicted"


def planned(
    source: Source,
    network: Network | None,
    *,
    values: str,
    layout: str,
    target: str,
    description: str,
) -> Plan:
    """Return the plan of an export by this route: files in memory, the smallest first.

    `network` is None for a model that direct export does not cover. Raises MissingExtraError
    without the extra `export`, ExportError for int8 arithmetic and for what does not convert.
    """
    storages = [s for s in plan.choices(values, layout) if s.arithmetic == STORED]
    if not storages:
        raise ExportError(
            f"--route litert-torch has no int8 arithmetic, which --values {values} "
            "asks for; choose f32, f16 or int8-weights, or --route direct"
        )
    module = source.model if network is None else module_of(network)
    content = converted(module, source)
    names = {
        digest(value.detach().numpy()): name.removesuffix(".weight")
        for name, value in module.named_parameters()
        if value.ndim > 1
    }
    if network is not None:
        names = {digest(layer.weight): layer.name for layer in network.weighted()}

    def candidate(storage: Storage) -> Candidate:
        emitted = rewritten(content, storage, names, description)
        return Candidate(storage, emitted, _verdicts(emitted), None)

    dense = candidate(Storage())
    found = [dense if storage == Storage() else candidate(storage) for storage in storages]
    return Plan(target, tuple(_ordered(found, layout)), dense)


def _ordered(found: Sequence[Candidate], layout: str) -> list[Candidate]:
    kept = [
        candidate
        for candidate in found
        if layout != plan.AUTO
        or not candidate.storage.sparse
        or any(row.sparse for row in candidate.emitted.stored)
    ]
    if not kept:
        raise ExportError("no weight has zeros to leave out; use --layout dense")
    return sorted(kept, key=lambda candidate: candidate.nbytes)


def _verdicts(emitted: Emitted) -> tuple[Verdict, ...]:
    return tuple(Verdict(row.layer, False, REASON) for row in emitted.stored)


def converted(module: nn.Module, source: Source) -> bytes:
    """Return a module as the converter's dense f32 file, for one sample, channels last."""
    converter = _package()
    sample = torch.from_numpy(np.ascontiguousarray(source.samples[:1]))
    try:
        with _quiet(), tempfile.TemporaryDirectory() as folder:
            module = module.eval()
            if sample.ndim == 4:
                module = converter.to_channel_last_io(module, args=[0]).eval()
                sample = sample.permute(0, 2, 3, 1).contiguous()
            path = Path(folder) / "model.tflite"
            converter.convert(module, (sample,)).export(str(path))
            return path.read_bytes()
    except Exception as error:  # the converter's own share no base but this one
        lines = [line.strip() for line in str(error).splitlines() if line.strip()]
        reason = lines[0][:160] if lines else type(error).__name__
        raise ExportError(f"litert-torch does not convert the model: {reason}") from None


def _package() -> Any:
    try:
        with _quiet():
            return importlib.import_module("litert_torch")
    except ImportError:
        raise MissingExtraError("--route litert-torch", "export") from None


@contextmanager
def _quiet() -> Iterator[None]:
    """Keep the converter's progress off stdout, and its remarks off stderr."""
    with silent(), redirect_stdout(io.StringIO()), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield
