"""Clients' states in one SQLite file: a row a client and version, equal contents once.

Versions are numbered by generation, one more at each checkpoint. All that happens between
two checkpoints is one transaction, which the checkpoint commits: a process that dies leaves
the file as the last one did. What is read is held against its SHA-256.
"""

import errno
import hashlib
import sqlite3
from collections import OrderedDict
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path

from fedsparse import state_codec
from fedsparse.errors import RunFolderError
from fedsparse.runs.atomic import writing

NAME = "clients.sqlite"
RECENT_BYTES = 64 * 2**20
"""Contents kept in memory, those used last; what many clients share is read once."""

_SCHEMA = """
BEGIN IMMEDIATE;
CREATE TABLE bodies (
    id INTEGER PRIMARY KEY, digest BLOB UNIQUE NOT NULL, uses INTEGER NOT NULL,
    content BLOB NOT NULL
);
CREATE TABLE parts (
    id INTEGER PRIMARY KEY, digest BLOB UNIQUE NOT NULL, uses INTEGER NOT NULL,
    content BLOB NOT NULL
);
CREATE TABLE states (
    client INTEGER NOT NULL, since INTEGER NOT NULL, until INTEGER, body INTEGER, gone BLOB,
    PRIMARY KEY (client, since)
) WITHOUT ROWID;
CREATE INDEX ended ON states (until) WHERE until IS NOT NULL;
CREATE TABLE checkpoints (round INTEGER PRIMARY KEY, generation INTEGER NOT NULL);
"""
"""A state holds from generation `since` to before `until`; `gone` is a forgotten one's digest."""

_NOW = """
SELECT client, since, body, coalesce(digest, gone)
FROM states LEFT JOIN bodies ON id = body WHERE until IS NULL
"""

_SETTINGS = (
    "journal_mode = DELETE",  # one file, also in a copy of a run that is under way
    "synchronous = EXTRA",  # committed is on the disk, before the checkpoint says so
    "secure_delete = ON",  # what is forgotten is overwritten
    "cache_size = -32768",
)

_DISK = {
    "SQLITE_FULL": errno.ENOSPC,
    "SQLITE_READONLY": errno.EACCES,
    "SQLITE_PERM": errno.EACCES,
    "SQLITE_CANTOPEN": errno.EACCES,
    "SQLITE_IOERR": errno.EIO,
    "SQLITE_BUSY": errno.EBUSY,
}
"""SQLite's errors that are about the disk; any other says that the file is damaged."""


