"""Tables of a sample a row: CSV and TSV by Python's csv, Parquet by pyarrow.

The label is the column that is named, or the last; every other column is a number of the sample.
"""

import csv
from array import array
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fedsparse.errors import DataError, MissingExtraError, did_you_mean, unreadable

MOST_CELLS = 2**30
GZIP = b"\x1f\x8b"
"""What files that are packed by gzip begin with."""
Table = tuple[NDArray[Any], NDArray[Any]]
"""Samples (n, columns) and labels (n,), numbers or names."""


def read_csv(path: Path, label: str | None) -> Table:
    """Read a CSV or TSV file, with a line of names or without.

    Raises DataError, with the line, for a cell that is no number, a short or a long line.
    """
    separator, name = ("\t", "tabs") if path.suffix.lower() == ".tsv" else (",", "commas")
    try:
        with path.open(encoding="utf-8-sig", newline="") as file:
            return _table(path, csv.reader(file, delimiter=separator), label, name)
    except UnicodeDecodeError as error:
        if _begins(path) == GZIP:
            raise DataError(f"'{path}' is packed by gzip; unpack it with gunzip") from None
        raise DataError(f"'{path}' is no UTF-8 text: {error.reason}; save it as UTF-8") from None
    except csv.Error as error:
        raise DataError(f"'{path}' is no readable CSV file: {error}; save it again") from None
    except OSError as error:
        raise DataError(f"'{path}' cannot be read: {unreadable(error)}") from None


def _begins(path: Path) -> bytes:
    with path.open("rb") as file:
        return file.read(2)


def _table(path: Path, lines: Iterator[list[str]], label: str | None, separator: str) -> Table:
    cells, labels, width, place = array("d"), list[str](), 0, -1
    names: list[str] = []
    for number, line in enumerate(lines, 1):
        if not line:
            continue
        if not width:
            width = len(line)
            if width < 2:
                raise DataError(
                    f"'{path}' has one column; it needs numbers and a label, parted by {separator}"
                )
            named = label is not None or _are_names(line)
            names = [cell.strip() for cell in line] if named else []
            place = _place(names, label, f"'{path}'") if named else width - 1
            if named:
                continue
        if len(line) != width:
            raise DataError(f"'{path}' line {number} has {len(line)} cells, not {width}; mend it")
        labels.append(line[place])
        for column, cell in enumerate(line):
            if column != place:
                value = _number(cell)
                if value is None:
                    what = names[column] if names else f"number {column + 1}"
                    raise DataError(
                        f"'{path}' line {number}, column {what[:40]}: '{cell[:20]}' is no number; "
                        "fill the gap, or turn it into numbers first"
                    )
                cells.append(value)
        if len(cells) > MOST_CELLS:
            raise DataError(f"'{path}' has more than {MOST_CELLS} cells; save it as .npz or IDX")
    if not labels:
        raise DataError(f"'{path}' holds no samples; give a file with some")
    with np.errstate(over="ignore"):
        x = np.frombuffer(cells, np.float64).reshape(len(labels), width - 1).astype(np.float32)
    return x, np.array(labels, object)


def _are_names(line: Sequence[str]) -> bool:
    """Tell whether a first line names columns: by no number, or by their own numbers, as pandas."""
    columns = [cell.strip() for cell in line[:-1]]
    counted = columns == [str(place) for place in range(len(columns))]
    return counted or not any(_number(cell) is not None for cell in columns)


def _number(text: str) -> float | None:
    try:
        return float(text)
    except ValueError:
        return None


def _place(names: Sequence[str], label: str | None, where: str) -> int:
    """Return the label's column, the last where none is named; raises DataError for no such."""
    if label is None:
        return len(names) - 1
    if label not in names:
        hint = did_you_mean(label, names)
        hint = hint if len(hint) < 200 else ""
        raise DataError(f"{where} has no column '{label}' for the label{hint}")
    return names.index(label)


def read_parquet(path: Path, label: str | None) -> Table:
    """Read a Parquet file of numbers, or of one column of lists of equal length, and the label.

    Raises DataError, and MissingExtraError without pyarrow.
    """
    try:
        import pyarrow as pa
        import pyarrow.parquet as pq
    except ImportError:
        raise MissingExtraError(f"'{path.name}' as a node's data", "data") from None
    try:
        if pq.read_metadata(path).num_rows * 2 > MOST_CELLS:
            raise DataError(f"'{path}' has too many rows to be read at once; split it")
        table = pq.read_table(path)
        names = list(table.column_names)
        if len(names) < 2:
            raise DataError(f"'{path}' has {len(names)} columns; it needs numbers and a label")
        place = _place(names, label, f"'{path}'")
        if not table.num_rows:
            raise DataError(f"'{path}' holds no samples; give a file with some")
        y = table.column(place).to_numpy()
        parts = [
            _numbers(pa, table.column(i), f"'{path}' column {name[:40]}")
            for i, name in enumerate(names)
            if i != place
        ]
        return np.concatenate(parts, 1), y
    except (pa.ArrowException, OSError, ValueError, TypeError, KeyError, MemoryError) as error:
        reason = next(iter(str(error).splitlines()), "") or type(error).__name__
        raise DataError(
            f"'{path}' is no readable Parquet file: {reason[:200]}; copy it again, or save it anew"
        ) from None


def _numbers(pa: Any, column: Any, where: str) -> NDArray[np.float32]:
    """Return a column as (n, numbers in a row), lists of lists flattened."""
    rows = len(column)
    values = column.combine_chunks()
    while isinstance(values.type, pa.ListType | pa.LargeListType | pa.FixedSizeListType):
        values = values.flatten()
    kinds = (pa.types.is_integer, pa.types.is_floating, pa.types.is_boolean)
    if column.null_count or values.null_count or not any(is_kind(values.type) for is_kind in kinds):
        raise DataError(f"{where} has gaps or no numbers; clean it, or leave it out")
    if len(values) % rows or len(values) > MOST_CELLS:
        raise DataError(f"{where} differs in length by row; make all rows alike")
    if _lengths(pa, column) > 1:
        raise DataError(f"{where} differs in length by row; make all rows alike")
    found = values.to_numpy(zero_copy_only=False).reshape(rows, -1)
    with np.errstate(over="ignore"):
        return np.ascontiguousarray(found, np.float32)


def _lengths(pa: Any, column: Any) -> int:
    """Return how many unlike lengths a column's lists have, on the worst of their levels."""
    import pyarrow.compute as pc

    values, most = column.combine_chunks(), 1
    while isinstance(values.type, pa.ListType | pa.LargeListType | pa.FixedSizeListType):
        most = max(most, len(pc.unique(pc.list_value_length(values))))
        values = values.flatten()
    return most
