"""What a benchmark ran on, to stand beside its figures."""

import os
import platform
from pathlib import Path
from typing import Any

TELLING = ("avx2", "avx512f", "avx512_vnni", "avx512_bf16", "amx_tile", "asimd", "sve")
"""Instruction sets that change what the kernels of either side can do."""


def describe() -> dict[str, Any]:
    """Return processor, instruction sets, cores and memory of this machine (Linux)."""
    fields: dict[str, str] = {}
    for line in Path("/proc/cpuinfo").read_text().splitlines():
        name, _, value = line.partition(":")
        fields.setdefault(name.strip(), value.strip())
    flags = (fields.get("flags") or fields.get("Features") or "").split()
    known = [f"{part} {fields[name]}" for name, part in PARTS.items() if name in fields]
    return {
        "processor": f"{fields.get('model name', platform.machine())} ({', '.join(known)})",
        "instructions": [name for name in TELLING if name in flags],
        "cores": os.cpu_count(),
        "memory_gb": round(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 1e9, 1),
        "system": platform.platform(),
    }


PARTS = {"cpu family": "family", "model": "model", "stepping": "stepping"}


def one_line(machine: dict[str, Any]) -> str:
    """Return a machine as a sentence."""
    return (
        f"{machine['processor']}, {machine['cores']} cores, {machine['memory_gb']} GB; "
        f"{', '.join(machine['instructions'])}"
    )
