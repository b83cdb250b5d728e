"""A converter's dense file becomes what direct emission writes: sparse, short, no leftovers."""

import importlib.util

import numpy as np
import pytest

from edge_export import network, verify
from edge_export.emit import emit
from edge_export.export import LITERT_TORCH, export
from edge_export.flat import Flat
from edge_export.reading import parsed, sparse_tensors
from edge_export.rewrite import digest, rewritten
from edge_export.schema import schema
from edge_export.source import Source
from edge_export.storage import F16, INT8, Storage
from edge_export.verify import run, tolerance_of
from fedsparse.errors import ExportError, MissingExtraError
from tests.edge_export.networks import ZOO, pruned, samples

THERE = importlib.util.find_spec("litert_torch") is not None
needed = pytest.mark.skipif(not THERE, reason="needs pip install 'fedsparse[export]'")
STORAGES = (Storage(), Storage(sparse=True), Storage(F16, sparse=True), Storage(INT8, sparse=True))


def operators(content):
    model = parsed(content, "file")
    names = {number: name for name, number in vars(schema().BuiltinOperator).items()}
    graph = model.subgraphs[0]
    return [names[model.operatorCodes[op.opcodeIndex].builtinCode] for op in graph.operators]


@pytest.mark.parametrize("name", ["linear", "cnn", "mobilenet-v1", "resnet18"])
def test_it_is_the_file_that_direct_emission_writes(name):
    model, x = pruned(name, ZOO[name]), samples(ZOO[name])
    found = network.of(model, ZOO[name])
    dense = emit(found, Storage()).content
    names = {digest(layer.weight): layer.name for layer in found.weighted()}
    for storage in STORAGES:
        direct, ours = emit(found, storage), rewritten(dense, storage, names, "fedsparse")
        assert ours.stored == direct.stored
        assert operators(ours.content) == operators(direct.content)
        assert len(ours.content) == pytest.approx(len(direct.content), rel=0.02)
        np.testing.assert_array_equal(run(ours.content, x), run(direct.content, x))
        back, kept = (
            {t.name: t.csr.values.tobytes() for t in sparse_tensors(file.content, "file")}
            for file in (ours, direct)
        )
        assert back == kept


def transposed(order, axes, shape, keep=False):
    """Return a file that turns an image and averages it, and holds things that nothing reads."""
    flat = Flat()
    x = flat.value("x", shape)
    flat.value("of no operator", (1, 2))
    turned = flat.value("turned", tuple(shape[n] for n in order))
    flat.add("TRANSPOSE", [x, flat.constant("order", np.array(order, np.int32))], turned)
    left = [shape[n] for place, n in enumerate(order) if place not in axes]
    mean = flat.value("mean", tuple(left))
    flat.add("MEAN", [turned, flat.constant("axes", np.array(axes, np.int32))], mean, keepDims=keep)
    unread = flat.value("unread", tuple(left))
    flat.add("RELU", [mean], unread)
    flat.add("RELU6", [mean], made := flat.value("made", tuple(left)))
    return flat.finish([x], [made], "a test")


@pytest.mark.parametrize(
    ("order", "axes", "found"),
    [
        ((0, 3, 1, 2), (2, 3), ["MEAN", "RELU6"]),
        ((0, 3, 1, 2), (-1, -2), ["MEAN", "RELU6"]),
        ((0, 3, 2, 1), (2,), ["TRANSPOSE", "MEAN", "RELU6"]),  # what is left would be turned
    ],
)
def test_a_mean_after_a_transposition_averages_before_it(order, axes, found):
    places = tuple(n % 4 for n in axes)
    content = transposed(order, places, (1, 4, 5, 3))
    ours = rewritten(content, Storage(), {}, "a test").content
    assert operators(ours) == found
    names = {bytes(t.name) for t in parsed(ours, "file").subgraphs[0].tensors}
    assert not names & {b"of no operator", b"unread"}
    x = samples((3, 4, 5))
    np.testing.assert_allclose(run(ours, x), run(content, x), rtol=1e-6)


def source_of(name, shape):
    model = pruned(name, shape)
    x = samples(shape)
    if name == "transformer":
        x = np.random.default_rng(0).integers(0, 256, (8, *shape))
    return Source(name, "here", model, shape, x, None, x, real=False)


@pytest.mark.skipif(THERE, reason="litert-torch is installed")
def test_without_its_package_the_extra_is_named(tmp_path):
    with pytest.raises(MissingExtraError, match=r"pip install 'fedsparse\[export\]'"):
        export(source_of("transformer", (16,)), tmp_path / "m.tflite", route=LITERT_TORCH)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("file", "values", "said"),
    [
        ("m.onnx", "f32", r"--route litert-torch leads to .tflite files, not .onnx"),
        ("m.tflite", "int8-dynamic", r"--route litert-torch has no int8 arithmetic"),
    ],
)
def test_what_the_route_does_not_lead_to_is_refused(file, values, said, tmp_path):
    source = source_of("linear", ZOO["linear"])
    with pytest.raises(ExportError, match=said):
        export(source, tmp_path / file, values=values, route=LITERT_TORCH)


@needed
@pytest.mark.parametrize(
    ("name", "shape", "values"),
    [
        ("transformer", (16,), "f32"),
        ("transformer", (16,), "int8"),
        ("mobilenet-v1", (3, 32, 32), "f32"),
        ("cnn", (1, 8, 8), "f16"),
    ],
)
def test_a_converted_model_is_sparse_and_verified(name, shape, values, tmp_path, capfd):
    out = tmp_path / "m.tflite"
    row = export(source_of(name, shape), out, values=values, route=LITERT_TORCH).row()
    assert capfd.readouterr().out == ""
    assert row["route"] == "litert-torch"
    assert row["layout"] == "sparse"
    assert row["file_bytes"] == out.stat().st_size < 0.8 * row["dense_bytes"]
    content = out.read_bytes()
    assert "DENSIFY" in operators(content)
    limits = tolerance_of(Storage({"f32": "f32", "f16": F16, "int8": INT8}[values]))
    source = source_of(name, shape)
    verify.verify(content, source.model, source.samples, None, limits)
