"""The run that is to forget: its last model and mask, and the norms of updates that it kept."""

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import safetensors.numpy
from safetensors import SafetensorError

from fedsparse.errors import ConfigError, MaskError, RunFolderError
from fedsparse.runs import RunFolder
from fedsparse.sparsity import Mask, State
from strategies.task import Task, masked

MODEL, MASK = "model.safetensors", "mask.safetensors"

Norms = Mapping[int, Mapping[int, list[float]]]
"""By round and client: how far each tensor that travels was moved."""


@dataclass(frozen=True)
class Parent:
    """A finished run: its folder, and its model, zero where the mask prunes."""

    folder: RunFolder
    state: State
    mask: Mask | None


def load(path: str, digest: str, task: Task) -> Parent:
    """Return the run at `path`, whose model has this SHA-256 (any, if '').

    Raises ConfigError without a path, RunFolderError for a run without such a model, or whose
    model or mask is not of the task's.
    """
    if not path:
        raise ConfigError(
            "strategy.parent is unset; `fedsparse unlearn RUN` names the run that is to forget"
        )
    folder = RunFolder.open(path)
    state = _model(Path(path) / MODEL, digest, task)
    mask = _mask(Path(path) / MASK, task)
    return Parent(folder, masked(state, mask), mask)


def _model(path: Path, digest: str, task: Task) -> State:
    try:
        content = path.read_bytes()
        found = safetensors.numpy.load(content)
    except FileNotFoundError:
        raise RunFolderError(
            f"run '{path.parent}' has no {MODEL}; finish it with `fedsparse resume {path.parent}`"
        ) from None
    except (OSError, SafetensorError) as error:
        raise RunFolderError(f"'{path}' cannot be read: {error}") from error
    if digest and hashlib.sha256(content).hexdigest() != digest:
        raise RunFolderError(
            f"'{path}' is not the model that was to forget (strategy.parent_model); "
            "restore it, or start again with another --out"
        )
    shapes = {name: value.shape for name, value in found.items()}
    if shapes != {name: tuple(shape) for name, shape in task.schema.tensors}:
        raise RunFolderError(f"'{path}' holds another model; both runs need one [model] and [data]")
    return {name: np.asarray(found[name], np.float32) for name in task.schema.names}


def _mask(path: Path, task: Task) -> Mask | None:
    if not path.exists():
        return None
    try:
        mask = Mask.load(path)
    except MaskError as error:
        raise RunFolderError(f"{error}; restore it") from error
    if mask.shapes != task.shapes:
        raise RunFolderError(f"'{path}' covers other tensors than those that are pruned here")
    return mask


def norms(folder: RunFolder) -> Norms:
    """Return the norms of updates that a run kept; raises RunFolderError where it kept none."""
    found: dict[int, dict[int, list[float]]] = {}
    for row in folder.clients():
        told = row.get("update_norms")
        if row["kind"] == "train" and row["status"] == "ok" and told is not None:
            found.setdefault(row["round"], {})[row["client"]] = [float(norm) for norm in told]
    if not found:
        raise RunFolderError(
            f"run '{folder.path}' kept no norms of its clients' updates; FedEraser needs a run "
            "that was made with --set run.keep_norms=true"
        )
    return found
