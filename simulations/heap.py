"""What the C library does with memory that is let go: nothing, so that it need not be asked for.

A round takes and lets go of a payload a client. Given back to the system each time, its pages
are faulted in anew, which takes several times as long as reading it.
"""

import ctypes

KEPT_BYTES, LARGE_BYTES = 2**28, 2**25
"""Free memory that stays with the process, and the size from which the system is asked anyway."""

_TRIM_THRESHOLD, _MMAP_THRESHOLD = -1, -3
"""Of glibc's malloc.h."""


def keep_freed() -> None:
    """Let this process keep what it frees; does nothing where the C library is not glibc."""
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (AttributeError, OSError, TypeError):
        return
    mallopt(_TRIM_THRESHOLD, KEPT_BYTES)
    mallopt(_MMAP_THRESHOLD, LARGE_BYTES)
