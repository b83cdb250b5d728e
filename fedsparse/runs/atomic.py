"""Files that are whole or absent, whenever the process dies.

A file is written beside its place under a temporary name, flushed to the disk and
renamed; the rest of `fedsparse.runs` writes through here. Errors of the operating
system become RunFolderError, one line with the remedy.
"""

import errno
import os
import shutil
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path

from fedsparse.errors import RunFolderError

_FULL = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}
_READ_ONLY = {errno.EACCES, errno.EPERM, errno.EROFS}


@contextmanager
def writing(folder: Path) -> Iterator[None]:
    """Turn an OSError into a RunFolderError that names `folder` and the remedy."""
    try:
        yield
    except OSError as error:
        if error.errno in _FULL:
            message = (
                f"the disk of '{folder}' is full; what was finished is kept: free some space, "
                "then use `fedsparse resume`, or choose another --out"
            )
        elif error.errno in _READ_ONLY:
            message = f"'{folder}' cannot be written; check its permissions or choose another --out"
        else:
            message = f"'{folder}' cannot be written: {error.strerror or error}"
        raise RunFolderError(message) from error


def write_file(path: Path, content: bytes, *, mode: int | None = None) -> None:
    """Write a file so that `path` holds the old content or the new, never a part.

    The content is on the disk when this returns, with `mode` for its permissions unless the process
    is to decide. Raises OSError.
    """
    write_files({path: content}, mode=mode)


def write_files(contents: Mapping[Path, bytes], *, mode: int | None = None) -> None:
    """Write files of one folder, none of them before there is room for all.

    Each holds its old content or the new, never a part. Raises OSError.
    """
    staged = {path: path.with_name(f".{path.name}.tmp-{os.getpid()}") for path in contents}
    try:
        for path, temporary in staged.items():
            with temporary.open("wb") as file:
                if mode is not None:
                    os.fchmod(file.fileno(), mode)
                file.write(contents[path])
                file.flush()
                os.fsync(file.fileno())
        for path, temporary in staged.items():
            os.replace(temporary, path)
    except BaseException:
        for temporary in staged.values():
            with suppress(OSError):
                temporary.unlink()
        raise
    for folder in {path.parent for path in contents}:
        sync_folder(folder)


@contextmanager
def new_folder(folder: Path) -> Iterator[Path]:
    """Yield a folder to fill, which gets its name when it is whole and vanishes on an error.

    Its owner alone may enter it. Raises RunFolderError where something has that name.
    """
    if os.path.lexists(folder):
        raise RunFolderError(f"'{folder}' is there already; choose another folder or remove it")
    with writing(folder):
        folder.parent.mkdir(parents=True, exist_ok=True)
        made = Path(tempfile.mkdtemp(prefix=f".{folder.name}.tmp-", dir=folder.parent))
    try:
        with writing(folder):
            yield made
            os.rename(made, folder)
            sync_folder(folder.parent)
    except BaseException:
        shutil.rmtree(made, ignore_errors=True)
        raise


def sync_folder(folder: Path) -> None:
    """Put a folder's list of names on the disk, so that a rename survives a power cut."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def remove_leftovers(folder: Path) -> None:
    """Remove what killed writers left in `folder`; only for the one that holds its lock."""
    for path in folder.glob(".*.tmp-*"):
        if path.is_dir() and not path.is_symlink():
            shutil.rmtree(path)
        else:
            path.unlink(missing_ok=True)
