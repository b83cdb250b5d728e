"""Hugging Face datasets: by hub id, or local parquet, CSV and image folders (extra `data`).

The hub's own splits become the training and the test set; columns are told by their
types, and the partitions are ours. Nothing that a dataset brings along is executed.
"""

from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fedsparse.config import DataConfig
from fedsparse.data.dataset import Dataset, Source
from fedsparse.data.sources import as_labels, count_classes, hold_out, scaled
from fedsparse.errors import DataError, MissingExtraError, did_you_mean

BUILDERS = {
    ".parquet": ("parquet", {}),
    ".csv": ("csv", {}),
    ".tsv": ("csv", {"sep": "\t"}),
    ".json": ("json", {}),
    ".jsonl": ("json", {}),
    ".arrow": ("arrow", {}),
}
LABELS = ("label", "labels", "target", "class", "y", "fine_label")
TEST_SPLITS = ("test", "validation", "valid")


def huggingface(data: DataConfig, seed: int) -> Source:
    """A dataset of the Hugging Face hub, or a local folder or file that its library reads.

    The sample is the one image column, resized to data.image_size with data.channels
    channels, or else every numeric column; the label is a ClassLabel column or one called
    label, labels, target, class, y or fine_label. Without a test or validation split a
    fifth is held out. data.column says which client a sample is from. Raises
    MissingExtraError, and DataError for what cannot be fetched, read or understood.
    """
    splits = _splits(data)
    first = next(iter(splits.values()))
    if data.column is not None and data.column not in first.features:
        hint = did_you_mean(data.column, first.features)
        raise DataError(f"data.column = '{data.column}' is no column of '{data.path}'{hint}")
    names = ["train", next((name for name in TEST_SPLITS if name in splits), "")]
    chosen = [splits[name] for name in names if name in splits] or [first]
    x_columns, label = _columns(chosen[0].features, data)
    sets = _datasets(chosen, x_columns, label, data)
    column = None if data.column is None else _client_column(chosen[0], data)
    if len(sets) == 2:
        return Source(sets[0], sets[1], column)
    return hold_out(sets[0], 0.2, seed, column)


def _splits(data: DataConfig) -> dict[str, Any]:
    """Load every split of data.path."""
    try:
        import datasets
    except ImportError:
        raise MissingExtraError("data.name = 'huggingface'", "data") from None
    if data.path is None:
        raise DataError("data.name = 'huggingface' needs data.path, a hub id or a local path")
    name, options = data.path, {}
    if is_saved(Path(data.path)):
        return _saved_splits(datasets, data.path)
    if Path(data.path).is_file():
        if Path(data.path).suffix.lower() not in BUILDERS:
            raise DataError(f"data.path = '{data.path}': use one of {', '.join(BUILDERS)}")
        name, own = BUILDERS[Path(data.path).suffix.lower()]
        options = {"data_files": {"train": data.path}, **own}
    elif data.path.startswith((".", "/", "~")) and not Path(data.path).exists():
        raise DataError(f"data.path = '{data.path}' does not exist; give a hub id or a local path")
    try:
        found = datasets.load_dataset(name, trust_remote_code=False, **options)  # nosec B615
        return dict(found)
    # The library and the network under it raise without a common base.
    except Exception as error:
        reason = next(iter(str(error).splitlines()), "") or type(error).__name__
        raise DataError(
            f"data.path = '{data.path}' cannot be loaded as a Hugging Face dataset: {reason}"
        ) from None


def is_saved(folder: Path) -> bool:
    """Tell whether a folder is what `save_to_disk` of the library made."""
    return any((folder / name).is_file() for name in ("dataset_dict.json", "dataset_info.json"))


def _saved_splits(datasets: Any, path: str) -> dict[str, Any]:
    try:
        found = datasets.load_from_disk(path)
        return dict(found) if isinstance(found, dict) else {"train": found}
    # The library raises without a common base.
    except Exception as error:
        reason = next(iter(str(error).splitlines()), "") or type(error).__name__
        raise DataError(
            f"'{path}' cannot be read as a saved Hugging Face dataset: {reason[:200]}; copy it "
            "again, or save it anew by save_to_disk"
        ) from None


def parts(
    data: DataConfig, label: str | None
) -> list[tuple[NDArray[Any], NDArray[Any], tuple[str, ...]]]:
    """Return samples, labels and the labels' names of a training split and, if any, a test split.

    `label` names the label's column; there are no names where labels are plain values. Raises as
    `huggingface` does.
    """
    splits = _splits(data)
    first = "train" if "train" in splits else next(iter(splits))
    test = next((name for name in TEST_SPLITS if name in splits and name != first), None)
    found = []
    for split in (splits[name] for name in (first, test) if name is not None):
        x_columns, own = _columns(split.features, data, label)
        names = tuple(getattr(split.features[own], "names", None) or ())
        found.append((_samples(split, x_columns, data), _values(split, own), names))
    return found


