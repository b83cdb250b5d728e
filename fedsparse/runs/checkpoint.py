"""Checkpoints of a run: the newest whole one is always found, whenever the process died.

A checkpoint is `NNNNNN.json` beside the safetensors file that it names; the JSON is
written last and so commits it. Both carry a SHA-256. Equal trees give equal bytes.
"""

import hashlib
import json
import re
from collections import Counter
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import safetensors.numpy
from safetensors import SafetensorError

from fedsparse.errors import RunFolderError
from fedsparse.runs import tree as trees
from fedsparse.runs.atomic import sync_folder, write_file

_VERSION = 1


def save(folder: Path, round_number: int, tree: Mapping[str, Any], *, keep: int) -> None:
    """Write a checkpoint, then remove all but the `keep` newest (0 keeps all).

    Raises RunFolderError for a value that cannot be stored, OSError from the disk.
    """
    tensors = trees.Tensors()
    body = {"round": round_number, "tree": trees.encode(tree, tensors)}
    content = safetensors.numpy.save(tensors)
    digest = hashlib.sha256(content).hexdigest()
    tensor_file = f"{round_number:06d}-{digest[:16]}.safetensors"
    body |= {"version": _VERSION, "tensors": tensor_file, "sha256": digest}
    folder.mkdir(exist_ok=True)
    sync_folder(folder.parent)
    write_file(folder / tensor_file, content)
    write_file(_commit(folder, round_number), _seal(body))
    kept = rounds(folder)[-keep:] if keep else rounds(folder)
    remove(folder, [r for r in rounds(folder) if r not in kept])


def rounds(folder: Path) -> list[int]:
    """Return the rounds that have a checkpoint, in rising order, unchecked."""
    found = (re.fullmatch(r"(\d{6,})\.json", path.name) for path in folder.glob("*.json"))
    return sorted(int(match[1]) for match in found if match)


def load(folder: Path, round_number: int) -> dict[str, Any]:
    """Return one checkpoint's tree; raises RunFolderError when it is damaged."""
    path = _commit(folder, round_number)
    try:
        body = _unseal(path.read_bytes())
        content = (folder / body["tensors"]).read_bytes()
        if hashlib.sha256(content).hexdigest() != body["sha256"]:
            raise ValueError("its tensors are not those that were written")
        tree = trees.decode(body["tree"], safetensors.numpy.load(content))
    except OSError as error:
        raise RunFolderError(
            f"checkpoint '{path}' cannot be read: {error.strerror or error}"
        ) from error
    except (ValueError, KeyError, TypeError, RecursionError, SafetensorError) as error:
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise RunFolderError(f"checkpoint '{path}' is damaged: {reason}") from error
    return dict(tree)


def latest(folder: Path, note: Callable[[str], None]) -> tuple[int, dict[str, Any]] | None:
    """Return the newest whole checkpoint with its round, or None when there is none.

    Notes each damaged one that is passed over; raises RunFolderError when all are.
    """
    damaged = []
    for round_number in reversed(rounds(folder)):
        try:
            tree = load(folder, round_number)
        except RunFolderError as error:
            damaged.append(f"{error}; going back to the one before")
            continue
        for text in damaged:
            note(text)
        return round_number, tree
    if damaged:
        raise RunFolderError(
            f"every checkpoint in '{folder}' is damaged; start again with another --out"
        )
    return None


def remove(folder: Path, which: list[int]) -> None:
    """Remove checkpoints, and every tensor file that no checkpoint is about.

    A checkpoint is read only where its round has several tensor files: with many clients
    that takes as long as writing it.
    """
    for round_number in which:
        _commit(folder, round_number).unlink(missing_ok=True)
    commits = {
        path: folder / f"{path.name.partition('-')[0]}.json"
        for path in folder.glob("*.safetensors")
    }
    files = Counter(commits.values())
    for path, commit in commits.items():
        if not commit.exists() or (files[commit] > 1 and path.name != _tensor_file(commit)):
            path.unlink(missing_ok=True)


def _commit(folder: Path, round_number: int) -> Path:
    return folder / f"{round_number:06d}.json"


def _tensor_file(commit: Path) -> str | None:
    """Return the tensor file that a checkpoint names, None when it is damaged."""
    try:
        return str(_unseal(commit.read_bytes())["tensors"])
    except (OSError, ValueError, KeyError, TypeError):
        return None


def _seal(body: Mapping[str, Any]) -> bytes:
    text = json.dumps(body, separators=(",", ":"), allow_nan=False)
    check = hashlib.sha256(text.encode()).hexdigest()
    return f'{{"check":"{check}","checkpoint":{text}}}\n'.encode()


def _unseal(content: bytes) -> dict[str, Any]:
    sealed = json.loads(content)
    body = sealed["checkpoint"]
    if _seal(body) != content:
        raise ValueError("its JSON is not what was written")
    return dict(body)
