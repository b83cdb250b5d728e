"""A written file beside the model it was made of: the same numbers, within a stated tolerance."""

import os
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from edge_export.schema import litert
from edge_export.storage import DYNAMIC, F16, F32, STATIC, Storage
from fedsparse.errors import ExportError, VerificationError

Floats = NDArray[np.float32]
Track = Callable[[Iterable[int]], Iterable[int]]
Run = Callable[[bytes, Floats, Track], Floats]
"""Returns a file's outputs (n, outputs) on samples (n, ...)."""


@dataclass(frozen=True)
class Tolerance:
    """How far a file may be from its model.

    `difference` is the largest one of an output, as a fraction of the model's largest output;
    `accuracy` how many correct answers the file may lose, as a fraction of the samples.
    """

    difference: float
    accuracy: float


def tolerance_of(storage: Storage) -> Tolerance:
    """Return the tolerance of what a file stores and computes with."""
    if storage.values == F32:
        return Tolerance(1e-5, 0.001)
    if storage.values == F16:
        return Tolerance(5e-3, 0.002)
    return {
        STATIC: Tolerance(0.25, 0.01),
        DYNAMIC: Tolerance(0.15, 0.01),
    }.get(storage.arithmetic, Tolerance(0.1, 0.005))


@dataclass(frozen=True)
class Verified:
    """What a file's outputs are beside the model's; accuracies are None without labels."""

    samples: int
    max_difference: float
    relative_difference: float
    accuracy: float | None
    accuracy_torch: float | None
    tolerance: Tolerance

    def row(self) -> dict[str, Any]:
        """Return the figures under plain keys."""
        found = asdict(self)
        limits = found.pop("tolerance")
        return {**found, **{f"tolerance_{name}": limit for name, limit in limits.items()}}


def verify(
    content: bytes,
    model: nn.Module,
    samples: Floats,
    labels: NDArray[np.int64] | None,
    tolerance: Tolerance,
    track: Track = iter,
    runtime: Run | None = None,
) -> Verified:
    """Compare a file with its model on samples (n, ...); labels (n,) give accuracies.

    `runtime` runs the file, `run` if it is None. Raises VerificationError when it is over the
    tolerance, ExportError when it does not run.
    """
    if not len(samples):
        raise ExportError("there are no samples to compare the file and the model on")
    expected = outputs_of(model, samples)
    if not np.isfinite(expected).all():
        raise ExportError("the model's own outputs are not finite; train it again")
    found = (runtime or run)(content, samples, track)
    if found.shape != expected.shape:
        raise VerificationError(
            f"the file returns outputs {found.shape[1:]}, the model {expected.shape[1:]}"
        )
    difference = float(np.abs(found - expected).max())
    largest = float(np.abs(expected).max())
    relative = difference / largest if largest else difference
    rates = [None if labels is None else _accuracy(x, labels) for x in (found, expected)]
    result = Verified(len(samples), difference, relative, rates[0], rates[1], tolerance)
    _hold(result)
    return result


def _hold(found: Verified) -> None:
    limit = found.tolerance
    if not found.relative_difference <= limit.difference:  # NaN fails, too
        raise VerificationError(
            f"the file's outputs differ from the model's by {found.relative_difference:.2g} of the "
            f"largest one, {limit.difference:g} is allowed; choose other --values"
        )
    if found.accuracy is None or found.accuracy_torch is None:
        return
    lost = found.accuracy_torch - found.accuracy
    if lost > limit.accuracy + 1e-12:
        raise VerificationError(
            f"accuracy falls from {found.accuracy_torch:.4f} to {found.accuracy:.4f}, "
            f"{limit.accuracy:g} is allowed; choose other --values"
        )


def outputs_of(model: nn.Module, samples: Floats, batch: int = 256) -> Floats:
    """Return a model's outputs (n, outputs) in evaluation."""
    model.eval()
    with torch.no_grad():
        parts = [
            model(torch.from_numpy(samples[first : first + batch])).numpy()
            for first in range(0, len(samples), batch)
        ]
    return np.concatenate(parts).reshape(len(samples), -1)


def run(content: bytes, samples: Floats, track: Track = iter) -> Floats:
    """Return a file's outputs (n, outputs), one sample at a time, on one thread."""
    with _interpreter(content) as interpreter:
        given, made = interpreter.get_input_details()[0], interpreter.get_output_details()[0]
        rows = []
        for number in track(range(len(samples))):
            sample = samples[number]
            image = sample.transpose(1, 2, 0) if sample.ndim == 3 else sample
            if list(given["shape"][1:]) != list(image.shape):
                raise ExportError(f"the file takes {list(given['shape'])}, not {image.shape}")
            interpreter.set_tensor(
                given["index"], np.ascontiguousarray(image, given["dtype"])[None]
            )
            interpreter.invoke()
            rows.append(interpreter.get_tensor(made["index"]).reshape(-1).copy())
    return np.stack(rows)


@contextmanager
def _interpreter(content: bytes) -> Iterator[Any]:
    module = litert("interpreter")
    try:
        with silent():
            interpreter = module.Interpreter(model_content=content, num_threads=1)
            interpreter.allocate_tensors()
        yield interpreter
    except (ValueError, RuntimeError) as error:
        reason = str(error).splitlines()[0][:160] if str(error) else type(error).__name__
        raise ExportError(f"the interpreter does not run the file: {reason}") from None


@contextmanager
def silent() -> Iterator[None]:
    """Keep a runtime's own lines off stderr, which it writes to past Python."""
    with open(os.devnull, "wb") as nowhere, redirected(nowhere.fileno()):
        yield


@contextmanager
def redirected(file: int) -> Iterator[None]:
    """Send what is written to stderr past Python to an open file."""
    try:
        before = os.dup(2)
    except OSError:  # there is no stderr
        yield
        return
    try:
        os.dup2(file, 2)
        yield
    finally:
        os.dup2(before, 2)
        os.close(before)


def _accuracy(outputs: Floats, labels: NDArray[np.int64]) -> float:
    return float((outputs.argmax(1) == labels).mean())
