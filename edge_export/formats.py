"""The formats that a model is exported in, by a file's suffix: what each holds, writes and runs.

.tflite is planned by `plan.py`, layer by layer; the others compute densely, so that there a plan
says what is stored, and predicts nothing.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from edge_export import c_header, executorch_file, onnx_file, plan, verify
from edge_export.emit import Emitted, Range
from edge_export.emit import emit as emit_tflite
from edge_export.network import Network
from edge_export.plan import AUTO, DENSE, Candidate, Plan
from edge_export.storage import F32, INT8, STATIC, Storage
from edge_export.verify import Floats, Run, Track
from edge_export.xnnpack import Verdict
from fedsparse.errors import ExportError

Emit = Callable[[Network, Storage, Sequence[Range] | None, str], Emitted]


@dataclass(frozen=True)
class Format:
    """A format: its suffix, what runs it, and the `--values` and `--layout` that it has.

    The first of `values` is its default. `sparsity` says in a sentence what of it survives in
    a dense layout.
    """

    suffix: str
    runtime: str
    values: tuple[str, ...]
    layouts: tuple[str, ...]
    sparsity: str
    run: Run
    emit: Emit | None = None
    storages: tuple[Storage, ...] = ()

    @property
    def plans(self) -> bool:
        """Whether an export is planned layer by layer, and its cost predicted."""
        return self.emit is None

    def verified_by(self) -> str:
        """The runtime that runs its files here: its own, if that is installed."""
        return "LiteRT" if self.run is _run_header and not c_header.installed() else self.runtime


def _run_tflite(content: bytes, samples: Floats, track: Track) -> Floats:
    return verify.run(content, samples, track)


def _run_header(content: bytes, samples: Floats, track: Track) -> Floats:
    """Run a header's model on its own runtime, on LiteRT where that is not installed."""
    runtime = c_header.run if c_header.installed() else verify.run
    return runtime(content, samples, track)


def _onnx(
    network: Network, storage: Storage, ranges: Sequence[Range] | None, description: str
) -> Emitted:
    return onnx_file.emit(network, storage, description)


def _executorch(
    network: Network, storage: Storage, ranges: Sequence[Range] | None, description: str
) -> Emitted:
    return executorch_file.emit(network, storage, description)


def _micro(
    network: Network, storage: Storage, ranges: Sequence[Range] | None, description: str
) -> Emitted:
    return emit_tflite(network, storage, ranges=ranges, description=description)


TFLITE = Format(
    ".tflite",
    "LiteRT",
    plan.VALUES,
    plan.LAYOUTS,
    "zeros are stored, and LiteRT computes with them",
    _run_tflite,
)
ONNX = Format(
    ".onnx",
    "onnxruntime",
    tuple(onnx_file.STORAGES),
    (AUTO, DENSE),
    "zeros are stored, and onnxruntime computes with them",
    onnx_file.run,
    _onnx,
    tuple(onnx_file.STORAGES.values()),
)
EXECUTORCH = Format(
    ".pte",
    "ExecuTorch",
    (F32,),
    (AUTO, DENSE),
    "zeros are stored, and ExecuTorch computes with them",
    executorch_file.run,
    _executorch,
    (Storage(),),
)
HEADER = Format(
    ".h",
    "LiteRT for Microcontrollers",
    (INT8, F32),
    (AUTO, DENSE),
    "zeros are stored: this runtime has no DENSIFY kernel",
    _run_header,
    _micro,
    (Storage(INT8, STATIC), Storage()),
)
FORMATS = {kind.suffix: kind for kind in (TFLITE, ONNX, EXECUTORCH, HEADER)}


def of(out: Path) -> Format:
    """Return the format of a file's name; raises ExportError with those that there are."""
    suffix = out.suffix.lower()
    if suffix not in FORMATS:
        raise ExportError(f"--out '{out}': its name must end in one of {', '.join(FORMATS)}")
    return FORMATS[suffix]


def check(kind: Format, values: str, layout: str) -> None:
    """Refuse values and a layout that a format does not have, or not together."""
    if values not in kind.values:
        raise ExportError(
            f"a {kind.suffix} file has no --values {values}; choose one of: "
            f"{', '.join(kind.values)}"
        )
    if layout not in kind.layouts:
        raise ExportError(
            f"a {kind.suffix} file has no {layout} layout ({kind.runtime} computes densely); "
            "leave --layout out, or write a .tflite file"
        )
    if kind is TFLITE:
        plan.choices(values, layout)


def plan_of(
    kind: Format,
    network: Network,
    *,
    values: str,
    target: str,
    ranges: Sequence[Range] | None,
    description: str,
) -> Plan:
    """Return the plan of an export to a format that is computed densely: one way, no prediction."""
    assert kind.emit is not None
    verdicts = tuple(
        Verdict(layer.name, False, f"{kind.runtime} computes densely, whatever is zero")
        for layer in network.weighted()
    )

    def candidate(storage: Storage) -> Candidate:
        assert kind.emit is not None
        emitted = kind.emit(network, storage, ranges, description)
        return Candidate(storage, emitted, verdicts, None)

    chosen = kind.storages[kind.values.index(values)]
    best = candidate(chosen)
    return Plan(target, (best,), best if chosen == Storage() else candidate(Storage()))


def written(kind: Format, candidate: Candidate, out: Path, about: str) -> bytes:
    """Return the bytes of the file itself, which are not those of the model in a header."""
    content = candidate.emitted.content
    if kind is not HEADER:
        return content
    arena = c_header.arena(content) if c_header.installed() else None
    return c_header.render(content, out.stem, about, arena)
