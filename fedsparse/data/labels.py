"""Labels of files that lie apart: the same number for the same class at every node.

Numbers stand for themselves. Names are numbered by `data.labels`, which every node is sent:
numbered by what one node happens to hold, the same class would be another one elsewhere.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fedsparse.errors import DataError, did_you_mean

MOST_CLASSES = 1_000_000


def numbered(
    labels: NDArray[Any] | Sequence[str], classes: int, names: Sequence[str], where: str
) -> NDArray[Any]:
    """Return labels as int64 numbers of classes, or float32 targets where `classes` is 1.

    Raises DataError for names that `data.labels` lacks, fractions, gaps, and negative numbers.
    """
    values = np.asarray(labels)
    if values.ndim != 1:
        raise DataError(f"{where}: labels have shape {values.shape}; use one a sample")
    if values.dtype.kind in "OUS":
        values = _of_text([_text(value) for value in values.tolist()], classes, names, where)
    if values.dtype.kind == "b":
        values = values.astype(np.int64)
    if values.dtype.kind not in "iuf":
        raise DataError(f"{where}: labels are {values.dtype}; use numbers or names of classes")
    with np.errstate(over="ignore"):
        real = values.astype(np.float32)
    if not np.isfinite(real).all():
        raise DataError(f"{where}: labels hold NaN, a gap or infinity; clean them first")
    if classes == 1:
        return real
    if len(values) and (values != np.floor(values)).any():
        raise DataError(
            f"{where}: labels are no whole numbers, and the run has {classes} classes; set "
            "data.classes = 1 for real-valued targets"
        )
    if len(values) and not (values.min() >= 0 and values.max() < MOST_CLASSES):
        raise DataError(f"{where}: labels must be numbers from 0 on; number the classes so")
    return values.astype(np.int64)


def _text(value: object) -> str:
    return value.decode("utf-8", "replace") if isinstance(value, bytes) else str(value)


def _of_text(texts: list[str], classes: int, names: Sequence[str], where: str) -> NDArray[Any]:
    """Return texts as numbers: by name where there are names, else as they read."""
    if names and classes > 1:
        known = {name: number for number, name in enumerate(names)}
        unknown = next((text for text in texts if text.strip() not in known), None)
        if unknown is not None:
            hint = did_you_mean(unknown[:40], list(names)[:20])
            raise DataError(f"{where}: the label '{unknown[:40]}' is not in data.labels{hint}")
        return np.array([known[text.strip()] for text in texts], np.int64)
    try:
        return np.array([float(text) for text in texts], np.float64)
    except ValueError:
        name = next(text for text in texts if not _is_number(text))
        raise DataError(
            f"{where}: the label '{name[:40]}' is no number; set data.labels to the classes' names "
            "in one order for all nodes, such as cat,dog"
        ) from None


def _is_number(text: str) -> bool:
    try:
        float(text)
    except ValueError:
        return False
    return True
