"""The folder of aarch64 packages that the emulator runs: where it is, what lies in it, its cores.

    base/              an aarch64 system: C library, Python, nothing else
    packages/RUNTIME/  a runtime with the numpy that it needs
    cores/CORE/        base again, by links, and what a kernel on that core says of itself

XNNPACK asks the kernel which core it runs on and chooses its code by the answer, so each core
is a root of its own. `arm_setup` builds the folder.
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from edge_export.bench import plugin
from edge_export.bench.runtimes import RUNTIMES
from fedsparse.errors import BenchError, UnknownNameError

RECORD = "root.json"
LAYOUT = 1
"""Of the folder; one of another layout is built anew."""
BASE, CORES_FOLDER, PACKAGES = "base", "cores", "packages"
SET_UP = "`fedsparse bench --setup-arm`"


@dataclass(frozen=True)
class Core:
    """A core: its part number, and the instructions that it has beyond the first of ARMv8."""

    part: int
    features: str = ""


CORES = {
    "cortex-a53": Core(0xD03),
    "cortex-a72": Core(0xD08),
    "cortex-a76": Core(0xD0B, "atomics fphp asimdhp asimdrdm lrcpc dcpop asimddp ssbs"),
}
FIRST_FEATURES = "fp asimd evtstrm aes pmull sha1 sha2 crc32 cpuid"


def check_core(core: str) -> None:
    """Raise UnknownNameError for a core that is not emulated here."""
    if core not in CORES:
        raise UnknownNameError("core", core, CORES)


def cpuinfo(core: Core) -> str:
    """Return /proc/cpuinfo in the form of an aarch64 kernel on one such core (ARM Ltd. is 0x41)."""
    features = f"{FIRST_FEATURES} {core.features}".strip()
    lines = {
        "processor": "0",
        "BogoMIPS": "50.00",
        "Features": features,
        "CPU implementer": "0x41",
        "CPU architecture": "8",
        "CPU variant": "0x0",
        "CPU part": f"0x{core.part:03x}",
        "CPU revision": "0",
    }
    return "".join(f"{key}\t: {value}\n" for key, value in lines.items()) + "\n"


def default_folder() -> Path:
    """Return where the folder is unless told otherwise."""
    return plugin.cache_folder() / "arm"


@dataclass(frozen=True)
class Root:
    """A folder of aarch64 packages that is whole."""

    folder: Path
    python: str
    """The version of its Python, such as `3.11`."""

    @property
    def interpreter(self) -> Path:
        """The guest's Python."""
        return self.folder / BASE / "usr" / "bin" / f"python{self.python}"

    def command(self, qemu: Path, core: str, *options: str) -> list[str]:
        """Return the start of a command line that runs the guest's Python on a core."""
        prefix = self.folder / CORES_FOLDER / core
        emulator = [str(qemu), "-cpu", core, "-L", str(prefix), *options]
        return [*emulator, str(self.interpreter), "-S", "-s"]

    def environment(self, packages: Path) -> Mapping[str, str]:
        """Return the guest's environment, the same on every machine."""
        return {
            "PATH": "/usr/bin",
            "LANG": "C.UTF-8",
            "PYTHONPATH": str(packages),
            "PYTHONHASHSEED": "0",
            "PYTHONDONTWRITEBYTECODE": "1",
            "OPENBLAS_NUM_THREADS": "1",
        }

    def packages(self, runtime: str) -> Path:
        """Return the folder of a runtime's packages; raises BenchError where it has none."""
        found = self.folder / PACKAGES / runtime
        if not found.is_dir():
            raise BenchError(
                f"'{self.folder}' has no {RUNTIMES[runtime].package}, of which there is no wheel "
                f"for its Python {self.python}; use another --runtime"
            )
        return found


def find(folder: Path | None = None) -> Root:
    """Return the root in a folder, the user's own if unset; raises BenchError."""
    place = (folder or default_folder()).absolute()
    found = read(place)
    if found is None:
        told = "" if folder is None else f" --root {folder}"
        hint = SET_UP if folder is None else f"`fedsparse bench --setup-arm{told}`"
        raise BenchError(f"no aarch64 packages in '{place}'; {hint} fetches them")
    return found


def read(folder: Path) -> Root | None:
    """Return the root in a folder, None where there is none of the present layout."""
    content = record(folder)
    if content.get("layout") != LAYOUT or not isinstance(content.get("python"), str):
        return None
    found = Root(folder, content["python"])
    return found if found.interpreter.exists() else None


def record(folder: Path) -> dict[str, Any]:
    """Return what a root says of itself: layout, Python's version, packages; empty without one."""
    try:
        content = json.loads((folder / RECORD).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return content if isinstance(content, dict) else {}
