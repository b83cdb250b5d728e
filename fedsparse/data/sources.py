"""Sources on this machine: digits (embedded), Fashion-MNIST, IDX and NPZ files, folders.

Each takes (data configuration, seed) and returns a training and a test set, ready for a
model. Files are checked before they are believed; nothing is unpickled.
"""

import gzip
import io
import math
import os
import zipfile
import zlib
from collections.abc import Sequence
from importlib.util import find_spec
from pathlib import Path
from tokenize import TokenError
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fedsparse import seeds
from fedsparse.config import DataConfig
from fedsparse.data import decoded
from fedsparse.data.dataset import Dataset, Source
from fedsparse.data.tables import GZIP
from fedsparse.errors import DataError, MissingExtraError, unreadable

FASHION_FOLDERS = ("/usr/share/datasets/fashion-mnist", "/usr/share/dataset-fashion-mnist")
MOST_BYTES = 2**33
"""Unpacked bytes of a file; more is taken for a packing that is meant to fill the memory."""

PIECE_BYTES = 2**20

IMAGES = (".png", ".jpg", ".jpeg", ".bmp", ".gif", ".webp")
"""Ends of the names of files that are read as images."""

IDX_TYPES = {8: ">u1", 9: ">i1", 11: ">i2", 12: ">i4", 13: ">f4", 14: ">f8"}


def digits(data: DataConfig, seed: int) -> Source:
    """scikit-learn's digits: 1,797 images of 8x8 pixels, 10 classes; a fifth is the test set.

    Read from the file that scikit-learn brings; importing it would take longer than a round.
    """
    table = np.loadtxt(_digits_file(), np.float32, delimiter=",")
    x = (table[:, :-1].reshape(-1, 1, 8, 8) - 8.0) / 8.0
    return hold_out(Dataset(x, table[:, -1].astype(np.int64), 10), 0.2, 0)


def _digits_file() -> Path:
    found = find_spec("sklearn")
    for folder in (found.submodule_search_locations or []) if found else []:
        path = Path(folder) / "datasets" / "data" / "digits.csv.gz"
        if path.is_file():
            return path
    raise DataError("scikit-learn's file of digits is missing; install scikit-learn again")


def fashion_mnist(data: DataConfig, seed: int) -> Source:
    """Fashion-MNIST: 70,000 grey images of 28x28 pixels, 10 classes, from its IDX files.

    Looked for in data.path, then $FEDSPARSE_DATA/fashion-mnist, then where Debian's
    package dataset-fashion-mnist puts it.
    """
    places = [data.path] if data.path else _fashion_places()
    for place in places:
        if idx_file(Path(place), "train", "images") is not None:
            return _read_idx_folder(Path(place))
    raise DataError(
        f"Fashion-MNIST's IDX files are not in {' or '.join(map(str, places))}; install Debian's "
        "package dataset-fashion-mnist, or set data.path to their folder"
    )


def fashion_folder() -> Path | None:
    """Return where Fashion-MNIST lies on this machine, if it does."""
    return next((Path(p) for p in _fashion_places() if idx_file(Path(p), "train", "images")), None)


def _fashion_places() -> list[str]:
    own = os.environ.get("FEDSPARSE_DATA")
    return [*([str(Path(own) / "fashion-mnist")] if own else []), *FASHION_FOLDERS]


def idx(data: DataConfig, seed: int) -> Source:
    """IDX files (as MNIST's) in the folder data.path: train and t10k or test, .gz or not."""
    folder = _path(data, "idx", "a folder of IDX files")
    if idx_file(folder, "train", "images") is None:
        raise DataError(f"'{folder}' has no train-images IDX file; set data.path to their folder")
    return _read_idx_folder(folder)


def npz(data: DataConfig, seed: int) -> Source:
    """A .npz file: x_train, y_train, x_test, y_test; or x and y, a fifth of which is the test.

    With data.column set, the array of that name says which client a sample is from.
    """
    path = _path(data, "npz", "a .npz file")
    arrays = npz_arrays(path)
    if "x_train" in arrays:
        names: Sequence[str] = ("x_train", "y_train", "x_test", "y_test")
    else:
        names = ("x", "y")
    missing = [name for name in names if name not in arrays]
    if missing:
        raise DataError(f"'{path}' has no array '{missing[0]}'; it needs {', '.join(names)}")
    sets = [
        _dataset(arrays[x], arrays[y], f"'{path}': {x}")
        for x, y in zip(names[::2], names[1::2], strict=True)
    ]
    column = _column(arrays, data.column, len(sets[0]), f"'{path}'")
    if len(sets) == 2:
        train, test = _together(sets[0], sets[1], f"'{path}'")
        return Source(train, test, column)
    return hold_out(sets[0], 0.2, seed, column)


