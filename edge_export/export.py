"""A model becomes a file: planned, written, loaded again, compared, and only then in its place."""

import hashlib
import json
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

import fedsparse
from edge_export import formats, litert_route, reading, verify
from edge_export import network as net
from edge_export.compact import compact
from edge_export.emit import Range
from edge_export.formats import TFLITE, Format
from edge_export.network import Network
from edge_export.plan import AUTO, Candidate, Plan, plan
from edge_export.source import Source
from edge_export.sparse import same
from edge_export.storage import F32
from edge_export.verify import Tolerance, Track, Verified
from fedsparse.errors import ExportError, VerificationError
from fedsparse.runs.atomic import write_files

SIDECAR = ".json"
DIRECT, LITERT_TORCH = "direct", "litert-torch"
Note = Callable[[str], None]


@dataclass(frozen=True)
class Exported:
    """A file that was written, and what was found of it."""

    path: Path
    source: Source
    network: Network | None  # None for a model that direct export does not cover
    plan: Plan
    candidate: Candidate
    verified: Verified
    kind: Format
    content: bytes
    route: str

    def sparsity(self) -> str:
        """Return in a sentence what of the sparsity survives in the file."""
        cut = "channels that pruning cut off are removed, other " if self.removed else ""
        if not self.candidate.storage.sparse:
            return cut + self.kind.sparsity
        text = f"{cut}zeros are left out of the file; "
        if self.route != DIRECT:
            return text + "which layers are computed without them is not predicted"
        verdicts = self.candidate.verdicts
        count = sum(row.sparse for row in verdicts)
        return f"{text}{count} of {len(verdicts)} layers are computed without them"

    @property
    def removed(self) -> bool:
        """Whether the file lacks channels that the model has."""
        held = sum(math.prod(row.shape) for row in self.candidate.emitted.stored)
        weights = [p for p in self.source.model.parameters() if p.dim() > 1]
        return held < sum(weight.numel() for weight in weights)

    def row(self) -> dict[str, Any]:
        """Return what stands beside the file, as `FILE.json`."""
        macs, kept = (None, None) if self.network is None else self.network.macs()
        stored = self.candidate.emitted.stored
        size = sum(math.prod(row.shape) for row in stored)
        return {
            "format": 1,
            "file": self.path.name,
            "sha256": hashlib.sha256(self.content).hexdigest(),
            "model": self.source.name,
            "run": self.source.origin,
            "layout": "sparse" if self.candidate.storage.sparse else "dense",
            "values": self.candidate.storage.values,
            "storage": self.candidate.storage.name,
            "route": self.route,
            "runtime": self.kind.runtime,
            "verified_by": self.kind.verified_by(),
            "sparsity": self.sparsity(),
            "target": self.plan.target,
            "macs": macs,
            "kept_macs": kept,
            "density": sum(row.kept for row in stored) / size,
            "file_bytes": self.candidate.nbytes,
            "dense_bytes": self.plan.dense.nbytes,
            "predicted_instructions": self.candidate.instructions,
            "predicted_gain": self.plan.gain(self.candidate),
            "sparse_layers": [row.layer for row in self.candidate.verdicts if row.sparse],
            "real_samples": self.source.real,
            **self.verified.row(),
        }


def prepare(source: Source, *, keep_channels: bool = False) -> Network:
    """Return a source's network, without the channels that pruning has cut off."""
    found = net.of(source.model, source.input_shape)
    return found if keep_channels else compact(found)


def prepare_for(route: str, source: Source, *, keep_channels: bool = False) -> Network | None:
    """Return what `prepare` does; None where it is not covered and the route does without."""
    try:
        return prepare(source, keep_channels=keep_channels)
    except net.UncoveredError:
        if route == DIRECT:
            raise
        return None


def check_route(route: str, kind: Format) -> None:
    """Refuse a route that does not lead to a format."""
    if route != DIRECT and kind is not TFLITE:
        raise ExportError(
            f"--route {route} leads to .tflite files, not {kind.suffix}; leave --route out"
        )


def calibrated(network: Network, samples: net.Floats) -> list[Range]:
    """Return (least, most) of each value of a network over samples (n, *input_shape)."""
    if not len(samples):
        raise ExportError("there are no samples to calibrate on; export with --values f32")
    found: list[Range] | None = None
    for first in range(0, len(samples), 128):
        values = net.run(network, samples[first : first + 128])
        ranges = [(float(value.min()), float(value.max())) for value in values]
        for layer in network.layers:
            if not np.isfinite(ranges[layer.output]).all():
                raise ExportError(
                    f"layer '{layer.name}' returns values that are not finite; train the model "
                    "again with a smaller client.lr"
                )
        found = (
            ranges
            if found is None
            else [(min(a[0], b[0]), max(a[1], b[1])) for a, b in zip(found, ranges, strict=True)]
        )
    assert found is not None
    return found


