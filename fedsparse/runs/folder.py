"""The run folder: one folder holds all that a run was told, measured and made.

`config.toml`, `run.json` (the command, and what tells changes and damage), `metrics.jsonl`,
client rows, `checkpoints/`, and at the end `model.safetensors`, `mask.safetensors`,
`clients.parquet` and, last, `summary.json`. Whenever the process dies, what is there is whole
and can be resumed.
"""

import fcntl
import glob
import hashlib
import json
import os
import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from functools import cached_property
from pathlib import Path
from typing import Any

import safetensors.numpy

import fedsparse
from fedsparse.config import Config, differences, read_toml, resolve
from fedsparse.errors import ConfigError, RunFolderError
from fedsparse.runs import checkpoint, rows, tables
from fedsparse.runs.atomic import remove_leftovers, sync_folder, write_file, writing
from fedsparse.runs.tables import Row
from fedsparse.sparsity.mask import Mask, State

_MARK, _CONFIG, _SUMMARY = "run.json", "config.toml", "summary.json"
_RESULTS = ("model.safetensors", "mask.safetensors", "clients.parquet", "metrics.jsonl")
_START_AGAIN = "start again with another --out"
_PUT_BACK = f"put it back, or {_START_AGAIN}"


class RunFolder:
    """A run on the disk. Make one with `create` or `open`; write while holding `lock`."""

    def __init__(self, path: Path, mark: Mapping[str, Any]) -> None:
        self.path = path
        self._mark = dict(mark)
        self.command: str = mark["command"]
        """The exact command that repeats the run."""

    @classmethod
    def create(cls, path: Path | str, config: Config, *, command: str) -> "RunFolder":
        """Make a new run folder, whole or not at all; an empty folder may already be there.

        Raises RunFolderError when `path` is a file, holds another run or anything else,
        or cannot be written.
        """
        path = Path(path)
        _check_free(path)
        mark = {"fedsparse": fedsparse.__version__, "command": command, "config": _plain(config)}
        files = {_CONFIG: config.to_toml(), _MARK: tables.to_json(mark) + "\n"}
        with writing(path):
            if path.exists():
                _fill(path, files)
            else:
                _make_beside(path, files)
        run = cls(path, mark)
        run.config = config
        return run

    @classmethod
    def open(cls, path: Path | str) -> "RunFolder":
        """Return the run folder at `path`; raises RunFolderError when there is none."""
        path = Path(path)
        if not path.exists():
            raise RunFolderError(f"no run folder '{path}'; give the folder of a `fedsparse run`")
        if not (path / _MARK).is_file():
            raise RunFolderError(
                f"'{path}' is not a run folder; give the folder that `fedsparse run` wrote"
            )
        mark = _read_json(path / _MARK, _START_AGAIN)
        kinds = {"command": str, "config": dict, "files": dict}
        if not isinstance(mark, dict) or not all(
            isinstance({"files": {}, **mark}.get(key), kind) for key, kind in kinds.items()
        ):
            raise RunFolderError(
                f"'{path / _MARK}' does not hold a run's command and configuration; {_START_AGAIN}"
            )
        return cls(path, mark)

    @cached_property
    def config(self) -> Config:
        """The run's configuration with all defaults.

        Raises RunFolderError when it is broken, or is not the one that the run began with;
        `[engine]` may change, for no result depends on it, and a key that was not there yet when
        it began has its default.
        """
        written = self.settings()
        try:
            config = resolve(written)
        except ConfigError as error:
            raise RunFolderError(f"{self._config_file}: {error}; {_PUT_BACK}") from error
        for key, (began, now) in differences(self._mark["config"], _plain(config)).items():
            section, _, name = key.partition(".")
            known = (self._mark["config"], written)
            newer = not any(name in tree.get(section, {}) for tree in known)
            if section != "engine" and not newer:
                raise RunFolderError(
                    f"{self._config_file}: {key} is {_said(now)}, but the run began "
                    f"with {_said(began)}; {_PUT_BACK}"
                )
        return config

    def settings(self) -> dict[str, Any]:
        """Return `config.toml` as written; raises RunFolderError when missing or damaged."""
        if not (self.path / _CONFIG).exists():
            raise RunFolderError(f"{self._config_file} is missing; {_START_AGAIN}")
        try:
            found = read_toml(self.path / _CONFIG)
        except ConfigError as error:
            raise RunFolderError(
                f"{self._config_file} is damaged: {error}; {_START_AGAIN}"
            ) from error
        if not found:
            raise RunFolderError(f"{self._config_file} is damaged: it is empty; {_START_AGAIN}")
        return found

    @contextmanager
    def lock(self) -> Iterator[None]:
        """Hold the folder for writing; what a killed writer left is removed first.

        The system drops the lock of a process that dies. Raises RunFolderError when
        another process holds it.
        """
        with writing(self.path):
            descriptor = os.open(self.path / ".lock", os.O_RDWR | os.O_CREAT, 0o644)
        try:
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                holder = os.read(descriptor, 32).decode(errors="replace").strip()
                raise RunFolderError(
                    f"'{self.path}' is in use by process {holder or '(unknown)'}; "
                    "wait for it to end or stop it"
                ) from None
            with writing(self.path):
                os.ftruncate(descriptor, 0)
                os.pwrite(descriptor, f"{os.getpid()}\n".encode(), 0)
                self._clean()
            yield
        finally:
            os.close(descriptor)

    def _clean(self) -> None:
        remove_leftovers(self.path)
        remove_leftovers(self._checkpoints)
        checkpoint.remove(self._checkpoints, [])

    def append_metrics(self, row: Mapping[str, Any]) -> None:
        """Add a round's row to `metrics.jsonl`."""
        with writing(self.path):
            tables.append(self._metrics, [row])

    def metrics(self) -> list[Row]:
        """Return the rows of all rounds so far; a torn last line is ignored."""
        return tables.read(self._metrics)

    def append_clients(self, added: Sequence[Mapping[str, Any]]) -> None:
        """Add a round's rows of clients."""
        with writing(self.path):
            tables.append(self._clients, added)

    def clients(self) -> list[Row]:
        """Return the rows of clients so far."""
        if self._clients.exists() or not self._clients_done.exists():
            return tables.read(self._clients)
        return tables.read_parquet(self._clients_done)

    def rewind(
        self, round_number: int, last: Callable[[], Mapping[str, Any] | None] | None = None
    ) -> None:
        """Drop what belongs to rounds after `round_number`, so that a resumed run repeats them.

        `last` makes the row of that round if it is not there. Raises RunFolderError, and drops
        nothing, when rows of the rounds before are missing.
        """
        metrics = rows.until(self.metrics(), round_number)
        there = bool(metrics) and metrics[-1]["round"] == round_number
        if last is not None and not there and (row := last()) is not None:
            metrics.append(tables.plain(row))
        clients = rows.until(self.clients(), round_number)
        rows.check_metrics(self._metrics, metrics, round_number)
        rows.check_clients(self._clients, clients, metrics)
        with writing(self.path):
            (self.path / _SUMMARY).unlink(missing_ok=True)
            for path, kept in ((self._metrics, metrics), (self._clients, clients)):
                tables.rewrite(path, kept)
            later = [r for r in self.checkpoints() if r > round_number]
            checkpoint.remove(self._checkpoints, later)

    def write_json(self, name: str, value: Any) -> None:
        """Write a JSON file of the folder, whole or not at all."""
        text = tables.to_json(value) + "\n"
        with writing(self.path):
            write_file(self.path / name, text.encode())

    def read_json(self, name: str, remedy: str = "restore it") -> Any:
        """Return a JSON file of the folder; RunFolderError with `remedy` when it is broken."""
        return _read_json(self.path / name, remedy)

    def save_checkpoint(self, round_number: int, tree: Mapping[str, Any]) -> None:
        """Write the state after a round; the newest `run.keep_checkpoints` are kept.

        `tree` nests dicts and lists of numpy arrays, bytes, numbers, strings and None.
        """
        with writing(self.path):
            keep = self.config.run.keep_checkpoints
            checkpoint.save(self._checkpoints, round_number, tree, keep=keep)

    def latest_checkpoint(self, note: Callable[[str], None]) -> tuple[int, dict[str, Any]] | None:
        """Return the newest whole checkpoint and its round, None when none was written.

        `note` is told of damaged ones that are passed over; RunFolderError when all are.
        """
        return checkpoint.latest(self._checkpoints, note)

    def checkpoint(self, round_number: int) -> dict[str, Any]:
        """Return the state after a round; raises RunFolderError where its checkpoint is damaged."""
        return checkpoint.load(self._checkpoints, round_number)

    def checkpoints(self) -> list[int]:
        """Return the rounds that have a checkpoint, in rising order."""
        return checkpoint.rounds(self._checkpoints)

    def finish(self, state: State, mask: Mask | None, summary: Mapping[str, Any]) -> None:
        """Write the end result; `summary.json`, written last, says that the run is done."""
        with writing(self.path):
            content = safetensors.numpy.save({k: _contiguous(v) for k, v in state.items()})
            write_file(self.path / "model.safetensors", content)
            if mask is not None:
                write_file(self.path / "mask.safetensors", mask.to_bytes())
            tables.write_parquet(self._clients_done, self.clients())
            last = (tables.to_json(summary) + "\n").encode()
            digests = {name: _digest(self.path / name) for name in _RESULTS}
            digests[_SUMMARY] = hashlib.sha256(last).hexdigest()
            self._mark["files"] = {name: digest for name, digest in digests.items() if digest}
            self.write_json(_MARK, self._mark)
            write_file(self.path / _SUMMARY, last)
            self._clients.unlink(missing_ok=True)

    def lost(self) -> list[str]:
        """Return the files that `finish` left, and the rows, that are missing or damaged now."""
        files = self._mark.get("files", {}).items()
        return [name for name, digest in files if _digest(self.path / name) != digest]

    def digest(self, name: str) -> str | None:
        """Return the SHA-256 of a file of the folder, None when it cannot be read."""
        return _digest(self.path / name)

    @property
    def finished(self) -> bool:
        """Whether the run came to its end."""
        return (self.path / _SUMMARY).is_file()

    def summary(self) -> dict[str, Any]:
        """Return `summary.json`; raises RunFolderError when the run is not done."""
        if not self.finished:
            raise RunFolderError(
                f"run '{self.path}' is not finished; go on with `fedsparse resume {self.path}`"
            )
        remedy = f"`fedsparse resume {self.path}` makes it again"
        found = self.read_json(_SUMMARY, remedy)
        if not isinstance(found, dict):
            raise RunFolderError(f"'{self.path / _SUMMARY}' is no JSON object; {remedy}")
        return found

    @property
    def _config_file(self) -> str:
        return f"configuration '{self.path / _CONFIG}'"

    @property
    def _checkpoints(self) -> Path:
        return self.path / "checkpoints"

    @property
    def _metrics(self) -> Path:
        return self.path / "metrics.jsonl"

    @property
    def _clients(self) -> Path:
        return self.path / "clients.jsonl"

    @property
    def _clients_done(self) -> Path:
        return self.path / "clients.parquet"


