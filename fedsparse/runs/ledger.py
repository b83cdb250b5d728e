"""The ledger of a run: who touched which round, so that it can be told later, and checked.

`ledger.jsonl` begins with an entry for the run and has one for each round. Each entry carries the
SHA-256 of the one before and its own, so that a change anywhere is found. A ledger that was written
anew as a whole is not: for that its last hash can be signed (`fedsparse.runs.signature`).
"""

import hashlib
import json
import secrets
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from fedsparse.config import Config
from fedsparse.errors import LedgerError
from fedsparse.runs import tables
from fedsparse.runs.atomic import write_file, writing

Entry = dict[str, Any]

NAME, KEY = "ledger.jsonl", "ledger.key"
FIRST = "0" * 64
"""What the first entry has for the one before."""

_VERSION = 1
_KEYS = {
    "run": {"version": int, "configuration": str, "clients": int, "begins": int, "key": str},
    "round": {"round": int, "asked": list, "counted": list, "samples": dict, "model": str},
}


class Ledger:
    """The ledger in a run folder; only the process that holds the folder's lock writes it."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.head = FIRST
        """The hash of the last entry."""

    @property
    def path(self) -> Path:
        """The file of entries."""
        return self.folder / NAME

    # -- writing ----------------------------------------------------------------------

    def begin(
        self, config: Config, begins: int = 0, parent: Mapping[str, Any] | None = None
    ) -> None:
        """Begin a new chain with the entry of the run, in the place of any other.

        `begins` is the first round that is written down, more than 0 for a run that had no ledger
        before. A run that goes on from another one's checkpoint names that ledger as `parent`.
        """
        key = self.key(config.run.seed)
        if not (self.folder / KEY).exists():
            self.make_key(key)
        entry: Entry = {
            "entry": "run",
            "version": _VERSION,
            "configuration": digest_of(config),
            "clients": config.fleet.clients,
            "begins": begins,
            "key": hashlib.sha256(key).hexdigest(),
        }
        with writing(self.folder):
            write_file(self.path, b"")
        self.head = FIRST
        self.append(entry | ({"parent": dict(parent)} if parent else {}))

    def append(self, entry: Mapping[str, Any]) -> None:
        """Add an entry; it is on the disk when this returns."""
        whole = _sealed(entry, self.head)
        with writing(self.folder):
            tables.append(self.path, [whole])
        self.head = whole["hash"]

    def go_on(self, kept: Sequence[Entry]) -> None:
        """Go on after the entries that `until` returned; those after them are dropped."""
        with writing(self.folder):
            tables.rewrite(self.path, kept)
        self.head = kept[-1]["hash"]

    def inherit(
        self, parent: "Ledger", config: Config, round_number: int, *, spliced: bool = False
    ) -> None:
        """Begin with another run's entries up to a round, from whose checkpoint this run goes on.

        The key is the same, so that roots stay comparable. `spliced` says that parts of the model
        come from the other run's end, whose later rounds this ledger cannot name. Where the parent
        has no ledger, this one begins after that round. Raises LedgerError where entries do not
        verify.
        """
        if not parent.path.exists():
            self.begin(config, round_number + 1)
            return
        first, *entries = parent.verified()
        kept = [entry for entry in entries if entry["round"] <= round_number]
        self.make_key(parent.key(config.run.seed, [first]))
        last = [first, *kept][-1]["hash"]
        spliced = spliced or first.get("parent", {}).get("spliced", False)
        origin = {"configuration": first["configuration"], "entry": last, "spliced": spliced}
        self.begin(config, first["begins"], origin)
        for entry in kept:
            self.append({k: v for k, v in entry.items() if k not in ("previous", "hash")})

    def key(self, seed: int, entries: Sequence[Entry] = ()) -> bytes:
        """Return the 32 bytes behind the nonces of samples; a new run's come from its seed.

        Whoever has the run folder of a simulation can deal its data again from configuration and
        seed: a secret would hide nothing there, and equal runs have equal ledgers. A run on real
        nodes gets a random key before it begins (`make_key`). Raises LedgerError where the key
        is not that of the entries.
        """
        path = self.folder / KEY
        try:
            key = bytes.fromhex(path.read_text())
        except FileNotFoundError:
            key = hashlib.sha256(f"fedsparse ledger {seed}".encode()).digest()
        except (OSError, ValueError) as error:
            raise LedgerError(f"'{path}' cannot be read: {error}; put it back") from None
        if entries and hashlib.sha256(key).hexdigest() != entries[0]["key"]:
            raise LedgerError(f"'{path}' is not the key that '{self.path}' began with; put it back")
        return key

    def make_key(self, key: bytes | None = None) -> None:
        """Write the key, a random one if unset, for the owner's eyes alone."""
        path = self.folder / KEY
        with writing(self.folder):
            write_file(path, ((key or secrets.token_bytes(32)).hex() + "\n").encode())
            path.chmod(0o600)

    # -- reading ----------------------------------------------------------------------

    def read(self) -> list[Entry]:
        """Return the entries, unchecked; a torn last line is ignored.

        Raises LedgerError, with the line, for one that is no entry.
        """
        return [_parsed(self.path, number, line) for number, line in self._lines()]

    def until(self, round_number: int) -> list[Entry]:
        """Return the entries up to a round, unchecked."""
        return [e for e in self.read() if e["entry"] == "run" or e["round"] <= round_number]

    def verified(self) -> list[Entry]:
        """Return the entries once each is known to be as it was written, and none to lack between.

        Raises LedgerError that names the first that is not.
        """
        entries: list[Entry] = []
        before, expected = FIRST, 0
        for number, line in self._lines():
            entry = _parsed(self.path, number, line)
            if not _as_written(entry, line):
                raise LedgerError(f"'{self.path}' line {number} was changed after it was written")
            if entry["previous"] != before or (entry["entry"] == "run") != (number == 1):
                raise LedgerError(f"'{self.path}' line {number} does not follow the one before")
            if number > 1 and entry["round"] != expected:
                raise LedgerError(f"'{self.path}' lacks the entry of round {expected}")
            before, expected = entry["hash"], entry["begins"] if number == 1 else expected + 1
            entries.append(entry)
        if not entries:
            raise LedgerError(f"'{self.path}' is missing or empty: nothing says who touched what")
        return entries

    def _lines(self) -> Iterable[tuple[int, str]]:
        try:
            text = self.path.read_bytes().decode()
        except FileNotFoundError:
            return []
        except (OSError, UnicodeDecodeError) as error:
            raise LedgerError(f"'{self.path}' cannot be read: {error}") from None
        return enumerate(text.split("\n")[:-1], 1)


