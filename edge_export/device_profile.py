"""From what a device measured to a profile that a run can be simulated on.

Speeds are FLOP/s as fedsparse counts FLOPs, 2 for each multiply-add. They are of inference and
taken for training, which each source says. What was not measured is that of another profile.
"""

import hashlib
import math
import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import tomli_w

from edge_export import device_graph
from edge_export.device_json import DeviceFile, Export, Result, unknown_work
from fedsparse.devices import mixture
from fedsparse.devices.profile import Profile, from_mapping
from fedsparse.devices.reading import checked, json_of, shown, text_of
from fedsparse.errors import BenchError, ConfigError
from fedsparse.runs.atomic import write_file, writing

FLOPS = 2
"""FLOPs of a multiply-add, as in `fedsparse.sparsity.cost`."""
SAME_NETWORK = 0.2
"""Files of one network may differ by this much in multiply-adds, such as by padded channels."""
LEAST_SECONDS, MOST_SECONDS = 1e-9, 1e6
"""As of what is measured: an inference takes no less and no more."""
NO_FASTER = 0.97
"""A sparse file that takes more than this part of the dense one's time ran no sparse kernels."""
TRAINING = "assumption: training reaches the FLOP/s of inference"


@dataclass(frozen=True)
class Clock:
    """What turns instructions into seconds: both figures are assumptions of whoever states them."""

    hertz: float
    instructions_per_cycle: float = 1.0

    def seconds(self, instructions: float) -> float:
        """Return how long so many instructions take."""
        return instructions / self.hertz / self.instructions_per_cycle


@dataclass(frozen=True)
class Timed:
    """A file with the seconds of an inference and its work."""

    result: Result
    seconds: float
    work: Export

    @property
    def flops(self) -> float:
        """FLOP/s: of all weights in a dense file, of kept ones alone in a sparse one."""
        macs = self.work.macs if self.work.layout == "dense" else self.work.kept_macs
        return FLOPS * macs / self.seconds


@dataclass(frozen=True)
class Made:
    """A profile, its file's content, and what whoever made it should know."""

    profile: Profile
    figures: dict[str, Any]
    notes: tuple[str, ...]


def base_of(name: str) -> Profile:
    """Return the profile of a name or a file; raises ConfigError for a fleet, or for none."""
    found = mixture.find(name).profiles
    if len(found) > 1:
        names = ", ".join(profile.name for profile in found)
        raise ConfigError(f"'{name}' is a fleet; name one of its profiles: {names}")
    return found[0]


def work_of(result: Result, places: Sequence[Path]) -> Export:
    """Return a measured file's multiply-adds: as measured, from export's sidecar, or counted.

    `places` are files and folders to look in. Raises BenchError when it lies in none, or
    another file does under its name, ExportError when it cannot be counted.
    """
    if result.export is not None and result.export.sha256 in (None, result.sha256):
        return result.export
    other = None
    for place in (*places, *([Path(result.path)] if result.path else [])):
        content = _content(path := _in(place, result.file), result.file)
        if content is None:
            continue
        digest = hashlib.sha256(content).hexdigest()
        if result.sha256 in (None, digest):
            return _sidecar(path, digest) or device_graph.count(content, str(path))
        other = path
    if other is not None:
        raise BenchError(
            f"'{other}' is not the file that was measured, its SHA-256 differs; give that one with "
            "--files"
        )
    raise BenchError(
        f"the multiply-adds of '{result.file}' are not known; give the file or its folder with "
        "--files"
    )


def _in(place: Path, file: str) -> Path:
    return place / file if _is(place, Path.is_dir) else place


def _is(path: Path, kind: Callable[[Path], bool]) -> bool:
    """Whether a path is of a kind; one that no system takes as a name is of none."""
    try:
        return kind(path)
    except (OSError, ValueError):
        return False


def _content(path: Path, name: str) -> bytes | None:
    """Return what a file of that name holds, None for another; raises BenchError."""
    if path.name != name or not _is(path, Path.is_file):
        return None
    try:
        return path.read_bytes()
    except OSError as error:
        raise BenchError(
            f"'{path}' cannot be read: {error.strerror}; check its permissions"
        ) from None


