"""How a worker's process ended, in words: a runtime may crash on a file, and says little then."""

import signal

from fedsparse.errors import one_line

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
