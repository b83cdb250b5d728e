"""What an export would be, before it is written: how each layer is stored and computed, and why.

For each way to store a network its file is made in memory, so that sizes are exact; costs are
predictions of `costs.py`. `auto` takes the cheapest on the target core, the smallest of equals.
"""

from collections.abc import Sequence
from dataclasses import dataclass

from edge_export import costs, xnnpack
from edge_export.emit import Emitted, Range, emit
from edge_export.network import Network
from edge_export.storage import DYNAMIC, F16, F32, INT8, STATIC, Storage
from edge_export.xnnpack import Verdict
from fedsparse.errors import ExportError

AUTO, SPARSE, DENSE = "auto", "sparse", "dense"
LAYOUTS = (AUTO, SPARSE, DENSE)
VALUES = (F32, F16, INT8, "int8-weights", "int8-dynamic", AUTO)
EQUAL = 0.001
"""Predictions closer than this fraction count as equal; the smaller file wins."""

_SPARSE_F32, _DENSE_F32 = Storage(F32, sparse=True), Storage(F32)
_CHOICES: dict[str, tuple[Storage, ...]] = {
    F32: (_SPARSE_F32, _DENSE_F32),
    F16: (Storage(F16, sparse=True), Storage(F16)),
    INT8: (Storage(INT8, sparse=True), Storage(INT8, STATIC)),
    "int8-weights": (Storage(INT8, sparse=True), Storage(INT8)),
    "int8-dynamic": (Storage(INT8, DYNAMIC),),
    AUTO: (
        _SPARSE_F32,
        _DENSE_F32,
        Storage(F16, sparse=True),
        Storage(F16),
        Storage(INT8, sparse=True),
        Storage(INT8),
        Storage(INT8, STATIC),
    ),
}
"""What may be chosen of each `--values`: sparse first."""


@dataclass(frozen=True)
class Candidate:
    """A way to export: its file, how its layers are computed, and its predicted instructions."""

    storage: Storage
    emitted: Emitted
    verdicts: tuple[Verdict, ...]
    instructions: float | None

    @property
    def nbytes(self) -> int:
        """Bytes of the file."""
        return len(self.emitted.content)


@dataclass(frozen=True)
class Plan:
    """The candidates of an export, the best first, and a dense f32 file to compare with."""

    target: str
    candidates: tuple[Candidate, ...]
    dense: Candidate

    @property
    def best(self) -> Candidate:
        """What `auto` chooses."""
        return self.candidates[0]

    def gain(self, candidate: Candidate) -> float | None:
        """Return how many times fewer instructions than dense f32 are predicted."""
        if candidate.instructions is None or self.dense.instructions is None:
            return None
        return self.dense.instructions / candidate.instructions


def plan(
    network: Network,
    *,
    values: str,
    layout: str,
    target: str,
    ranges: Sequence[Range] | None,
    description: str = "fedsparse",
) -> Plan:
    """Return what the export of a network would be.

    `ranges` are needed where int8 arithmetic is among the choices. Raises ExportError for
    unknown names, a layout that the values do not have, and what cannot be emitted at all.
    """
    costs.check_target(target)
    dense = _candidate(network, _DENSE_F32, target, ranges, description)
    found: list[Candidate] = []
    refused: ExportError | None = None
    for storage in choices(values, layout):
        if storage == _DENSE_F32:
            found.append(dense)
            continue
        try:
            candidate = _candidate(network, storage, target, ranges, description)
        except ExportError as error:
            refused = error
            continue
        if storage.sparse and not any(s.sparse for s in candidate.emitted.stored):
            continue  # nothing to leave out
        found.append(candidate)
    if not found:
        raise refused or ExportError(
            f"--values {values} --layout {layout}: no weight has zeros to leave out; use "
            "--layout dense"
        )
    return Plan(target, tuple(_ordered(found)), dense)


def choices(values: str, layout: str) -> tuple[Storage, ...]:
    """Return what may be chosen; raises ExportError where a layout has none of the values."""
    all_of = _CHOICES[values]
    if layout == AUTO:
        return all_of
    found = tuple(storage for storage in all_of if storage.sparse == (layout == SPARSE))
    if not found:
        raise ExportError(f"--values {values} has no {layout} layout; leave --layout out")
    return found


def _candidate(
    network: Network,
    storage: Storage,
    target: str,
    ranges: Sequence[Range] | None,
    description: str,
) -> Candidate:
    widen = storage.sparse and xnnpack.wants_wider_entry(network)
    emitted = emit(network, storage, ranges=ranges, widen=widen, description=description)
    verdicts = tuple(_verdicts(network, storage, target, widen, emitted))
    sparse = xnnpack.sparse_layers(verdicts)
    cost = costs.predict(network, storage, sparse, target, widen=widen)
    return Candidate(storage, emitted, verdicts, cost)


def _verdicts(
    network: Network, storage: Storage, target: str, widen: bool, emitted: Emitted
) -> list[Verdict]:
    rows = xnnpack.verdicts(network, widen=widen, arm=target != costs.X86)
    if storage.arithmetic != "stored":
        reason = "int8 arithmetic: XNNPACK has no sparse int8 kernels"
        return [Verdict(row.layer, False, reason) for row in rows]
    if not any(stored.sparse for stored in emitted.stored):
        reason = "stored densely: XNNPACK looks for zeros only in a file with sparse constants"
        return [Verdict(row.layer, False, reason if row.sparse else row.reason) for row in rows]
    return rows


def _ordered(found: Sequence[Candidate]) -> list[Candidate]:
    """Return candidates by their predicted cost, those about equal by size."""
    if any(candidate.instructions is None for candidate in found):
        return sorted(found, key=lambda candidate: candidate.nbytes)
    cheapest = min(candidate.instructions or 0.0 for candidate in found)
    near = [c for c in found if (c.instructions or 0.0) <= cheapest * (1 + EQUAL)]
    others = [candidate for candidate in found if candidate not in near]
    return [
        *sorted(near, key=lambda candidate: candidate.nbytes),
        *sorted(others, key=lambda candidate: candidate.instructions or 0.0),
    ]
