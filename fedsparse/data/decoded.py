"""Decoded samples of large files and folders, kept as `.npy` files that every process maps.

Unpacking takes a second or more, and an unpacked set hundreds of megabytes, in each worker anew.
Mapped, the pages of one file in the cache are shared by all processes that read them.
"""

import hashlib
import logging
import os
import tempfile
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

FORMAT = 1
"""Raised when files decode to other values than before."""

LEAST_BYTES = 2**24
"""Decoded bytes from which a file is kept; less is decoded faster than it is looked for."""

LEFT_SECONDS = 3600.0
"""Age from which a file with a temporary name is one that a killed process has left."""

_log = logging.getLogger(__name__)


def mapped(
    path: Path,
    decode: Callable[[], NDArray[Any]],
    *,
    purpose: str = "",
    way: str = "",
    kept: Path | None = None,
    least: int | None = None,
) -> NDArray[Any]:
    """Return what `decode` makes of the file or folder at `path`, mapped from the cache if large.

    What one source is decoded to for several purposes is kept apart; of the ways to decode it for
    one purpose, the last alone. It lies in the folder `kept`, by default in the user's cache, from
    `least` decoded bytes on. What is written into the array stays in this process. A cache that
    cannot be read or written is none: the source is then decoded. Raises what `decode` raises.
    """
    least = LEAST_BYTES if least is None else least
    try:
        place = _place(path, purpose, way, kept)
    except (OSError, RuntimeError) as error:  # the second where nobody has a home
        _log.debug("'%s': not kept decoded: %s", path, error)
        return decode()
    found = _read(place)
    if found is not None:
        return found
    array = decode()
    if array.nbytes < least:
        return array
    try:
        if _place(path, purpose, way, kept) != place:
            return array  # the source was replaced meanwhile
        _write(place, array)
    except OSError as error:
        _log.debug("'%s': not kept decoded: %s", path, error)
        return array
    found = _read(place)
    return array if found is None else found


def folder() -> Path:
    """Return where decoded files are kept: `fedsparse/data` in the user's cache folder."""
    root = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(root) / "fedsparse" / "data"


def unwritable(kept: Path | None = None) -> str | None:
    """Return why nothing can be kept in a folder, by default the user's cache; None where it can.

    A small file is written there to see.
    """
    try:
        place = kept or folder()
        place.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=place) as file:
            file.write(bytes(4096))
            file.flush()
    except (FileExistsError, NotADirectoryError):
        return "it is no folder"
    except (OSError, RuntimeError) as error:
        return getattr(error, "strerror", None) or str(error)
    return None


def state_of(path: Path) -> str:
    """Return what tells a file, or the files of a folder, from what it was before a change."""
    if not path.is_dir():
        return _state(path)
    files = sorted(file for file in path.rglob("*") if file.is_file())
    states = "\n".join(f"{file.relative_to(path)} {_state(file)}" for file in files)
    return hashlib.sha256(states.encode("utf-8", "surrogateescape")).hexdigest()


def _state(path: Path) -> str:
    found = path.stat()
    # A copy that keeps its time, of a file of the same size, still has a change time of its own.
    return f"{FORMAT} {found.st_size} {found.st_mtime_ns} {found.st_ctime_ns} {found.st_ino}"


def _place(path: Path, purpose: str, way: str, kept: Path | None) -> Path:
    """Return the file for a source; its name begins with the source's place, then its state."""
    whole = f"{path.resolve()}\0{purpose}" if purpose else str(path.resolve())
    place, version = (
        hashlib.sha256(text.encode("utf-8", "surrogateescape")).hexdigest()[:16]
        for text in (whole, f"{state_of(path)}\0{way}" if way else state_of(path))
    )
    return (kept or folder()) / f"{place}-{version}.npy"


def _read(place: Path) -> NDArray[Any] | None:
    """Map a kept file; None when there is none, or it is damaged."""
    try:
        found: NDArray[Any] = np.load(place, mmap_mode="c", allow_pickle=False)
    except FileNotFoundError:
        return None
    except (OSError, ValueError, EOFError) as error:
        _log.debug("'%s' is damaged and made again: %s", place, error)
        return None
    return found


def _write(place: Path, array: NDArray[Any]) -> None:
    """Keep an array, whole or not at all, and let go of the source's earlier states."""
    place.parent.mkdir(parents=True, exist_ok=True)
    handle, name = tempfile.mkstemp(suffix=".tmp", dir=place.parent)
    try:
        with os.fdopen(handle, "wb") as file:
            np.save(file, array, allow_pickle=False)
            file.flush()
            os.fsync(file.fileno())
        os.replace(name, place)
    except BaseException:
        with suppress(OSError):
            os.unlink(name)
        raise
    old = time.time() - LEFT_SECONDS
    for other in place.parent.iterdir():
        with suppress(OSError):
            earlier = other.name.startswith(place.name.partition("-")[0]) and other != place
            left = other.suffix == ".tmp" and other.stat().st_mtime < old
            if earlier or left:
                other.unlink()
