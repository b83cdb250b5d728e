"""The module that other converters start from, and the ExecuTorch program made of it."""

import importlib.util

import pytest
import torch
from torch import nn

from edge_export import network, verify
from edge_export.executorch_file import emit, run
from edge_export.export import export
from edge_export.rebuilt import module_of
from edge_export.source import Source
from edge_export.storage import Storage
from fedsparse.errors import ExportError, MissingExtraError
from tests.edge_export.networks import ZOO, lived_in, pruned, samples
from tests.edge_export.test_emit import SHAPES, Residual

THERE = importlib.util.find_spec("executorch") is not None
needed = pytest.mark.skipif(not THERE, reason="needs pip install 'fedsparse[executorch]'")


def check(model, shape):
    x = samples(shape)
    with torch.no_grad():
        found = module_of(network.of(model, shape))(torch.from_numpy(x))
        torch.testing.assert_close(found, model(torch.from_numpy(x)), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("name", ZOO)
def test_a_network_is_a_module_again(name):
    check(pruned(name, ZOO[name]), ZOO[name])


@pytest.mark.parametrize("layers", SHAPES.values(), ids=SHAPES)
def test_other_layers_are_modules_again(layers):
    model = lived_in(nn.Sequential(*layers), 1.0, 1.0, torch.Generator().manual_seed(0))
    check(model, (2, 10, 10))


def test_additions_are_modules_again():
    check(lived_in(Residual(), 1.0, 1.0, torch.Generator().manual_seed(0)), (2, 5, 5))


def source_of(name):
    model, x = pruned(name, ZOO[name]), samples(ZOO[name])
    return Source(name, "here", model, ZOO[name], x, None, x, real=False)


@pytest.mark.skipif(THERE, reason="ExecuTorch is installed")
def test_without_its_package_the_extra_is_named(tmp_path):
    with pytest.raises(MissingExtraError, match=r"pip install 'fedsparse\[executorch\]'"):
        export(source_of("linear"), tmp_path / "m.pte")
    assert list(tmp_path.iterdir()) == []


@needed
@pytest.mark.parametrize("name", ["linear", "cnn"])
def test_a_program_computes_what_the_model_computes(name, tmp_path):
    row = export(source_of(name), tmp_path / "m.pte").row()
    assert row["runtime"] == "ExecuTorch"
    assert row["relative_difference"] < 1e-5
    assert row["file_bytes"] == (tmp_path / "m.pte").stat().st_size


@needed
def test_a_program_that_is_none_is_one_line():
    with pytest.raises(ExportError, match=r"^ExecuTorch does not take the file: [^\n]+$"):
        run(b"no program at all", samples((1, 8, 8)))


@needed
def test_windows_of_a_pool_and_additions_are_lowered():
    for model, shape in (
        (nn.Sequential(*SHAPES["uneven windows"]), (2, 10, 10)),
        (Residual(), (2, 5, 5)),
    ):
        lived_in(model, 1.0, 1.0, torch.Generator().manual_seed(0))
        content = emit(network.of(model, shape), Storage(), "a test").content
        limits = verify.tolerance_of(Storage())
        verify.verify(content, model, samples(shape), None, limits, runtime=run)
