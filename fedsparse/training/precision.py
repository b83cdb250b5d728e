"""What a machine makes of `client.precision`; read from the processor's own list of abilities."""

from pathlib import Path

BFLOAT16 = {"avx512_bf16", "amx_bf16", "bf16", "svebf16"}
"""How Linux names bfloat16 arithmetic, on x86 and on ARM."""


def caveat(precision: str, cpuinfo: Path = Path("/proc/cpuinfo")) -> str:
    """Return a line on a precision that is slow on this processor; '' if none is known to be."""
    if precision != "bf16":
        return ""
    try:
        lines = cpuinfo.read_text(encoding="utf-8").splitlines()
    except OSError:
        return ""
    listed = [line.partition(":")[2].split() for line in lines if line.startswith(LISTS)]
    if not listed or BFLOAT16.intersection(listed[0]):
        return ""
    return "client.precision = bf16: this processor has no bfloat16 arithmetic, so f32 is faster"


LISTS = ("flags", "Features")