def _sidecar(path: Path, digest: str) -> Export | None:
    beside = path.with_name(f"{path.name}.json")
    if not beside.is_file():
        return None
    data = json_of(text_of(beside, "export's file", BenchError), beside, BenchError)
    if data.get("sha256") != digest or unknown_work(data):
        return None
    return checked(Export, data, str(beside))


def make(
    found: DeviceFile,
    base: Profile,
    places: Sequence[Path],
    *,
    name: str | None = None,
    clock: Clock | None = None,
) -> Made:
    """Return the profile of a measured device.

    Raises BenchError when a clock is missing or not wanted, when no dense file was measured, or
    when a file's work is not known; ConfigError for figures that no profile can have.
    """
    _check_clock(found, clock)
    timed = [
        Timed(result, _seconds(result, clock), work_of(result, places)) for result in found.results
    ]
    dense = _dense(timed)
    sparse, notes = _sparse(timed, dense)
    notes = [*_circumstances(found), *notes]
    figures = base.model_dump(exclude_unset=True, exclude_none=True)
    sources = dict(figures.get("sources", {}))
    figures["name"] = name or found.name
    figures["description"] = f"made of a measurement; what it does not hold is that of {base.name}"
    figures["dense_flops"] = dense.flops
    sources["dense_flops"] = _source(found, [dense], clock)
    if sparse:
        for key in ("sparse_curve", "sparse_efficiency"):
            figures.pop(key, None)
            sources.pop(key, None)
        key, value, said = _sparse_figures(sparse, dense)
        figures[key], sources[key] = value, _source(found, sparse, clock)
        notes += said
    elif base.sparse_curve:
        ratio = dense.flops / base.dense_flops
        figures["sparse_curve"] = [(density, ratio * flops) for density, flops in base.sparse_curve]
        sources["sparse_curve"] = f"assumption: as {base.name} beside its dense speed"
    memory = found.machine.memory_available_bytes or found.machine.memory_bytes
    if memory is not None and not found.counted:
        key = "MemAvailable" if found.machine.memory_available_bytes else "MemTotal"
        figures["memory_bytes"] = memory
        sources["memory_bytes"] = f"measured: {key} before measuring{_when(found)}"
    figures["sources"] = sources
    return Made(from_mapping(figures, "the profile"), figures, tuple(notes))


def write(made: Made, path: Path) -> None:
    """Write a profile's file, whole or not at all; raises RunFolderError."""
    with writing(path.parent):
        write_file(path, tomli_w.dumps(made.figures).encode())


def check_place(path: Path) -> None:
    """Refuse a place that no profile can be written to, before any work is done."""
    if path.suffix.lower() != ".toml":
        raise ConfigError(f"--out '{path}': the name of a profile ends in .toml")
    try:
        fits = not path.is_dir() and path.parent.is_dir()
        os.lstat(path)
    except FileNotFoundError:
        pass
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or str(error)
        raise ConfigError(
            f"--out {shown(str(path))} cannot be written ({reason}); choose another name"
        ) from None
    if not fits:
        raise ConfigError(
            f"--out '{path}' cannot be written; choose a file in a folder that exists"
        )


def _check_clock(found: DeviceFile, clock: Clock | None) -> None:
    if found.counted and clock is None:
        raise BenchError(
            "instructions were counted, which are no time; state the core's clock with --clock HZ, "
            "such as --clock 1.5e9"
        )
    if clock is None:
        return
    if not found.counted:
        raise BenchError("--clock is for counts of instructions; here seconds were measured")
    for option, value in (
        ("--clock", clock.hertz),
        ("--instructions-per-cycle", clock.instructions_per_cycle),
    ):
        if not (math.isfinite(value) and value > 0):
            raise ConfigError(f"{option} {value}: must be a positive number")


def _seconds(result: Result, clock: Clock | None) -> float:
    if result.seconds is not None:
        return result.seconds.typical[1]
    assert clock is not None
    assert result.instructions is not None
    seconds = clock.seconds(result.instructions)
    if not LEAST_SECONDS <= seconds <= MOST_SECONDS:
        raise ConfigError(
            f"--clock {clock.hertz:g} and {clock.instructions_per_cycle:g} instructions a cycle: "
            f"an inference of '{result.file}' would take {seconds:g} s; state a core's, such as "
            "--clock 1.5e9"
        )
    return seconds