def npz_arrays(path: Path) -> dict[str, NDArray[Any]]:
    """Return the arrays of a .npz file; raises DataError when it holds others, or is damaged.

    No array is made before the file has been seen to hold as many bytes as it says.
    """
    try:
        with zipfile.ZipFile(path) as archive:
            _check_sizes(path, archive)
        with np.load(path, allow_pickle=False) as file:
            return {name: file[name] for name in file.files}
    except NPZ_ERRORS as error:
        reason = str(error) or type(error).__name__
        raise DataError(
            f"'{path}' is no readable .npz file of plain arrays: {reason}; copy it again, or save "
            "x and y anew by numpy.savez"
        ) from None


NPZ_ERRORS = (
    *(OSError, ValueError, EOFError, RuntimeError, MemoryError, SyntaxError, TypeError),
    *(zipfile.BadZipFile, zlib.error, TokenError),
)
"""What comes out of zip files that are none, and of numpy's parser of headers."""


def _check_sizes(path: Path, archive: zipfile.ZipFile) -> None:
    """Refuse an array that says another size than its bytes have, a huge one, and objects.

    Raises DataError, and ValueError for the first.
    """
    if sum(member.file_size for member in archive.infolist()) > MOST_BYTES:
        raise DataError(f"'{path}' unpacks to more than {MOST_BYTES} bytes; split it")
    for member in archive.infolist():
        with archive.open(member) as file:
            version = np.lib.format.read_magic(file)
            read = np.lib.format.read_array_header_1_0
            shape, _, kind = (read if version == (1, 0) else np.lib.format.read_array_header_2_0)(
                file
            )
            if kind.hasobject:
                raise DataError(
                    f"'{path}': '{member.filename}' holds Python objects, which are not read; save "
                    "numbers (dtype float32, int64), or texts as labels (dtype str)"
                )
            said = math.prod(shape) * kind.itemsize + file.tell()
        if said != member.file_size:
            raise ValueError(
                f"'{member.filename}' holds {member.file_size} bytes, its header says {said}"
            )


def image_folder(data: DataConfig, seed: int) -> Source:
    """A folder of class folders of images (extra `data`); train/ and test/ inside, or one set.

    Images are resized to data.image_size and read with data.channels channels.
    """
    folder = _path(data, "image-folder", "a folder of class folders")
    if not folder.is_dir():
        raise DataError(f"data.path = '{folder}' is no folder; give a folder of class folders")
    shape = (data.channels, data.image_size, data.image_size)
    if (folder / "train").is_dir() and (folder / "test").is_dir():
        names = _class_names(folder / "train")
        train = _of_images(folder / "train", names, shape)
        return Source(train, _of_images(folder / "test", names, shape))
    return hold_out(_of_images(folder, _class_names(folder), shape), 0.2, seed)


def _class_names(folder: Path) -> list[str]:
    names = class_folders(folder)
    if len(names) < 2:
        raise DataError(f"'{folder}' has {len(names)} class folders; it needs two or more")
    return names


def class_folders(folder: Path) -> list[str]:
    """Return the names of the class folders in a folder, in alphabetical order."""
    return sorted(p.name for p in folder.iterdir() if p.is_dir() and not p.name.startswith("."))


def _of_images(folder: Path, names: list[str], shape: tuple[int, ...]) -> Dataset:
    pixels, labels = read_images(folder, names, shape)
    return Dataset(scaled(pixels, str(folder)), labels, len(names))