def _client_column(split: Any, data: DataConfig) -> NDArray[Any]:
    column = _values(split, data.column)
    if column.ndim != 1 or column.dtype.kind not in "iuUb":
        raise DataError(f"data.column = '{data.column}' must be whole numbers or text, no gaps")
    return column


def _values(split: Any, name: str | None) -> NDArray[Any]:
    """Return one column as an array; text and gaps stay Python objects where numpy says so."""
    return np.asarray(split[name][:])


def _columns(features: Any, data: DataConfig, label: str | None = None) -> tuple[list[str], str]:
    """Return the sample's columns, one if it is an image, and the label's."""
    kinds = {name: type(kind).__name__ for name, kind in features.items() if name != data.column}
    labels = [name for name, kind in kinds.items() if kind == "ClassLabel"]
    labels += [name for name in LABELS if name in kinds and name not in labels]
    if label is not None:
        if label not in kinds:
            hint = did_you_mean(label, list(kinds)[:50])
            raise DataError(f"'{data.path}' has no column '{label}' for the label{hint}")
        labels = [label]
    if not labels:
        raise DataError(
            f"'{data.path}' has no label among {', '.join(features)}; call one column 'label'"
        )
    images = [name for name, kind in kinds.items() if kind == "Image"]
    numeric = [
        name
        for name, kind in kinds.items()
        if kind != "ClassLabel" and name != labels[0] and _is_numeric(features[name])
    ]
    if len(images) > 1 or not (images or numeric):
        found = ", ".join(f"{name}: {kind}" for name, kind in kinds.items())
        raise DataError(f"'{data.path}' needs one image column or numeric ones, it has {found}")
    return images or numeric, labels[0]


def _is_numeric(feature: Any) -> bool:
    """Tell whether a column holds numbers, or lists or arrays of them."""
    while hasattr(feature, "feature"):
        feature = feature.feature
    kind = str(getattr(feature, "dtype", ""))
    return kind.startswith(("int", "uint", "float", "double"))


def _datasets(
    splits: list[Any], x_columns: list[str], label: str, data: DataConfig
) -> list[Dataset]:
    for split in splits:
        missing = [name for name in (*x_columns, label) if name not in split.features]
        if missing:
            raise DataError(f"'{data.path}': a split lacks the column '{missing[0]}'")
    where = f"'{data.path}'"
    raw = [_values(split, label) for split in splits]
    if raw[0].dtype.kind in "UO":
        raw = _numbered(raw, label, where)
    classes = getattr(splits[0].features[label], "num_classes", None)
    counted = count_classes(np.concatenate(raw), where)
    classes = max(classes or 0, counted) if counted > 1 else counted
    return [
        Dataset(_samples(split, x_columns, data), as_labels(y, classes), classes)
        for split, y in zip(splits, raw, strict=True)
    ]


def _numbered(raw: list[NDArray[Any]], label: str, where: str) -> list[NDArray[Any]]:
    """Number text labels in alphabetical order."""
    together = np.concatenate(raw)
    if not all(isinstance(value, str) for value in together.tolist()):
        raise DataError(f"{where}: the column '{label}' has gaps or mixed types; clean it first")
    _, numbers = np.unique(together.astype(str), return_inverse=True)
    return np.split(numbers.astype(np.int64), [len(raw[0])])[: len(raw)]


def _samples(split: Any, columns: list[str], data: DataConfig) -> NDArray[Any]:
    """Return images (n, channels, size, size), or features or tokens (n, columns)."""
    where = f"'{data.path}'"
    if type(split.features[columns[0]]).__name__ == "Image":
        size, mode = data.image_size, "L" if data.channels == 1 else "RGB"
        pixels = np.empty((len(split), size, size, data.channels), np.uint8)
        try:
            for row, sample in enumerate(split.select_columns(columns)):
                image = sample[columns[0]].convert(mode).resize((size, size))
                pixels[row] = np.asarray(image).reshape(size, size, data.channels)
        except (AttributeError, OSError, ValueError, SyntaxError) as error:
            raise DataError(f"{where}: image {row} cannot be read: {error}") from None
        return scaled(pixels.transpose(0, 3, 1, 2), where)
    try:
        arrays = [_values(split, name) for name in columns]
    except ValueError:
        raise DataError(f"{where}: {', '.join(columns)} differ in length by row") from None
    gaps = [n for n, a in zip(columns, arrays, strict=True) if a.dtype.kind not in "iuf"]
    if gaps:
        raise DataError(f"{where}: the column '{gaps[0]}' has gaps or no numbers; clean it first")
    if len(arrays) == 1 and arrays[0].ndim > 1:
        return scaled(arrays[0], where)
    flat = [a.reshape(len(a), -1).astype(np.float32) for a in arrays]
    return scaled(np.concatenate(flat, 1), where)
