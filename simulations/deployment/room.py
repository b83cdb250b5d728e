"""Room on the disk for a local deployment's own folder: keys, logs, and the SuperLink's database.

What fails there for want of room says so in many ways, or not at all: a log is cut short, too.
"""

import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from fedsparse.errors import FedSparseError, RunFolderError

LEAST_BYTES = 16 << 20
"""What must be free at the start; the preset demo on four nodes takes 5 MB."""
FULL_BYTES = 1 << 20
"""With less than this left, whatever fails is taken to fail for want of room."""


@contextmanager
def roomy(folder: Path) -> Iterator[None]:
    """Work in `folder`; raises RunFolderError where its disk is full at the start or fills up."""
    if free(folder) < LEAST_BYTES:
        raise RunFolderError(_full(folder))
    try:
        yield
    except (FedSparseError, OSError) as error:
        if free(folder) < FULL_BYTES:
            raise RunFolderError(_full(folder)) from error
        raise


def free(folder: Path) -> int:
    """Return the bytes that are free on the disk of a folder."""
    return shutil.disk_usage(folder).free


def _full(folder: Path) -> str:
    return (
        f"the disk of '{folder.parent}' is full: a deployment keeps keys, logs and messages there "
        f"while it runs; free {LEAST_BYTES >> 20} MB and more, or set TMPDIR to a folder on "
        "another disk"
    )
