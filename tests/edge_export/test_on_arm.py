"""On emulated ARM: what is said to be computed sparsely is, and outputs are those of x86."""

import numpy as np
import pytest
import torch
from torch import nn

from edge_export import network, xnnpack
from edge_export.bench import arm
from edge_export.bench.worker import random_input
from edge_export.emit import emit
from edge_export.export import calibrated
from edge_export.storage import INT8, STATIC, Storage
from edge_export.verify import run
from tests.edge_export.emulated import emulated
from tests.edge_export.networks import lived_in, samples

pytestmark = emulated

SHAPE = (1, 16, 16)
SPARSE, INTEGER = Storage(sparse=True), Storage(INT8, STATIC)


def chain(density=0.1, channels=1):
    """Return a chain over a grey image whose 1x1 convolution does most of the work."""
    layers = (
        *(nn.Conv2d(channels, 16, 3, 2, 1), nn.ReLU()),
        *(nn.Conv2d(16, 16, 3, 1, 1, groups=16), nn.ReLU()),
        *(nn.Conv2d(16, 128, 1), nn.ReLU(), nn.Conv2d(128, 64, 1), nn.ReLU()),
        *(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(64, 10)),
    )
    torch.manual_seed(0)
    model = lived_in(nn.Sequential(*layers), 1.0, 1.0, torch.Generator().manual_seed(0))
    with torch.no_grad():
        for layer in (model[4], model[6]):
            layer.weight *= torch.rand(layer.weight.shape) < density
    return network.of(model, SHAPE)


def counted(tmp_path, contents, **options):
    files = []
    for number, content in enumerate(contents):
        files.append(tmp_path / f"{number}.tflite")
        files[-1].write_bytes(content)
    return arm.instructions(files, **options)


def test_a_sparse_chain_takes_less_and_a_file_without_one_does_not(tmp_path):
    found = chain()
    assert xnnpack.wants_wider_entry(found)
    contents = [
        emit(found, storage, widen=widen).content
        for storage, widen in ((Storage(), False), (SPARSE, True), (SPARSE, False))
    ]
    dense, sparse, broken = (c.instructions for c in counted(tmp_path, contents))
    assert sparse < dense / 2
    assert broken == pytest.approx(dense, rel=0.02)


@pytest.mark.parametrize("runtime", arm.ARM_RUNTIMES)
def test_outputs_are_those_of_this_machine(tmp_path, runtime):
    found = chain()
    ranges = calibrated(found, samples(SHAPE))
    contents = [
        emit(found, storage, ranges=ranges, widen=storage.sparse).content
        for storage in (SPARSE, Storage(INT8, sparse=True), INTEGER)
    ]
    x = random_input([1, 16, 16, 1], "float32").transpose(0, 3, 1, 2)
    for content, cost in zip(contents, counted(tmp_path, contents, runtime=runtime), strict=True):
        np.testing.assert_allclose(cost.outputs[0], run(content, x), rtol=1e-5, atol=1e-5)
