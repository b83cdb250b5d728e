"""What model files cost on ARM without a board: instructions, counted under emulation.

An aarch64 Python runs each file once on an emulated core (qemu-user, `fedsparse bench
--setup-arm`), and a plugin counts. An inference's instructions are half of what two more take
after the first; the same figure each time. They are never time: an emulator has no caches and
no pipeline.
"""

import subprocess
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from numpy.typing import NDArray

from edge_export.bench import plugin, runtimes
from edge_export.bench.arm_root import CORES, Root, check_core, find
from edge_export.bench.ending import ending
from edge_export.bench.local import WORKER, saved_outputs
from fedsparse.errors import BenchError, UnknownNameError

__all__ = ["CORES", "ArmCost", "instructions"]

ARM_RUNTIMES = (runtimes.LITERT, runtimes.TFLITE)
PATIENCE_SECONDS = 3600.0
"""A file that takes longer under emulation is given up."""
COUNTS, MODEL = "counts", "model.tflite"
Array = NDArray[Any]
Progress = Callable[[str, int, int], None]


@dataclass(frozen=True)
class ArmCost:
    """What one file costs on an emulated core, in instructions.

    `instructions` is one inference; `setup_instructions` is loading, allocating and what the
    first inference takes more than a later one.
    """

    file: Path
    runtime: str
    version: str
    core: str
    instructions: int
    setup_instructions: int
    file_bytes: int
    outputs: tuple[Array, ...] = field(repr=False, compare=False)
    """What the file gives for the worker's seeded random input."""


def instructions(
    files: Sequence[Path],
    *,
    core: str = "cortex-a72",
    runtime: str = runtimes.LITERT,
    root: Path | None = None,
    progress: Progress = lambda *_: None,
) -> list[ArmCost]:
    """Count what each file takes on an emulated core, in the files' order.

    `root` is the folder of aarch64 packages, the user's own if unset. Raises BenchError, and
    UnknownNameError for a core or a runtime.
    """
    check_core(core)
    if runtime not in ARM_RUNTIMES:
        if runtime in runtimes.RUNTIMES:
            raise BenchError(f"{runtime} is not counted on ARM; use {' or '.join(ARM_RUNTIMES)}")
        raise UnknownNameError("runtime", runtime, ARM_RUNTIMES)
    for file in files:
        if file.suffix.lower() == ".onnx":
            raise BenchError(f"'{file}' is not counted on ARM, .tflite files are; export one")
    runtimes.chosen(files, runtime)
    qemu = plugin.emulator()
    guest = find(root)
    packages = guest.packages(runtime)
    counter = plugin.compiled(qemu)
    found = []
    for number, file in enumerate(files):
        progress(f"{file.name} on {core}", number, len(files))
        with tempfile.TemporaryDirectory(prefix="fedsparse-bench-") as folder:
            reply = _run(Path(folder), file, qemu, counter, guest, packages, core, runtime)
            one, setup = _costs(Path(folder) / COUNTS)
            found.append(
                ArmCost(
                    file=file,
                    runtime=runtime,
                    version=reply["version"],
                    core=core,
                    instructions=one,
                    setup_instructions=setup,
                    file_bytes=file.stat().st_size,
                    outputs=saved_outputs(Path(folder)),
                )
            )
    return found


def _run(
    folder: Path,
    file: Path,
    qemu: Path,
    counter: Path,
    guest: Root,
    packages: Path,
    core: str,
    runtime: str,
) -> dict[str, Any]:
    """Run a file in an empty folder under the emulator; return the worker's reply.

    Arguments and environment are the same for every file, since both are counted.
    """
    (folder / MODEL).symlink_to(file.resolve())
    (folder / WORKER.name).write_bytes(WORKER.read_bytes())
    counting = f"{str(counter).replace(',', ',,')},out={COUNTS}"
    command = guest.command(qemu, core, "-plugin", counting)
    words = [WORKER.name, "count", runtime, MODEL, "1", "-", "."]
    try:
        done = subprocess.run(
            [*command, *words],
            cwd=folder,
            env=guest.environment(packages),
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            errors="replace",
            timeout=PATIENCE_SECONDS,
        )
    except subprocess.TimeoutExpired:
        raise BenchError(f"'{file}' does not end under emulation; is it a model?") from None
    if "plugin" in done.stderr and not (folder / COUNTS).exists():
        raise BenchError(
            f"'{qemu}' takes no plugin ({done.stderr.strip().splitlines()[-1][:160]}); put one "
            "first on the PATH that does: Debian 12's qemu-user, or qemu built with "
            "--enable-plugins"
        )
    reply = runtimes.reply_of(done.stdout)
    if "failed" in reply:
        raise runtimes.explain(file, runtime, reply, f"in '{guest.folder}'")
    if done.returncode != 0 or reply.keys() != {"version"}:
        raise BenchError(
            f"{runtime} fails on '{file}' under emulation: {ending(done.returncode, done.stderr)}; "
            "the file may be damaged: export it again"
        )
    return reply


def _costs(counts: Path) -> tuple[int, int]:
    """Return instructions of an inference and to set up, from the worker's five marks.

    They stand before and after loading, before and after the first inference, and after two more.
    """
    try:
        marks = [int(line) for line in counts.read_text(encoding="ascii").split()]
        before, loaded, filled, first, last = marks[-5:]
    except (OSError, ValueError):
        raise BenchError(
            "the emulator's plugin wrote no counts; is the emulator on the PATH qemu's own?"
        ) from None
    one = (last - first) // 2
    return one, (loaded - before) + (first - filled) - one
