"""What is exported: a finished run's model, a client's personal one, or a file of weights."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import safetensors.numpy
from numpy.typing import NDArray
from safetensors import SafetensorError
from torch import nn

from fedsparse import data, models
from fedsparse.data import Dataset
from fedsparse.errors import ExportError
from fedsparse.runs import RunFolder
from fedsparse.sparsity import State

WEIGHTS, RESULT = "model.safetensors", "mark.json"
PERSONAL = "personal"
CALIBRATION = 512
"""Samples that the ranges of int8 arithmetic are found on."""
RANDOM = 64
"""Random samples that a file without data is compared on."""

Floats = NDArray[np.float32]


@dataclass(frozen=True)
class Source:
    """A model in evaluation, with samples to verify it on and to calibrate with.

    `samples` is (n, *input_shape), `labels` (n,) or None, `calibration` likewise samples; `real`
    tells whether they are data of the run or random numbers.
    """

    name: str
    origin: str
    model: nn.Module
    input_shape: tuple[int, ...]
    samples: Floats
    labels: NDArray[np.int64] | None
    calibration: Floats
    real: bool


def of(
    path: Path,
    *,
    client: int | None = None,
    model: str | None = None,
    input_shape: Sequence[int] | None = None,
    classes: int | None = None,
    width: float = 1.0,
) -> Source:
    """Return the model of a run folder, or of a file of weights in or outside of one.

    A file outside of a run needs the model's name, its input's shape and its classes. Raises
    ExportError, and what run folders, data and models raise.
    """
    if path.is_dir():
        return _of_run(path, path / WEIGHTS, client)
    if not path.is_file():
        raise ExportError(f"'{path}' is neither a run folder nor a file of weights")
    if client is not None:
        raise ExportError("--client is of a run folder; give the run instead of a file")
    if model is None and (path.parent / "config.toml").is_file():
        return _of_run(path.parent, path, None)
    if model is None or input_shape is None or classes is None:
        raise ExportError(
            f"'{path}' lies in no run folder; say what it is with --model, --input-shape and "
            "--classes"
        )
    return _of_file(path, model, tuple(input_shape), classes, width)


def _of_run(run: Path, weights: Path, client: int | None) -> Source:
    folder = RunFolder.open(run)
    folder.summary()  # refuses one that is not finished
    if client is not None:
        weights = run / PERSONAL / str(client) / WEIGHTS
        if not weights.is_file():
            raise ExportError(
                f"'{run}' holds no model of client {client}; make it with "
                f"`fedsparse personalize {run} --clients {client}`"
            )
    elif weights == run / WEIGHTS and WEIGHTS in folder.lost():
        raise ExportError(
            f"'{weights}' is missing or damaged; `fedsparse resume {run}` makes it again"
        )
    elif not weights.is_file():
        raise ExportError(
            f"'{run}' has no global model; export a client's with --client, after "
            f"`fedsparse personalize {run}`"
        )
    config = folder.config
    federated = data.of(config)
    model = models.build(
        config.model.name,
        input_shape=federated.input_shape,
        classes=federated.classes,
        width=config.model.width,
    )
    _load(model, weights)
    test = federated.test
    if client is not None and len(federated.client(client).test.y):
        test = federated.client(client).test
    x, y = _arrays(test)
    return Source(
        name=config.model.name,
        origin=str(run) if client is None else f"{run}, client {client}",
        model=model.eval(),
        input_shape=federated.input_shape,
        samples=x,
        labels=y.astype(np.int64) if federated.classes > 1 else None,
        calibration=_calibration(federated.public, federated.train),
        real=True,
    )


def _of_file(
    path: Path, name: str, input_shape: tuple[int, ...], classes: int, width: float
) -> Source:
    model = models.build(name, input_shape=input_shape, classes=classes, width=width)
    _load(model, path)
    shape = (RANDOM, *input_shape)
    samples, others = (_random(model, shape, seed) for seed in (0, 1))
    origin = str(path)
    return Source(name, origin, model.eval(), input_shape, samples, None, others, real=False)


def _load(model: nn.Module, path: Path) -> None:
    try:
        state: State = safetensors.numpy.load(path.read_bytes())
    except OSError as error:
        raise ExportError(f"'{path}' cannot be read: {error.strerror or error}") from None
    except (SafetensorError, ValueError, TypeError, KeyError) as error:
        reason = str(error).splitlines()[0][:120]
        raise ExportError(f"'{path}' is no file of weights: {reason}") from None
    models.load_state(model, {name: np.asarray(value) for name, value in state.items()})


def _random(model: nn.Module, shape: tuple[int, ...], seed: int) -> Floats:
    """Return random samples: tokens, which are whole numbers, for a model that embeds them."""
    rng = np.random.default_rng(seed)
    tokens = next((m for m in model.modules() if isinstance(m, nn.Embedding)), None)
    if tokens is not None:
        return np.asarray(rng.integers(0, tokens.num_embeddings, shape))
    return rng.standard_normal(shape).astype(np.float32)


def _arrays(samples: Dataset) -> tuple[Floats, NDArray[np.generic]]:
    return np.asarray(samples.x), np.asarray(samples.y)


def _calibration(public: Dataset, train: Dataset) -> Floats:
    """Return samples that the server may use: its own, or else the first of the training set."""
    chosen = public if len(public.y) else train
    return np.asarray(chosen.x[:CALIBRATION])
