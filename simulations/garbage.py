"""When Python looks for garbage: not while many objects are made that are all needed.

Its collector starts after so many new objects, and goes through those that there are. Thousands
of messages of a round make it do so again and again, and find nothing.
"""

import gc
from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def kept() -> Iterator[None]:
    """Do not look for garbage; afterwards as before. Not for client code, which may leave much."""
    before = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if before:
            gc.enable()


def leave_out_what_is_there() -> None:
    """Never go through the objects that there are again: modules, mostly, which stay.

    For a process of our own. Results that wait to be reported live long, which has the collector
    look at everything that lives long.
    """
    gc.freeze()