def read_images(
    folder: Path, names: Sequence[str], shape: tuple[int, ...]
) -> tuple[NDArray[np.uint8], NDArray[np.int64]]:
    """Return the pixels (n, channels, height, width) of images in class folders, and their classes.

    `shape` is that of one image, with 1 or 3 channels; a class is its place in `names`. Raises
    DataError for an image that cannot be read, or none, and MissingExtraError without Pillow.
    """
    try:
        from PIL import Image
    except ImportError:
        raise MissingExtraError("reading a folder of images", "data") from None
    channels, height, width = shape
    mode = "L" if channels == 1 else "RGB"
    images, labels = [], []
    for label, name in enumerate(names):
        for path in sorted((folder / name).iterdir() if (folder / name).is_dir() else []):
            if path.suffix.lower() not in IMAGES:
                continue
            try:
                with Image.open(path) as image:
                    resized = image.convert(mode).resize((width, height))
                    pixels = np.asarray(resized, np.uint8)
            except (OSError, ValueError, SyntaxError, Image.DecompressionBombError) as error:
                raise DataError(f"'{path}' is no readable image: {error}; remove it") from None
            images.append(pixels.reshape(height, width, channels).transpose(2, 0, 1))
            labels.append(label)
    if not images:
        raise DataError(
            f"'{folder}' holds no images in its class folders; put some there as files that end in "
            f"{', '.join(IMAGES)}"
        )
    return np.stack(images), np.array(labels, np.int64)


def _path(data: DataConfig, name: str, what: str) -> Path:
    if data.path is None:
        raise DataError(f"data.name = '{name}' needs data.path, {what}")
    path = Path(data.path)
    if not path.exists():
        raise DataError(f"data.path = '{path}' does not exist; give {what}")
    return path


def idx_file(folder: Path, part: str, kind: str) -> Path | None:
    """Return `train-images-idx3-ubyte[.gz]` and the like, whatever the punctuation."""
    starts = (part,) if part == "train" else ("t10k", "test")
    for path in sorted(folder.iterdir()) if folder.is_dir() else []:
        if path.name.startswith(starts) and kind in path.name and "idx" in path.name:
            return path
    return None


def _read_idx_folder(folder: Path) -> Source:
    sets = []
    for part in ("train", "t10k"):
        paths = [idx_file(folder, part, kind) for kind in ("images", "labels")]
        if paths[0] is None or paths[1] is None:
            raise DataError(f"'{folder}' lacks the {part} images or labels; it needs both")
        sets.append(_idx_set(paths[0], paths[1]))
    train, test = _together(sets[0], sets[1], f"'{folder}'")
    return Source(train, test)


def _idx_set(images: Path, labels: Path) -> Dataset:
    where = f"'{images}'"
    x = decoded.mapped(images, lambda: scaled(read_idx(images), where))
    return _labelled(x, read_idx(labels), where)


def read_idx(path: Path) -> NDArray[Any]:
    """Read one IDX file, gzipped or not; raises DataError when it is damaged or no IDX."""
    try:
        raw = path.read_bytes()
        if raw[:2] == GZIP:
            raw = _unpacked(raw)
        if len(raw) > MOST_BYTES:
            raise DataError(f"'{path}' unpacks to more than {MOST_BYTES} bytes; split it")
    except (gzip.BadGzipFile, EOFError, zlib.error) as error:
        raise DataError(f"'{path}' is cut off or damaged: {error}; copy it again") from None
    except OSError as error:
        raise DataError(f"'{path}' cannot be read: {unreadable(error)}") from None
    if len(raw) < 4 or raw[:2] != b"\0\0" or raw[2] not in IDX_TYPES:
        starts = f"it starts with {raw[:4].hex()}" if raw else "it is empty"
        raise DataError(f"'{path}' is no IDX file: {starts}; copy it again, or give another file")
    dimensions = raw[3]
    header = raw[4 : 4 + 4 * dimensions]
    if len(header) < 4 * dimensions:
        raise DataError(
            f"'{path}' ends within its header, after {len(raw)} bytes; copy it again, it is cut off"
        )
    shape = tuple(int(d) for d in np.frombuffer(header, ">u4", dimensions))
    kind = np.dtype(IDX_TYPES[raw[2]])
    expected = int(np.prod(shape, dtype=object)) * kind.itemsize + 4 + 4 * dimensions
    if len(raw) != expected:
        wrong = "cut off" if len(raw) < expected else "damaged"
        raise DataError(
            f"'{path}' holds {len(raw)} bytes, its header says {expected}; copy it again, it is "
            f"{wrong}"
        )
    return np.frombuffer(raw, kind, offset=4 + 4 * dimensions).reshape(shape)


def _unpacked(content: bytes) -> bytes:
    """Return what gzip packed, up to `MOST_BYTES` and some, in pieces of what is there."""
    found = bytearray()
    with gzip.GzipFile(fileobj=io.BytesIO(content)) as packed:
        while len(found) <= MOST_BYTES and (piece := packed.read(PIECE_BYTES)):
            found += piece
    return bytes(found)


