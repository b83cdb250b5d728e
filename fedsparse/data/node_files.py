"""The files that lie at a node, read by what they are: images, tables, IDX, NPZ, saved datasets.

A path is told by its folder's content or its name's end. What is read is checked before it is
believed, and nothing is unpickled. Samples come as a model takes them, labels as numbers that mean
the same at every node.
"""

import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fedsparse.data import hub, sources, tables
from fedsparse.data.labels import numbered
from fedsparse.data.schema import shape_text
from fedsparse.errors import DataError, unreadable
from fedsparse.sections import DataConfig

Part = tuple[NDArray[Any], NDArray[Any]]
"""Samples and labels."""


@dataclass(frozen=True)
class Wanted:
    """What a run takes: the shape of a sample, how many classes, their names, and the label's
    column in a table."""

    shape: tuple[int, ...]
    classes: int
    names: tuple[str, ...] = ()
    label: str | None = None


def read(
    path: Path, wanted: Wanted, key: str = "data-path", at: str = "this node"
) -> tuple[Part, Part | None]:
    """Return the samples at `path` and, where they bring some, those meant for testing.

    `key` is what says the path, and `at` where. Raises DataError in one line that names the file
    and the remedy, and MissingExtraError.
    """
    try:
        if not path.exists():
            raise DataError(f"{key} = '{path}' does not exist at {at}; correct it there")
        return _reader(path)(path, wanted)
    except DataError as error:  # it may quote what a file holds
        text = " ".join(str(error).split())
        raise DataError("".join(c if c.isprintable() else "?" for c in text)) from None
    except (OSError, MemoryError) as error:
        if isinstance(error, MemoryError):
            raise DataError(f"'{path}' does not fit into memory; give fewer samples") from None
        raise DataError(f"'{path}' cannot be read: {unreadable(error)}") from None


Reader = Callable[[Path, Wanted], tuple[Part, Part | None]]


def _reader(path: Path) -> Reader:
    """Return what reads a path; raises DataError for what is none of the kinds."""
    if path.is_dir():
        return _folder_reader(path)
    found = BY_NAME.get(path.suffix.lower())
    if found is not None:
        return found
    if "idx" in path.name or "ubyte" in path.name:
        return _idx_images
    if path.suffix.lower() == ".gz":
        raise DataError(f"'{path}' is packed, and of packed files IDX alone is read; unpack it")
    end = path.suffix
    wrong = f"ends in '{end}', which is no kind that is read" if end else "ends in no known kind"
    raise DataError(
        f"'{path}' {wrong}; save it as one of {', '.join(BY_NAME)}, or name it with 'idx' where it "
        "is IDX"
    )


def _folder_reader(path: Path) -> Reader:
    if hub.is_saved(path):
        return _saved
    if sources.idx_file(path, "train", "images") is not None:
        return _idx_folder
    if (path / "train").is_dir() or sources.class_folders(path):
        return _images
    raise DataError(
        f"'{path}' holds no data of a known kind; give a folder of class folders, of IDX files, or "
        f"of a saved Hugging Face dataset, or a file ({', '.join(BY_NAME)}, or IDX)"
    )


def _images(path: Path, wanted: Wanted) -> tuple[Part, Part | None]:
    """A folder of class folders; train/ and test/ inside, or one set."""
    if len(wanted.shape) != 3 or wanted.shape[0] not in (1, 3):
        raise DataError(
            f"'{path}' holds images, the run's model takes {shape_text(wanted.shape)}; set "
            "data.shape to 1 or 3 channels, height and width"
        )
    parted = (path / "train").is_dir()
    train = _class_images(path / "train" if parted else path, wanted)
    if not (parted and (path / "test").is_dir()):
        return train, None
    return train, _class_images(path / "test", wanted)


def _class_images(folder: Path, wanted: Wanted) -> Part:
    folders = sources.class_folders(folder)
    pixels, places = sources.read_images(folder, folders, wanted.shape)
    labels = np.array(folders, object)[places]
    return _part(pixels, labels, wanted, f"'{folder}'")