class StateFile:
    """The states of one run, in its folder or, for None, in memory.

    Raises RunFolderError for a file that is damaged, or cannot be written.
    """

    def __init__(self, folder: Path | None, *, new: bool) -> None:
        self.path = None if folder is None else folder / NAME
        self._recent = Recent(RECENT_BYTES)
        self._generation = 0
        self._clients, self._sum = 0, 0
        with self._guarded():
            if self.path is not None and new:
                for path in (self.path, self.path.with_name(f"{NAME}-journal")):
                    path.unlink(missing_ok=True)
            # From any thread: one at a time works with a grid, not always the one that made it.
            self._db = sqlite3.connect(
                self.path or ":memory:", isolation_level=None, check_same_thread=False
            )
            for setting in _SETTINGS:
                self._db.execute(f"PRAGMA {setting}")
            if new:
                self._db.executescript(_SCHEMA)
            else:
                self._db.execute("BEGIN IMMEDIATE")

    @property
    def mark(self) -> tuple[int, str]:
        """How many clients have a state, and what tells all of these states from others."""
        return self._clients, f"{self._sum:064x}"

    def body(self, client: int) -> bytes | None:
        """Return the body of a client's state, None when it has none."""
        with self._guarded():
            row = self._row(client)
            return None if row is None or row[1] is None else self._read("bodies", row[2])

    def part(self, digest: bytes) -> bytes:
        """Return bytes that a body names."""
        with self._guarded():
            return self._read("parts", digest)

    def clients(self) -> list[int]:
        """Return every client that has a state, in their order."""
        with self._guarded():
            rows = self._db.execute(
                "SELECT client FROM states WHERE until IS NULL AND body IS NOT NULL ORDER BY client"
            )
            return [client for (client,) in rows]

    def replace(self, client: int, body: bytes | None, parts: Iterable[bytes] = ()) -> None:
        """Give a client a state: its body and the bytes that it names; None for no state."""
        digest = None if body is None else hashlib.sha256(body).digest()
        with self._guarded():
            row = self._row(client)
            if row is not None:
                since, held, before = row
                if held is not None and before == digest:
                    return
                self._end(client, since, held)
                self._count(-1, client, before)
            if body is not None and digest is not None:
                self._db.execute(
                    "INSERT INTO states VALUES (?, ?, NULL, ?, NULL)",
                    (client, self._generation, self._add_body(digest, body, parts)),
                )
                self._count(1, client, digest)

    def forget(self, client: int) -> None:
        """Remove a client's states of all versions, on the disk with the next `commit`.

        Their digests stay, so that older checkpoints still know the other clients' states.
        """
        self.replace(client, None)
        with self._guarded():
            rows = self._db.execute(
                "SELECT since, body, digest FROM states JOIN bodies ON id = body WHERE client = ?",
                (client,),
            ).fetchall()
            for since, body, digest in rows:
                self._db.execute(
                    "UPDATE states SET body = NULL, gone = ? WHERE client = ? AND since = ?",
                    (digest, client, since),
                )
                self._release(body)

    # -- checkpoints ------------------------------------------------------------------

    def commit(self, round_number: int, kept: Iterable[int]) -> None:
        """Put the states on the disk as those of a round; drop what no kept round needs."""
        with self._guarded():
            before = {number for (number,) in self._db.execute("SELECT round FROM checkpoints")}
            self._db.execute(
                "INSERT OR REPLACE INTO checkpoints VALUES (?, ?)",
                (round_number, self._generation),
            )
            lost = before - set(kept) - {round_number}
            if lost or round_number in before:
                self._drop(lost)
            self._db.execute("COMMIT")
            self._generation += 1
            self._db.execute("BEGIN IMMEDIATE")

    def restore(self, round_number: int) -> None:
        """Go back to the states of a round, all of them checked; the next `commit` says so.

        Raises RunFolderError when the file is damaged or does not hold that round.
        """
        with self._guarded():
            for (said,) in self._db.execute("PRAGMA integrity_check(1)").fetchall():
                if said != "ok":
                    raise ValueError(said)
            row = self._db.execute(
                "SELECT generation FROM checkpoints WHERE round = ?", (round_number,)
            ).fetchone()
            if row is None:
                raise ValueError(f"it does not hold the states of round {round_number}")
            for table in ("bodies", "parts"):
                for (digest,) in self._db.execute(f"SELECT digest FROM {table}"):
                    self._checked(table, digest)
            self._undo_after(row[0])
            self._generation = row[0] + 1
            self._clients = self._sum = 0
            for client, _, _, digest in self._db.execute(_NOW):
                self._count(1, client, digest)

    def close(self) -> None:
        """Leave the file as the last checkpoint left it."""
        self._db.close()

    def _drop(self, rounds: Iterable[int]) -> None:
        """Remove the versions that are of no round any more when these are not."""
        self._db.executemany("DELETE FROM checkpoints WHERE round = ?", ((r,) for r in rounds))
        rows = self._db.execute(
            "SELECT client, since, body FROM states INDEXED BY ended WHERE until IS NOT NULL "
            "AND NOT EXISTS (SELECT 1 FROM checkpoints "
            "WHERE generation >= since AND generation < until)"
        ).fetchall()
        for row in rows:
            self._remove(*row)

    def _undo_after(self, generation: int) -> None:
        """Undo, in the open transaction, what came after a generation."""
        self._db.execute("DELETE FROM checkpoints WHERE generation > ?", (generation,))
        rows = self._db.execute(
            "SELECT client, since, body FROM states WHERE since > ?", (generation,)
        ).fetchall()
        for row in rows:
            self._remove(*row)
        self._db.execute("UPDATE states SET until = NULL WHERE until > ?", (generation,))

    # -- a client's row -----------------------------------------------------------------

    def _row(self, client: int) -> tuple[int, int | None, bytes] | None:
        """Return since when a client has its state, the state's body, and its digest."""
        row = self._db.execute(f"{_NOW} AND client = ?", (client,)).fetchone()
        return None if row is None else row[1:]

    def _end(self, client: int, since: int, body: int | None) -> None:
        """End a state; one that no checkpoint has seen is removed."""
        if since == self._generation:
            self._remove(client, since, body)
        else:
            self._db.execute(
                "UPDATE states SET until = ? WHERE client = ? AND since = ?",
                (self._generation, client, since),
            )

    def _remove(self, client: int, since: int, body: int | None) -> None:
        self._db.execute("DELETE FROM states WHERE client = ? AND since = ?", (client, since))
        if body is not None:
            self._release(body)

    def _count(self, sign: int, client: int, digest: bytes) -> None:
        """Add a state to the mark, or take one out: a sum, which no order changes."""
        content = int.to_bytes(client, 8, "little") + digest
        term = int.from_bytes(hashlib.sha256(content).digest(), "little")
        self._clients += sign
        self._sum = (self._sum + sign * term) % 2**256

    # -- contents -----------------------------------------------------------------------

    def _read(self, table: str, digest: bytes) -> bytes:
        found = self._recent.get(digest)
        if found is None:
            found = self._checked(table, digest)
            self._recent.put(digest, found)
        return found

    def _checked(self, table: str, digest: bytes) -> bytes:
        """Return a content from the file; raises ValueError when it is not what it was."""
        row = self._db.execute(f"SELECT content FROM {table} WHERE digest = ?", (digest,))
        (content,) = row.fetchone() or (b"",)
        if hashlib.sha256(content).digest() != digest:
            raise ValueError("a state in it is not what was written")
        return bytes(content)

    def _add_body(self, digest: bytes, body: bytes, parts: Iterable[bytes]) -> int:
        """Count one more use of a body and return its number; a new one uses its parts."""
        number, new = self._add("bodies", digest, body)
        if new:
            for part in parts:
                self._add("parts", hashlib.sha256(part).digest(), part)
        return number

    def _add(self, table: str, digest: bytes, content: bytes) -> tuple[int, bool]:
        """Count one more use of a content; return its number, and whether it is new."""
        row = self._db.execute(f"SELECT id FROM {table} WHERE digest = ?", (digest,)).fetchone()
        if row is not None:
            self._db.execute(f"UPDATE {table} SET uses = uses + 1 WHERE id = ?", row)
            return int(row[0]), False
        cursor = self._db.execute(
            f"INSERT INTO {table} (digest, uses, content) VALUES (?, 1, ?)", (digest, content)
        )
        self._recent.put(digest, content)
        return int(cursor.lastrowid or 0), True

    def _release(self, number: int) -> None:
        """Count one use less of a body; the last one lets its parts go, too."""
        row = self._db.execute("SELECT digest FROM bodies WHERE id = ?", (number,))
        for (digest,) in row.fetchall():
            body = self._read("bodies", digest)
            if self._last_use("bodies", digest):
                for part in state_codec.named(body):
                    self._last_use("parts", part)

    def _last_use(self, table: str, digest: bytes) -> bool:
        """Count one use less of a content; tell whether it was the last, and it is gone."""
        self._db.execute(f"UPDATE {table} SET uses = uses - 1 WHERE digest = ?", (digest,))
        gone = self._db.execute(f"DELETE FROM {table} WHERE digest = ? AND uses < 1", (digest,))
        if gone.rowcount:
            self._recent.drop(digest)
        return bool(gone.rowcount)

    @contextmanager
    def _guarded(self) -> Iterator[None]:
        """Turn what SQLite and damaged rows raise into RunFolderError, one line."""
        where = self.path or Path(NAME)
        try:
            with writing(where.parent):
                try:
                    yield
                except sqlite3.Error as error:
                    name = getattr(error, "sqlite_errorname", "")
                    for known, number in _DISK.items():
                        if name.startswith(known):
                            raise OSError(number, str(error)) from error
                    raise ValueError(error) from error
        except (ValueError, TypeError, OverflowError) as error:
            reason = str(error).splitlines()[0] if str(error) else type(error).__name__
            raise RunFolderError(
                f"'{where}', the states of the clients, is damaged: {reason}; "
                "put it back as it was, or start again with another --out"
            ) from error


class Recent:
    """Contents by digest, those used last, up to so many bytes; the newest stays in any case."""

    def __init__(self, most: int) -> None:
        self._most = most
        self._held: OrderedDict[bytes, bytes] = OrderedDict()
        self.bytes = 0

    def get(self, digest: bytes) -> bytes | None:
        """Return a content if it is held."""
        if digest in self._held:
            self._held.move_to_end(digest)
        return self._held.get(digest)

    def put(self, digest: bytes, content: bytes) -> None:
        """Hold a content, and let those go that were used longest ago."""
        self.drop(digest)
        self._held[digest] = content
        self.bytes += len(content)
        while self.bytes > self._most and len(self._held) > 1:
            _, old = self._held.popitem(last=False)
            self.bytes -= len(old)

    def drop(self, digest: bytes) -> None:
        """Let a content go."""
        self.bytes -= len(self._held.pop(digest, b""))
