"""Rows of a run: JSON lines while it runs, Parquet when it is done.

A kill can tear the last line: readers ignore it, the next append removes it. Values
that are not finite are written as null, so that any JSON reader can follow.
"""

import io
import json
import math
import os
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from fedsparse.errors import RunFolderError
from fedsparse.runs.atomic import write_file

Row = dict[str, Any]

CLIENT_COLUMNS = {
    "round": "int64",
    "client": "int64",
    "kind": "string",
    "status": "string",
    "reason": "string",
    "examples": "int64",
    "loss": "float64",
    "accuracy": "float64",
    "bytes_up": "int64",
    "bytes_down": "int64",
    "train_flops": "float64",
    "memory_bytes": "int64",
}
"""Columns of `clients.parquet` with their Arrow types; a row's other keys follow them."""


def plain(value: Any) -> Any:
    """Return `value` as strict JSON holds it: numpy unwrapped, nan and infinities as None."""
    if isinstance(value, Mapping):
        return {str(key): plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [plain(item) for item in value]
    if isinstance(value, np.ndarray | np.generic):
        return plain(value.tolist())
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return value


def to_json(value: Any) -> str:
    """Return `value` as one line of strict JSON; raises RunFolderError for other objects."""
    try:
        return json.dumps(plain(value), allow_nan=False)
    except (TypeError, ValueError, RecursionError) as error:
        raise RunFolderError(f"cannot write a value as JSON: {error}") from error


def append(path: Path, rows: Iterable[Mapping[str, Any]]) -> None:
    """Add rows to a file of JSON lines; they are on the disk when this returns."""
    lines = "".join(to_json(row) + "\n" for row in rows).encode()
    with path.open("a+b", buffering=0) as file:
        whole = _drop_torn_line(file)
        try:
            rest = memoryview(lines)
            while rest:
                rest = rest[file.write(rest) :]
            os.fsync(file.fileno())
        except OSError:
            os.ftruncate(file.fileno(), whole)
            raise


def _drop_torn_line(file: io.FileIO) -> int:
    """Cut what follows the last line end; return the length that is left."""
    end = file.seek(0, os.SEEK_END)
    if end == 0:
        return 0
    file.seek(end - 1)
    if file.read(1) != b"\n":
        file.seek(0)
        end = file.read().rfind(b"\n") + 1
        file.truncate(end)
    return end


def read(path: Path) -> list[Row]:
    """Return the rows of a file of JSON lines; none when it does not exist.

    Raises RunFolderError, with the line, for a broken line that is not the last.
    """
    try:
        lines = path.read_bytes().split(b"\n")
    except FileNotFoundError:
        return []
    except OSError as error:
        raise RunFolderError(f"'{path}' cannot be read: {error.strerror or error}") from error
    rows = []
    for number, line in enumerate(lines[:-1], 1):
        try:
            row = json.loads(line)
        except (ValueError, RecursionError):
            row = None
        if not isinstance(row, dict):
            raise RunFolderError(
                f"'{path}' line {number} is not a JSON object; start again with another --out"
            )
        rows.append(row)
    return rows


def rewrite(path: Path, rows: Iterable[Mapping[str, Any]]) -> None:
    """Replace a file of JSON lines by `rows`, at once."""
    write_file(path, "".join(to_json(row) + "\n" for row in rows).encode())


def write_parquet(path: Path, rows: Sequence[Mapping[str, Any]]) -> None:
    """Write client rows as Parquet; columns of `CLIENT_COLUMNS` first, then the others."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    extra = {key: None for row in rows for key in row if key not in CLIENT_COLUMNS}
    columns = {
        name: _column(pa, [plain(row.get(name)) for row in rows], CLIENT_COLUMNS.get(name))
        for name in [*CLIENT_COLUMNS, *extra]
    }
    buffer = io.BytesIO()
    pq.write_table(pa.table(columns), buffer, compression="zstd")
    write_file(path, buffer.getvalue())


def _column(pa: Any, values: list[Any], arrow_type: str | None) -> Any:
    """Return an Arrow column; values of mixed kinds, or too large, are kept as JSON text."""
    try:
        return pa.array(values, type=arrow_type and pa.type_for_alias(arrow_type))
    except (pa.ArrowInvalid, pa.ArrowTypeError, pa.ArrowNotImplementedError, OverflowError):
        return pa.array([None if v is None else to_json(v) for v in values], type=pa.string())


def read_parquet(path: Path) -> list[Row]:
    """Return the rows of a Parquet file; raises RunFolderError when it is damaged."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        rows: list[Row] = pq.read_table(path).to_pylist()
    except (pa.ArrowException, OSError, ValueError) as error:
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise RunFolderError(
            f"'{path}' is damaged: {reason}; delete it for a report without its rows, "
            "or start again with another --out"
        ) from error
    return rows