def _plain(config: Config) -> dict[str, dict[str, Any]]:
    """Return a configuration as `run.json` gives it back."""
    return dict(json.loads(tables.to_json(config.model_dump())))


def _said(value: Any) -> str:
    return "unset" if value is None else json.dumps(value)


def _digest(path: Path) -> str | None:
    """Return a file's SHA-256, None when it cannot be read."""
    try:
        return hashlib.sha256(path.read_bytes()).hexdigest()
    except OSError:
        return None


def _contiguous(array: Any) -> Any:
    return array.copy(order="C") if not array.flags.c_contiguous else array


def _check_free(path: Path) -> None:
    """Refuse a place for a new run that is taken; raises RunFolderError."""
    if (path / _MARK).exists():
        raise RunFolderError(
            f"'{path}' holds another run; go on with `fedsparse resume {path}` "
            "or choose another --out"
        )
    if path.exists() and not path.is_dir():
        raise RunFolderError(f"'{path}' is a file; choose another --out")
    with writing(path):
        if path.exists() and any(path.iterdir()):
            raise RunFolderError(f"'{path}' is not empty; choose another --out")


def _fill(folder: Path, files: Mapping[str, str]) -> None:
    """Write files into an empty folder; on an error the folder is empty again."""
    try:
        for name, text in files.items():
            write_file(folder / name, text.encode())
    except BaseException:
        for name in files:
            with suppress(OSError):
                (folder / name).unlink(missing_ok=True)
        raise