def planned(
    source: Source,
    network: Network | None,
    *,
    values: str,
    layout: str,
    target: str,
    kind: Format = TFLITE,
    route: str = DIRECT,
) -> Plan:
    """Return the plan of an export; calibrates on the source's samples.

    Raises ExportError for values and a layout that the format does not have.
    """
    formats.check(kind, values, layout)
    check_route(route, kind)
    description = _about(source)
    if route == LITERT_TORCH or network is None:
        return litert_route.planned(
            source, network, values=values, layout=layout, target=target, description=description
        )
    ranges = None if values == F32 else calibrated(network, source.calibration)
    if kind is not TFLITE:
        return formats.plan_of(
            kind, network, values=values, target=target, ranges=ranges, description=description
        )
    return plan(
        network,
        values=values,
        layout=layout,
        target=target,
        ranges=ranges,
        description=description,
    )


def export(
    source: Source,
    out: Path,
    *,
    values: str = F32,
    layout: str = AUTO,
    target: str = "cortex-a72",
    samples: int = 2000,
    tolerance: Tolerance | None = None,
    keep_channels: bool = False,
    route: str = DIRECT,
    note: Note = lambda text: None,
    track: Track = iter,
) -> Exported:
    """Write a source as a file, in the format of its name, that was compared with its model.

    With `layout` or `values` auto, a candidate over its tolerance gives way to the next. Raises
    ExportError, and VerificationError when none holds: what lay under `out` before stays.
    """
    kind = check_place(out)
    network = prepare_for(route, source, keep_channels=keep_channels)
    found = planned(
        source, network, values=values, layout=layout, target=target, kind=kind, route=route
    )
    chosen = _spread(len(source.samples), samples)
    labels = None if source.labels is None else source.labels[chosen]
    failed: VerificationError | None = None
    for candidate in found.candidates:
        limits = tolerance or verify.tolerance_of(candidate.storage)
        content = candidate.emitted.content
        file = formats.written(kind, candidate, out, _about(source))
        if kind is TFLITE:
            _check_tensors(content, candidate, str(out))
        try:
            verified = verify.verify(
                content, source.model, source.samples[chosen], labels, limits, track, kind.run
            )
        except VerificationError as error:
            failed = failed or error
            note(f"{candidate.storage.name}: {error}")
            continue
        exported = Exported(out, source, network, found, candidate, verified, kind, file, route)
        _write(exported)
        return exported
    raise failed or VerificationError("no file was verified")


def check_place(out: Path) -> Format:
    """Return a file's format; refuse a place that no file can be written to, before any work."""
    if out.is_dir():
        raise ExportError(f"--out '{out}' is a folder; name a file in it, such as model.tflite")
    if not out.parent.is_dir():
        raise ExportError(f"--out '{out}': the folder '{out.parent}' does not exist; make it first")
    return formats.of(out)


def _about(source: Source) -> str:
    return f"fedsparse {fedsparse.__version__}: {source.name}"


def _spread(available: int, wanted: int) -> Sequence[int]:
    """Return positions of at most `wanted` samples, spread over all of them."""
    count = min(available, wanted)
    return [int(n) for n in np.linspace(0, available - 1, count).round()]


def _check_tensors(content: bytes, candidate: Candidate, name: str) -> None:
    """Hold what is read back from the file's sparse tensors against what was put in, bit by bit."""
    back = {tensor.name: tensor.csr for tensor in reading.sparse_tensors(content, name)}
    put = {f"{s.layer}/weight/kept": s.csr for s in candidate.emitted.stored if s.csr is not None}
    if back.keys() != put.keys() or not all(same(back[key], put[key]) for key in put):
        raise VerificationError("the file's sparse tensors are not those that were written")


def _write(exported: Exported) -> None:
    """Write the file and its figures; both or neither, and then what was there before stays."""
    out = exported.path
    sidecar = out.with_name(out.name + SIDECAR)
    figures = (json.dumps(exported.row(), indent=2) + "\n").encode()
    try:
        write_files({out: exported.content, sidecar: figures})
    except OSError as error:
        raise ExportError(
            f"'{out}' cannot be written: {error.strerror or error}; free some space, check the "
            "folder's permissions, or choose another --out"
        ) from None
