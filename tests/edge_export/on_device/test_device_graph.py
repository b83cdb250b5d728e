"""Multiply-adds that are counted from a file's graph: those that its network has."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

pytest.importorskip("ai_edge_litert", reason="pip install 'fedsparse[export]'")

from edge_export import device_graph
from edge_export.storage import Storage
from fedsparse.errors import ExportError
from tests.edge_export.on_device.exported_files import network, written

KINDS = [
    (Storage(), "f32 dense", True),
    (Storage(sparse=True), "f32 sparse", True),
    (Storage("f16"), "f16 dense", True),
    (Storage("f16", sparse=True), "f16 sparse", True),
    (Storage("int8", sparse=True), "int8 sparse", True),
    (Storage("int8", "dynamic"), "int8 dynamic", False),
    (Storage("int8", "static"), "int8 static", False),
]


def test_the_work_of_a_network_by_hand():
    """3x3 of stride 2 over 16x16, two 1x1 over 8x8, and a linear layer."""
    macs = 64 * (9 * 3 * 8 + 8 * 16 + 16 * 20) + 20 * 5
    assert network(0.0).macs() == (macs, macs)


@pytest.mark.parametrize(("storage", "name", "floating"), KINDS, ids=[k[1] for k in KINDS])
def test_a_file_counts_as_its_network_does(tmp_path, storage, name, floating):
    path = written(tmp_path / "some.tflite", storage, 0.9)
    found = device_graph.count(path.read_bytes(), "some.tflite")
    macs, kept = network(0.9).macs()
    assert (found.macs, found.layout) == (macs, "sparse" if storage.sparse else "dense")
    # A weight that int8 rounds to zero is not kept any longer.
    assert found.kept_macs == kept or (storage.values == "int8" and 0 < found.kept_macs <= kept)
    assert (found.storage, found.floating) == (name, floating)
    assert found.density == found.kept_macs / macs


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    folder = tmp_path_factory.mktemp("whole")
    return written(folder / "whole.tflite", Storage(sparse=True), 0.9).read_bytes()


@given(st.data())
def test_a_damaged_file_is_counted_or_refused_in_one_line(whole, data):
    """Whatever bytes are changed or cut off: never another error than the one that is meant."""
    content = bytearray(whole[: data.draw(st.integers(0, len(whole)))])
    for _ in range(data.draw(st.integers(0, 4))):
        if content:
            content[data.draw(st.integers(0, len(content) - 1))] = data.draw(st.integers(0, 255))
    name = "damaged.tflite"
    try:
        found = device_graph.count(bytes(content), name)
        assert 0 <= found.kept_macs <= found.macs
    except ExportError as error:
        message = str(error)
        assert (name in message, "\n" in message) == (True, False)


def test_a_graph_without_weights_is_refused(tmp_path):
    from edge_export.flat import Flat

    flat = Flat()
    one = flat.value("x", (1, 4))
    two = flat.add(
        "ADD", [one, flat.constant("one", np.ones(4, np.float32))], flat.value("y", (1, 4))
    )
    content = flat.finish([one], [two], "nothing to count")
    with pytest.raises(ExportError, match="has no convolution or linear layer"):
        device_graph.count(content, "adder.tflite")
