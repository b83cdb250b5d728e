"""Trace files as rows: CSV with a heading, or JSON objects by client.

Every number is checked where it is read; a refusal names the file, the line or client,
the cell and the remedy.
"""

import csv
import sys
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fedsparse.devices.reading import json_of, shown, text_of
from fedsparse.devices.units import remedy
from fedsparse.errors import DataError, did_you_mean

LARGEST = sys.float_info.max


@dataclass(frozen=True)
class Row:
    """One line of a CSV file: where it stands, and its cells by column."""

    where: str
    cells: Mapping[str, str]

    def number(self, key: str) -> float:
        """Return a cell as a finite number that is not negative; raises DataError."""
        text = self.cells[key].strip()
        if not text:
            raise DataError(f"{self.where}: {key} is empty; {remedy(key, text)}")
        try:
            value: Any = float(text)
        except ValueError:
            value = text
        return number(value, key, self.where)


def number(value: Any, key: str, where: str) -> float:
    """Return a finite number that is not negative; raises DataError for anything else."""
    if isinstance(value, bool) or not isinstance(value, int | float) or value != value:
        raise DataError(f"{where}: {key} = {shown(value)}: {remedy(key, value)}")
    if not 0 <= value <= LARGEST:
        raise DataError(f"{where}: {key} = {shown(value)}: must be finite and not negative")
    return float(value)


def kind_of(path: Path, kinds: Sequence[str], what: str) -> str:
    """Return a trace's extension; raises DataError, with what to do about pickles."""
    kind = path.suffix.lower()
    if kind in kinds:
        return kind
    pickled = "" if kind in {".csv", ".json"} else ", never a pickle (see docs/devices.md)"
    raise DataError(f"'{path}' ends in '{kind}'; a {what} is {' or '.join(kinds)}{pickled}")


def rows(path: Path, what: str, needed: Sequence[str], optional: Sequence[str] = ()) -> list[Row]:
    """Return the lines of a CSV file; raises DataError for a bad heading or a hole."""
    lines = csv.reader(text_of(path, what, DataError).splitlines(), strict=True)
    try:
        heading = [cell.strip() for cell in next(lines)]
        _check_heading(heading, path, needed, optional)
        found = list(_body(lines, heading, path))
    except csv.Error as error:
        raise DataError(f"{path}, line {lines.line_num}: not valid CSV: {error}") from None
    if not found:
        raise DataError(f"'{path}' has a heading and no line below it; give at least one")
    return found


def _check_heading(
    heading: list[str], path: Path, needed: Sequence[str], optional: Sequence[str]
) -> None:
    known = [*needed, *optional]
    for name in heading:
        if name not in known:
            raise DataError(f"{path}, line 1: unknown column '{name}'{did_you_mean(name, known)}")
    for name in known:
        count = heading.count(name)
        if count > 1 or (count == 0 and name in needed):
            fault = "is missing" if count == 0 else "is there twice"
            raise DataError(
                f"{path}, line 1: column '{name}' {fault}; the columns are {', '.join(needed)}"
            )


def _body(lines: Iterable[list[str]], heading: list[str], path: Path) -> Iterator[Row]:
    for line, cells in enumerate(lines, start=2):
        if not cells:
            continue
        where = f"{path}, line {line}"
        if len(cells) != len(heading):
            raise DataError(f"{where}: {len(cells)} cells; the heading has {len(heading)}")
        yield Row(where, dict(zip(heading, cells, strict=True)))


def client_of(row: Row) -> str:
    """Return a line's client; raises DataError where the cell is empty."""
    client = row.cells["client"].strip()
    if not client:
        raise DataError(f"{row.where}: client is empty; give the client's id")
    return client


def objects(path: Path, what: str, keys: Sequence[str]) -> dict[str, Mapping[str, Any]]:
    """Return a JSON file's {client: object}; raises DataError for holes and strange keys."""
    found = json_of(text_of(path, what, DataError), path, DataError)
    if not found:
        raise DataError(f"'{path}' names no client; give at least one")
    for client, entry in found.items():
        where = f"{path}, client {client!r}"
        if not isinstance(entry, dict):
            raise DataError(f"{where}: {shown(entry)} must be an object with {', '.join(keys)}")
        for key in keys:
            if entry.get(key) is None:
                raise DataError(f"{where}: {key} is missing; the keys are {', '.join(keys)}")
    return found


def in_order(clients: Iterable[str]) -> list[str]:
    """Return client ids in order: by number if each is a whole one, else as text."""
    ids = list(clients)
    if all(each.isdecimal() for each in ids):
        return sorted(ids, key=lambda each: (int(each), each))
    return sorted(ids)