def _make_beside(path: Path, files: Mapping[str, str]) -> None:
    """Make a folder under a temporary name beside its place, then move it there."""
    made = _make_parents(path.parent)
    temporary = path.with_name(f".{path.name}.tmp-{os.getpid()}")
    try:
        _remove_dead(path)
        temporary.mkdir()
        for name, text in files.items():
            write_file(temporary / name, text.encode())
        os.rename(temporary, path)
    except BaseException:
        shutil.rmtree(temporary, ignore_errors=True)
        for parent in reversed(made):
            with suppress(OSError):
                parent.rmdir()
        raise
    sync_folder(path.parent)


def _make_parents(folder: Path) -> list[Path]:
    """Make the folders that are missing above a run; return them, outermost first."""
    missing = [p for p in (folder, *folder.parents) if not p.exists()][::-1]
    folder.mkdir(parents=True, exist_ok=True)
    return missing


def _remove_dead(path: Path) -> None:
    """Remove folders that killed processes were making for `path`."""
    for leftover in path.parent.glob(f".{glob.escape(path.name)}.tmp-*"):
        pid = leftover.name.rpartition("-")[2]
        if pid.isdigit() and (int(pid) == os.getpid() or not _alive(int(pid))):
            shutil.rmtree(leftover, ignore_errors=True)


def _alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except (PermissionError, OverflowError):
        return True
    return True


def _read_json(path: Path, remedy: str) -> Any:
    try:
        return json.loads(path.read_bytes())
    except FileNotFoundError:
        raise RunFolderError(f"run '{path.parent}' has no {path.name}; {remedy}") from None
    except OSError as error:
        raise RunFolderError(f"'{path}' cannot be read: {error.strerror or error}") from error
    except (ValueError, RecursionError) as error:
        raise RunFolderError(f"'{path}' is not valid JSON: {error}; {remedy}") from error
