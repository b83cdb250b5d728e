"""Which rows a run folder must hold to go on after a round.

A run's totals are sums over its rows: with one missing they would be wrong and nobody
would see it, so a run is not resumed without it.
"""

from collections import Counter
from collections.abc import Sequence
from pathlib import Path

from fedsparse.errors import RunFolderError
from fedsparse.runs.tables import Row

_MEASURED = ("accuracy", "loss", "density")
_COUNTED = (
    "bytes_up",
    "bytes_down",
    "train_flops",
    "peak_client_memory_bytes",
    "clients_asked",
    "seconds",
)
_OF_CLIENTS = ("client", "bytes_up", "bytes_down")


def until(rows: Sequence[Row], last: int) -> list[Row]:
    """Return the rows of rounds up to `last`."""
    return [row for row in rows if isinstance(row.get("round"), int) and row["round"] <= last]


def check_metrics(path: Path, rows: Sequence[Row], last: int) -> None:
    """Raise RunFolderError unless `rows` are whole ones of the rounds 0 to `last`, in order."""
    for number in range(last + 1):
        row = rows[number] if number < len(rows) else {}
        if row.get("round") != number:
            raise _lacks(path, f"the row of round {number}")
        lost = [key for key in _MEASURED if key not in row]
        lost += [key for key in _COUNTED if not isinstance(row.get(key), int | float)]
        if lost:
            raise _lacks(path, f"{lost[0]} of round {number}")
    if len(rows) > last + 1:
        raise RunFolderError(
            f"'{path}' holds more than one row of a round; start again with another --out"
        )


def check_clients(path: Path, rows: Sequence[Row], metrics: Sequence[Row]) -> None:
    """Raise RunFolderError unless each round has a row of every client that it asked."""
    for row in rows:
        lost = [key for key in _OF_CLIENTS if not isinstance(row.get(key), int)]
        if lost or not isinstance(row.get("kind"), str):
            raise _lacks(path, f"{[*lost, 'kind'][0]} of a client in round {row['round']}")
    found = Counter(row["round"] for row in rows if row["kind"] == "train")
    for row in metrics:
        if found[row["round"]] != row["clients_asked"]:
            raise _lacks(
                path,
                f"rows of clients in round {row['round']}, "
                f"{found[row['round']]} of {row['clients_asked']} are there",
            )


def _lacks(path: Path, what: str) -> RunFolderError:
    return RunFolderError(f"'{path}' lacks {what}; start again with another --out")