def _dense(timed: list[Timed]) -> Timed:
    """Return the file that says how fast dense kernels are: the one with most work, then speed."""
    candidates = [t for t in timed if t.work.layout == "dense" and t.work.floating]
    if not candidates:
        names = ", ".join(f"'{t.result.file}'" for t in timed)
        raise BenchError(
            f"no dense f32 file among {names}; measure one, too, that was exported with "
            "--layout dense --values f32"
        )
    return max(candidates, key=lambda t: (t.work.macs, t.flops))


def _sparse(timed: list[Timed], dense: Timed) -> tuple[list[Timed], list[str]]:
    """Return the sparse files of the dense one's network, and notes on those left out."""
    kept, notes = [], []
    for t in timed:
        if t is dense:
            continue
        name = t.result.file
        if not t.work.floating:
            notes.append(f"'{name}' is left out: it computes in int8, and training in f32")
        elif t.work.layout == "dense":
            notes.append(f"'{name}' is left out: '{dense.result.file}' gives the dense speed")
        elif abs(t.work.macs / dense.work.macs - 1) > SAME_NETWORK:
            notes.append(f"'{name}' is left out: it is of another network than the dense file")
        elif not t.work.kept_macs:
            notes.append(f"'{name}' is left out: none of its weights is kept")
        else:
            kept.append(t)
    return kept, notes


def _sparse_figures(sparse: list[Timed], dense: Timed) -> tuple[str, Any, list[str]]:
    """Return the figure that sparse files give, its key, and notes.

    A curve holds below its lowest density, too; so there is none where no file was faster.
    """
    if all(t.seconds > NO_FASTER * dense.seconds for t in sparse):
        note = "sparse files are no faster than the dense one: no sparse kernels ran here"
        return "sparse_efficiency", 0.0, [note]
    slowest_first = sorted(sparse, key=lambda t: t.flops)  # of one density the faster one stays
    return "sparse_curve", sorted({t.work.density: t.flops for t in slowest_first}.items()), []


def _circumstances(found: DeviceFile) -> list[str]:
    notes = []
    if not found.complete:
        notes.append("the measurement was interrupted; its figures are of fewer inferences")
    if found.conditions.throttled:
        reasons = ", ".join(found.conditions.reasons) or "it says no more"
        notes.append(f"the device was slowed down while it was measured: {reasons}")
    return notes


def _source(found: DeviceFile, timed: list[Timed], clock: Clock | None) -> str:
    """Return where speeds are from, in one line."""
    files = "; ".join(_of_file(t) for t in sorted(timed, key=lambda t: t.work.density))
    runtime = f"{found.runtime.name} {found.runtime.version}".strip()
    threads = "1 thread" if found.threads == 1 else f"{found.threads} threads"
    how = f"{files}; {runtime}, {threads}{_when(found)}"
    if clock is not None:
        return (
            f"assumption: a clock of {clock.hertz:g} Hz and {clock.instructions_per_cycle:g} "
            f"instructions a cycle, counted on an emulated {found.name}: {how}; {TRAINING}"
        )
    slowed = ", slowed down meanwhile" if found.conditions.throttled else ""
    return f"measured: {how}{slowed}; {TRAINING}"


def _of_file(t: Timed) -> str:
    digest = f" (SHA-256 {t.result.sha256[:12]})" if t.result.sha256 else ""
    macs = t.work.macs if t.work.layout == "dense" else t.work.kept_macs
    if t.result.seconds is None:
        figure = f"{t.result.instructions:,.0f} instructions"
    else:
        what, seconds = t.result.seconds.typical
        figure = f"{what} {1e3 * seconds:.4g} ms"
    return f"{figure} of {t.result.file}{digest} for {macs:,} multiply-adds of {FLOPS} FLOPs"


def _when(found: DeviceFile) -> str:
    return f", {found.made}" if found.made else ""
