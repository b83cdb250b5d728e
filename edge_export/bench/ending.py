"""Programs that are run to their end: within a time, and how they ended, in words."""

import signal
import subprocess
from collections.abc import Mapping, Sequence

from fedsparse.errors import BenchError, one_line

_LAST_WORDS = 200


def ending(code: int, errors: str) -> str:
    """Return how a process ended, from its exit status and its standard error.

    `code` is negative for a signal, as subprocess says it, or 128 and more as a shell does.
    """
    number = -code if code < 0 else code - 128
    try:
        name = signal.Signals(number).name if number > 0 else ""
    except ValueError:
        name = ""
    if name:
        return f"it crashed with {name}"
    words = f": {one_line(errors)[:_LAST_WORDS]}" if errors.strip() else ""
    return f"it ended with exit status {code}{words}"


def run(
    command: Sequence[str], seconds: float, what: str, environment: Mapping[str, str] | None = None
) -> "subprocess.CompletedProcess[str]":
    """Run a program to its end without an input; return how it ended and what it printed.

    Raises BenchError, which begins with `what`, for one that takes longer than so many seconds.
    """
    try:
        return subprocess.run(
            command,
            env=environment,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            errors="replace",
            timeout=seconds,
        )
    except subprocess.TimeoutExpired:
        raise BenchError(
            f"{what} does not end within {seconds:.0f} s; check the network and the machine's "
            "load, then try again"
        ) from None