def digest_of(config: Config) -> str:
    """Return the SHA-256 of a configuration's set keys but for `[engine]`; it changes no bit."""
    dumped = config.model_dump()
    sections = {
        section: {key: value for key, value in dumped[section].items() if value is not None}
        for section in dumped.keys() - {"engine"}
    }
    return hashlib.sha256(_canonical(sections)).hexdigest()


def _sealed(entry: Mapping[str, Any], before: str) -> Entry:
    """Return an entry that follows another one's hash, with its own."""
    body = {**entry, "previous": before}
    return {**body, "hash": hashlib.sha256(_canonical(body)).hexdigest()}


def _as_written(entry: Entry, line: str) -> bool:
    """Tell whether a line is what was written of an entry, to the byte."""
    body = {key: entry[key] for key in entry if key not in ("previous", "hash")}
    try:
        return _sealed(body, entry["previous"]) == entry and tables.to_json(entry) == line
    except ValueError:  # a number that JSON cannot hold
        return False


def _canonical(value: Any) -> bytes:
    return json.dumps(value, sort_keys=True, separators=(",", ":"), allow_nan=False).encode()


def _parsed(path: Path, number: int, line: str) -> Entry:
    """Return an entry with the keys that readers rely on."""
    try:
        entry = json.loads(line)
        kinds = _KEYS[entry["entry"]] | {"previous": str, "hash": str}
        whole = all(isinstance(entry[key], kind) for key, kind in kinds.items())
    except (ValueError, KeyError, TypeError, RecursionError):
        whole = False
    if not whole:
        raise LedgerError(
            f"'{path}' line {number} is not an entry of a ledger; put the file back, or start "
            "again with another --out"
        )
    return dict(entry)
