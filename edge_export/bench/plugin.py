"""The emulator, and the plugin that makes it count instructions, compiled here when first needed.

The plugin is one file of C with declarations of its own (count_instructions.c); what is compiled
lies in the user's cache folder, named by its source and the emulator's version.
"""

import hashlib
import os
import re
import shutil
import tempfile
from contextlib import suppress
from functools import cache
from pathlib import Path

from edge_export.bench.ending import run
from fedsparse.errors import BenchError, one_line

EMULATOR = "qemu-aarch64"
SOURCE = Path(__file__).with_name("count_instructions.c")
SUMS_A_PROCESSOR = 9
"""First version of qemu whose plugins have version 2 of the interface: a sum a processor."""
PATIENCE_SECONDS = 120.0
FLAGS = ("-O2", "-Wall", "-Wextra", "-shared", "-fPIC")


def cache_folder() -> Path:
    """Return fedsparse's folder in the user's cache."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "fedsparse"


def emulator() -> Path:
    """Return the aarch64 emulator; raises BenchError where there is none."""
    found = shutil.which(EMULATOR)
    if found is None:
        raise BenchError(f"no {EMULATOR} on this machine; `apt-get install qemu-user` has it")
    return Path(found)


@cache
def interface_of(qemu: Path) -> int:
    """Return the version of the plugins' interface that an emulator takes; raises BenchError."""
    try:
        said = run([str(qemu), "--version"], PATIENCE_SECONDS, f"'{qemu} --version'").stdout
    except OSError as error:
        raise BenchError(f"'{qemu}' cannot be started: {error.strerror}") from None
    found = re.search(r"version (\d+)", said)
    if found is None:
        raise BenchError(f"'{qemu}' does not say its version; put qemu's own first on the PATH")
    return 2 if int(found[1]) >= SUMS_A_PROCESSOR else 1


def compiled(qemu: Path) -> Path:
    """Return the plugin for an emulator, compiled where it is not yet; raises BenchError."""
    interface = interface_of(qemu)
    digest = hashlib.sha256(SOURCE.read_bytes()).hexdigest()[:16]
    made = cache_folder() / f"count-{digest}-{interface}.so"
    if made.exists():
        return made
    compiler = shutil.which("gcc") or shutil.which("cc")
    if compiler is None:
        raise BenchError("no C compiler for the counting plugin; `apt-get install gcc` has one")
    made.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=".count-", dir=made.parent) as folder:
        part = Path(folder) / made.name
        command = [compiler, *FLAGS, f"-DPLUGIN_API={interface}", "-o", str(part), str(SOURCE)]
        done = run(command, PATIENCE_SECONDS, f"'{compiler}'")
        if done.returncode != 0:
            raise BenchError(f"the counting plugin does not compile: {one_line(done.stderr)}")
        os.replace(part, made)
    for other in made.parent.glob("count-*.so"):
        if not other.name.startswith(f"count-{digest}-"):
            with suppress(OSError):
                other.unlink()
    return made
