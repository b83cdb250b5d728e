"""The server's side of data that lie at nodes: what it has itself is a file of its own, or nothing.

`data.name = "nodes"` says so, `data.shape` and `data.classes` (or `data.labels`) what the model
takes. A file at the server (`data.path`) is its test set, and where public samples come from.
"""

from pathlib import Path

import numpy as np

from fedsparse import seeds
from fedsparse.config import DataConfig
from fedsparse.data import node_files
from fedsparse.data.dataset import FederatedData, Indices, Partition, Source
from fedsparse.data.node_files import Part, Wanted
from fedsparse.data.samples import Dataset, spread
from fedsparse.data.schema import schema_of, shape_text
from fedsparse.errors import ConfigError, DataError

NAME = "nodes"


class Elsewhere(Partition):
    """Clients whose samples the server does not have."""

    def __init__(self, clients: int) -> None:
        self.sizes = np.zeros(clients, np.int64)

    def part(self, client: int) -> Indices:
        """Return no positions."""
        return np.zeros(0, np.int64)


def source(data: DataConfig, seed: int) -> Source:
    """The nodes' own data (`data-path` there); the server tests on the file data.path, if any."""
    found = federated(data, 1, seed)
    return Source(found.train, found.test)


def federated(data: DataConfig, clients: int, seed: int) -> FederatedData:
    """Return what the server has of a run on its nodes' data: tests and public samples, or none.

    Public samples come out of the file of data.path first; what the file brings for testing, or
    else the rest, is the test set. Raises ConfigError where the model's input isn't said, DataError
    for a file that cannot be read or does not fit.
    """
    shape = data.input_shape
    if shape is None:
        raise ConfigError(
            "data.name = 'nodes' needs data.shape, the shape of one sample; set for example "
            "data.shape = '1x28x28', and data.classes or data.labels"
        )
    classes = data.class_count
    nothing = Dataset(np.zeros((0, *shape), np.float32), _labels(classes), classes)
    public = test = nothing
    if data.path:
        wanted = Wanted(shape, classes, data.label_names, data.column)
        place = Path(data.path)
        train_part, test_part = node_files.read(place, wanted, "data.path", "the server")
        whole = fitted(train_part, wanted, f"data.path = '{data.path}'")
        if data.public_samples >= len(whole) and (test_part is None or data.public_samples):
            raise DataError(
                f"data.public_samples = {data.public_samples} of the {len(whole)} samples in "
                f"'{data.path}' leave none for tests; lower data.public_samples"
            )
        rng = seeds.stream(seed, 0, seeds.SERVER, "public samples")
        chosen = spread(whole.y, data.public_samples, rng)
        public = whole.take(chosen)
        test = whole.take(np.setdiff1d(np.arange(len(whole)), chosen))
        if test_part is not None:
            test = fitted(test_part, wanted, f"data.path = '{data.path}' test")
        if data.test_samples and data.test_samples < len(test):
            rng = seeds.stream(seed, 0, seeds.SERVER, "test samples")
            test = test.take(spread(test.y, data.test_samples, rng))
        nothing = Dataset(whole.x[:0], nothing.y, nothing.classes)
    return FederatedData(nothing, test, public, Elsewhere(clients), data.client_test_fraction, seed)


def fitted(part: Part, wanted: Wanted, where: str) -> Dataset:
    """Return a file's samples as the model takes them; raises DataError for those it does not."""
    x, y = part
    found = Dataset(x, y, wanted.classes)
    tokens = x.dtype.kind == "i"
    wrong = schema_of(found).misfit(wanted.shape, wanted.classes, tokens)
    if wrong is not None:
        raise DataError(f"{where}: {wrong}")
    return Dataset(x.reshape(len(x), *wanted.shape), y, wanted.classes)


def check_declared(data: DataConfig, train: Dataset) -> None:
    """Raise DataError where `data.shape`, which tells nodes of the input, is not the data's own."""
    if data.input_shape is None:
        return
    own = tuple(train.x.shape[1:])
    if (own, train.classes) != (data.input_shape, data.class_count):
        raise DataError(
            f"data.shape = '{data.shape}' with {data.class_count} classes: {data.name} has samples "
            f"of {shape_text(own)} and {train.classes} classes; say the same, or leave it out"
        )


def _labels(classes: int) -> np.ndarray:
    return np.zeros(0, np.float32 if classes == 1 else np.int64)