def scaled(x: NDArray[Any], where: str) -> NDArray[Any]:
    """Return samples as a model takes them: images centred, tokens and features as they are."""
    if x.dtype == np.uint8 and x.ndim in (3, 4):
        if x.ndim == 4 and x.shape[-1] in (1, 3) and x.shape[1] not in (1, 3):
            x = x.transpose(0, 3, 1, 2)
        x = x[:, None] if x.ndim == 3 else x
        return np.ascontiguousarray((x.astype(np.float32) - 127.5) / 63.75)
    if x.dtype.kind in "iu" and x.ndim == 2:
        return x.astype(np.int64)
    if x.dtype.kind not in "fiu" or x.ndim < 2:
        raise DataError(f"{where}: samples are {x.dtype} of shape {x.shape}; use numbers, (n, ...)")
    with np.errstate(over="ignore"):
        x = np.ascontiguousarray(x, np.float32)
    if not np.isfinite(x).all():
        raise DataError(f"{where}: samples hold NaN or infinity; clean them first")
    return x


def count_classes(labels: NDArray[Any], where: str) -> int:
    """Return the number of classes, 1 for real-valued targets."""
    if labels.ndim != 1 or not len(labels):
        raise DataError(f"{where}: labels have shape {labels.shape}; use one a sample")
    if labels.dtype.kind == "f":
        if not (np.abs(labels) <= np.finfo(np.float32).max).all():
            raise DataError(f"{where}: labels hold NaN or infinity; clean them first")
        return 1
    if labels.dtype.kind not in "iu" or labels.min() < 0:
        raise DataError(f"{where}: labels must be integers from 0 on, or real numbers")
    highest = int(labels.max())
    if highest >= 1_000_000:
        raise DataError(f"{where}: the highest label is {highest}; number classes from 0 on")
    return max(2, highest + 1)


def as_labels(labels: NDArray[Any], classes: int) -> NDArray[Any]:
    """Return labels as a loss takes them: float32 for regression, else int64."""
    return labels.astype(np.float32 if classes == 1 else np.int64)


def _dataset(x: NDArray[Any], y: NDArray[Any], where: str) -> Dataset:
    return _labelled(scaled(x, where), y, where)


def _labelled(x: NDArray[Any], y: NDArray[Any], where: str) -> Dataset:
    classes = count_classes(y, where)
    dataset = Dataset(x, as_labels(y, classes), classes)
    if len(dataset.x) != len(y):
        raise DataError(f"{where}: {len(dataset.x)} samples, {len(y)} labels")
    return dataset


def _together(train: Dataset, test: Dataset, where: str) -> tuple[Dataset, Dataset]:
    """Give both sets the same number of classes; raises DataError when they do not match."""
    shapes = train.x.shape[1:], test.x.shape[1:]
    if shapes[0] != shapes[1]:
        raise DataError(f"{where}: training samples are {shapes[0]}, test samples {shapes[1]}")
    if train.y.dtype != test.y.dtype:
        raise DataError(f"{where}: training and test labels must both be integers or real numbers")
    classes = max(train.classes, test.classes)
    return Dataset(train.x, train.y, classes), Dataset(test.x, test.y, classes)


def _column(
    arrays: dict[str, NDArray[Any]], name: str | None, samples: int, where: str
) -> NDArray[Any] | None:
    if name is None:
        return None
    if name not in arrays:
        raise DataError(f"{where} has no array '{name}'; it has {', '.join(sorted(arrays))}")
    if arrays[name].shape != (samples,):
        raise DataError(f"{where}: '{name}' has shape {arrays[name].shape}, not ({samples},)")
    return arrays[name]


def hold_out(
    data: Dataset, fraction: float, seed: int, column: NDArray[Any] | None = None
) -> Source:
    """Hold out a random test set by the seed, at least one sample of two or more."""
    if len(data) < 2:
        raise DataError(f"there is {len(data)} sample, too few to hold out a test set")
    order = seeds.stream(seed, 0, seeds.SERVER, "test set").permutation(len(data))
    held = max(1, round(fraction * len(data)))
    test, train = np.sort(order[:held]), np.sort(order[held:])
    return Source(data.take(train), data.take(test), None if column is None else column[train])