def _table(
    read_table: Callable[[Path, str | None], tables.Table],
) -> Reader:
    """Return what reads a table with a function."""

    def reader(path: Path, wanted: Wanted) -> tuple[Part, Part | None]:
        return _part(*read_table(path, wanted.label), wanted, f"'{path}'"), None

    return reader


def _npz(path: Path, wanted: Wanted) -> tuple[Part, Part | None]:
    """Arrays x and y, or x_train and y_train; x_test and y_test with either."""
    arrays = sources.npz_arrays(path)
    x, y = ("x_train", "y_train") if "x_train" in arrays else ("x", wanted.label or "y")
    for name in (x, y):
        if name not in arrays:
            held = ", ".join(sorted(arrays)[:10]) or "none"
            raise DataError(f"'{path}' has no array '{name}', it has {held}; save x and y")
    train = _part(arrays[x], arrays[y], wanted, f"'{path}'")
    if "x_test" not in arrays or "y_test" not in arrays:
        return train, None
    return train, _part(arrays["x_test"], arrays["y_test"], wanted, f"'{path}' test")


def _idx_images(path: Path, wanted: Wanted) -> tuple[Part, Part | None]:
    """One IDX file of samples, its labels beside it under a name with `labels` and `idx1`."""
    beside = path.with_name(re.sub(r"idx\d+", "idx1", path.name.replace("images", "labels")))
    if beside == path or not beside.is_file():
        raise DataError(
            f"'{path}' has no labels beside it; put them there under a name with 'labels' and "
            "'idx1' for 'images' and 'idx3', as MNIST's have"
        )
    return _part(sources.read_idx(path), sources.read_idx(beside), wanted, f"'{path}'"), None


def _idx_folder(path: Path, wanted: Wanted) -> tuple[Part, Part | None]:
    found: list[Part] = []
    for name in ("train", "t10k"):
        images, labels = (sources.idx_file(path, name, kind) for kind in ("images", "labels"))
        if images is None and found:
            break
        if images is None or labels is None:
            raise DataError(f"'{path}' lacks the {name} images or labels; put both there")
        x, y = sources.read_idx(images), sources.read_idx(labels)
        found.append(_part(x, y, wanted, f"'{images}'"))
    return found[0], found[1] if len(found) > 1 else None


def _saved(path: Path, wanted: Wanted) -> tuple[Part, Part | None]:
    """What the Hugging Face library's `save_to_disk` made; classes by their names."""
    channels = wanted.shape[0] if len(wanted.shape) == 3 and wanted.shape[0] in (1, 3) else 3
    size = max(4, wanted.shape[-1])
    asked = DataConfig(
        name="huggingface", path=str(path), image_size=size, channels=3 if channels == 3 else 1
    )
    found: list[Part] = []
    for x, y, names in hub.parts(asked, wanted.label):
        labels = y
        if names:
            if len(y) and not (y.min() >= 0 and y.max() < len(names)):
                raise DataError(f"'{path}' has samples without a label; leave them out")
            labels = np.array(names, object)[y]
        found.append(_part(x, labels, wanted, f"'{path}'"))
    return found[0], found[1] if len(found) > 1 else None


def _part(x: NDArray[Any], y: NDArray[Any], wanted: Wanted, where: str) -> Part:
    """Return samples and labels as a run takes them, as many of one as of the other."""
    if np.ndim(y) != 1:
        raise DataError(f"{where}: labels have shape {np.shape(y)}; use one a sample")
    if not len(y):
        raise DataError(f"{where} holds no samples; give some, or leave the node out")
    samples, labels = sources.scaled(x, where), numbered(y, wanted.classes, wanted.names, where)
    if len(samples) != len(labels):
        raise DataError(f"{where}: {len(samples)} samples, {len(labels)} labels; give one each")
    return samples, labels


BY_NAME: dict[str, Reader] = {
    ".csv": _table(tables.read_csv),
    ".tsv": _table(tables.read_csv),
    ".parquet": _table(tables.read_parquet),
    ".npz": _npz,
}
"""Readers of files by the end of their name; IDX files are told by `idx` within it."""
