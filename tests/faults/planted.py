"""Bugs that are put in on purpose, to see that fault schedules find them.

Each is put into the processes of a run, not into this one.
"""

import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from fedsparse.runs import atomic, folder, tables
from strategies import addressing
from strategies.rounds import RoundLoop


def late_replies_count() -> None:
    """Replies of earlier rounds are taken for those of this one."""
    addressing.answers = lambda replies, sent: list(replies)


def rows_are_not_rewound() -> None:
    """What a resumed run repeats is written down twice."""
    folder.RunFolder.rewind = lambda self, number, last=None: None  # type: ignore[assignment]


def a_full_disk_is_not_told() -> None:
    """Rows that do not fit on the disk are lost in silence."""
    plain = tables.append

    def silent(path: Path, rows: Any) -> None:
        try:
            plain(path, rows)
        except OSError:
            os.sync()

    tables.append = silent


def nobody_has_to_reply() -> None:
    """A round goes on with fewer replies than its minimum, if there is one."""
    plain = RoundLoop.aggregate

    def lenient(loop: RoundLoop, number: int, replies: Any) -> None:
        fleet = loop.config.fleet
        object.__setattr__(fleet, "min_replies", 0.01)
        plain(loop, number, replies)

    RoundLoop.aggregate = lenient  # type: ignore[method-assign]


def files_are_written_in_place() -> None:
    """A file has its name before its content is whole."""

    def in_place(contents: Mapping[Path, bytes]) -> None:
        for path, content in contents.items():
            with path.open("wb") as file:
                file.write(content)
                file.flush()
                os.fsync(file.fileno())

    atomic.write_files = in_place


BUGS: dict[str, Callable[[], None]] = {
    "late": late_replies_count,
    "rewind": rows_are_not_rewound,
    "full": a_full_disk_is_not_told,
    "lenient": nobody_has_to_reply,
    "in-place": files_are_written_in_place,
}
