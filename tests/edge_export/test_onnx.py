"""An ONNX file computes what the network computes, for any number of samples."""

import numpy as np
import pytest
import torch
from torch import nn

from edge_export import network, verify
from edge_export.export import export, prepare
from edge_export.onnx_file import OPSET, STORAGES, emit, run
from edge_export.source import Source
from edge_export.storage import quantized
from edge_export.verify import tolerance_of
from fedsparse.errors import ExportError
from tests.edge_export.networks import ZOO, lived_in, pruned, samples
from tests.edge_export.test_emit import SHAPES, Residual

onnx = pytest.importorskip("onnx", reason="needs onnx: pip install 'fedsparse[onnx]'")
pytest.importorskip("onnxruntime", reason="needs onnxruntime: pip install 'fedsparse[onnx]'")


def check(model, shape):
    found, x = network.of(model, shape), samples(shape)
    for storage in STORAGES.values():
        content = emit(found, storage, "a test").content
        verify.verify(content, model, x, None, tolerance_of(storage), runtime=run)


@pytest.mark.parametrize("name", ZOO)
def test_each_model_of_the_zoo_is_written_with_each_kind_of_values(name):
    check(pruned(name, ZOO[name]), ZOO[name])


@pytest.mark.parametrize("layers", SHAPES.values(), ids=SHAPES)
def test_other_layers(layers):
    model = lived_in(nn.Sequential(*layers), 1.0, 1.0, torch.Generator().manual_seed(0))
    check(model, (2, 10, 10))


def test_additions():
    check(lived_in(Residual(), 1.0, 1.0, torch.Generator().manual_seed(0)), (2, 5, 5))


@pytest.mark.parametrize("stride", [1, 2])
@pytest.mark.parametrize("groups", [1, 2, 4])
def test_convolutions(stride, groups):
    layer = nn.Conv2d(4, 8, (3, 2), stride, (2, 1), (2, 1), groups)
    model = nn.Sequential(layer, nn.ReLU6(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 3))
    check(lived_in(model, 1.0, 1.0, torch.Generator().manual_seed(0)), (4, 9, 10))


def test_its_first_dimension_is_free_and_its_opset_is_stated():
    model, shape = pruned("cnn", (1, 8, 8)), (1, 8, 8)
    content = emit(network.of(model, shape), STORAGES["f32"], "a test").content
    loaded = onnx.load_from_string(content)
    assert [entry.version for entry in loaded.opset_import] == [OPSET]
    assert loaded.graph.input[0].type.tensor_type.shape.dim[0].dim_param == "n"
    x = samples(shape, 65)
    together = run(content, x)
    apart = np.concatenate([run(content, x[n : n + 1]) for n in (0, 64)])
    np.testing.assert_allclose(together[[0, 64]], apart, rtol=1e-5, atol=1e-6)


def test_int8_and_f16_are_stored_as_such_and_zeros_stay_zeros():
    model, shape = pruned("leaf-cnn", (1, 28, 28)), (1, 28, 28)
    found = network.of(model, shape)
    by_name = {layer.name: layer.weight for layer in found.weighted()}
    sizes = {}
    for values, storage in STORAGES.items():
        content = emit(found, storage, "a test").content
        sizes[values] = len(content)
        stored = {
            entry.name.removesuffix(".weight"): onnx.numpy_helper.to_array(entry)
            for entry in onnx.load_from_string(content).graph.initializer
            if entry.name.endswith(".weight")
        }
        for name, weight in by_name.items():
            np.testing.assert_array_equal(stored[name][weight == 0], 0)
        if values == "int8-weights":
            whole, _ = quantized(by_name["fc1"], 0)
            np.testing.assert_array_equal(stored["fc1"], whole)
    assert sizes["f16"] == pytest.approx(sizes["f32"] / 2, rel=0.05)
    assert sizes["int8-weights"] == pytest.approx(sizes["f32"] / 4, rel=0.15)


def test_removed_channels_make_a_smaller_file():
    shape = (3, 16, 16)
    model, x = pruned("resnet18", shape, density=1.0, rows=0.5), samples(shape)
    source = Source("resnet18", "here", model, shape, x, None, x, real=False)
    whole, less = (
        emit(prepare(source, keep_channels=keep), STORAGES["f32"], "a test").content
        for keep in (True, False)
    )
    assert len(less) < 0.8 * len(whole)
    verify.verify(less, model, x, None, tolerance_of(STORAGES["f32"]), runtime=run)


def test_a_file_that_is_none_is_one_line(tmp_path):
    with pytest.raises(ExportError, match=r"^onnxruntime does not run the file: [^\n]+$"):
        run(b"no model", samples((1, 8, 8)))


def test_the_figures_beside_it_predict_nothing(tmp_path):
    shape = (1, 8, 8)
    model, x = pruned("cnn", shape), samples(shape)
    source = Source("cnn", "here", model, shape, x, np.arange(8) % 10, x, real=True)
    row = export(source, tmp_path / "m.onnx", values="int8-weights").row()
    assert row["runtime"] == "onnxruntime"
    assert row["storage"] == "int8 dense"
    assert "zeros are stored" in row["sparsity"]
    assert row["predicted_gain"] is None
    assert row["sparse_layers"] == []
    assert row["file_bytes"] == (tmp_path / "m.onnx").stat().st_size < row["dense_bytes"]
