"""Files that were cut, changed or are something else are refused in one line."""

import tracemalloc

import flatbuffers
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from edge_export import device_graph, extent, network, sparse
from edge_export.emit import emit
from edge_export.flat import Flat
from edge_export.reading import parsed, read, sparse_tensors
from edge_export.schema import IDENTIFIER, packed, schema
from edge_export.storage import Storage
from fedsparse.errors import ExportError
from tests.edge_export.networks import pruned

FILE = emit(network.of(pruned("mlp", (1, 8, 8)), (1, 8, 8)), Storage(sparse=True)).content


def refused_or_read(content):
    """Return a file's sparse tensors; None where it is refused, in one line with its name."""
    try:
        return sparse_tensors(content, "x.tflite")
    except ExportError as error:
        said = str(error)
    assert "\n" not in said
    assert "x.tflite" in said
    return None


@given(st.integers(0, len(FILE) - 1))
@settings(max_examples=60, deadline=None)
def test_a_truncated_file_is_refused_or_lacks_nothing(length):
    found = refused_or_read(FILE[:length])
    if found is not None:  # only the padding at its end is gone
        whole = sparse_tensors(FILE, "whole.tflite")
        assert [t.csr.values.tobytes() for t in found] == [t.csr.values.tobytes() for t in whole]


@given(st.integers(8, len(FILE) - 1), st.integers(1, 255))
@settings(max_examples=150, deadline=None)
def test_a_changed_byte_is_refused_or_gives_tensors_that_hold_together(place, change):
    content = bytearray(FILE)
    content[place] ^= change
    for tensor in refused_or_read(bytes(content)) or ():
        sparse.check(tensor.csr)


@pytest.mark.parametrize("content", [b"", b"TFL3", b"\x89PNG\r\n\x1a\n" + bytes(64)])
def test_what_is_no_such_file_is_named(content, tmp_path):
    (tmp_path / "x.tflite").write_bytes(content)
    with pytest.raises(ExportError, match=r"x\.tflite' is no \.tflite file"):
        read(tmp_path / "x.tflite")


def test_a_missing_file_is_named(tmp_path):
    with pytest.raises(ExportError, match="No such file"):
        read(tmp_path / "x.tflite")


def test_an_index_out_of_range_is_named_with_its_tensor():
    flat = Flat()
    parts = (np.ones(2, np.float32), np.array([0, 2], np.uint8), np.array([1, 200], np.uint8))
    made = flat.sparse("conv/weight/kept", sparse.Csr((1, 9), *parts))
    content = flat.finish([], [made], "test")
    said = "sparse tensor 'conv/weight/kept': an index 200 is out of range for 9 columns"
    with pytest.raises(ExportError, match=said):
        sparse_tensors(content, "x.tflite")


# -- files that hold one offset many times ------------------------------------------------------


def vector_of(builder, start, one, times):
    start(builder, times)
    for _ in range(times):
        builder.PrependUOffsetTRelative(one)
    return builder.EndVector()


def bomb(subgraphs, tensors, name="", operators=0, option=""):
    """A file of few bytes, whose vectors name the same subgraph, tensor and operator."""
    s, b = schema(), flatbuffers.Builder(1024)
    called, text = b.CreateString(option), b.CreateString(name)
    s.StablehloCustomCallOptionsStart(b)
    s.StablehloCustomCallOptionsAddCallTargetName(b, called)
    options = s.StablehloCustomCallOptionsEnd(b)
    s.OperatorStart(b)
    s.OperatorAddBuiltinOptions2Type(b, s.BuiltinOptions2.StablehloCustomCallOptions)
    s.OperatorAddBuiltinOptions2(b, options)
    operator = s.OperatorEnd(b)
    s.TensorStart(b)
    s.TensorAddName(b, text)
    tensor = s.TensorEnd(b)
    held = vector_of(b, s.SubGraphStartTensorsVector, tensor, tensors)
    done = vector_of(b, s.SubGraphStartOperatorsVector, operator, operators)
    s.SubGraphStart(b)
    s.SubGraphAddTensors(b, held)
    s.SubGraphAddOperators(b, done)
    graph = s.SubGraphEnd(b)
    graphs = vector_of(b, s.ModelStartSubgraphsVector, graph, subgraphs)
    s.BufferStart(b)
    buffers = vector_of(b, s.ModelStartBuffersVector, s.BufferEnd(b), 1)
    s.ModelStart(b)
    s.ModelAddSubgraphs(b, graphs)
    s.ModelAddBuffers(b, buffers)
    b.Finish(s.ModelEnd(b), file_identifier=IDENTIFIER)
    return bytes(b.Output())


@pytest.mark.parametrize(
    "content",
    [
        bomb(300, 3000),
        bomb(1, 1000),
        bomb(1, 100, name="n" * 10_000),
        bomb(1, 1, operators=100, option="o" * 10_000),
    ],
    ids=["subgraphs", "tensors", "names", "options"],
)
@pytest.mark.parametrize("reader", [sparse_tensors, device_graph.count])
def test_a_file_that_holds_less_than_it_names_is_refused_before_it_is_unpacked(
    content, reader, monkeypatch
):
    monkeypatch.setattr(schema().ModelT, "InitFromPackedBuf", lambda *_: pytest.fail("unpacked"))
    with pytest.raises(ExportError, match="its parts hold more than its bytes"):
        reader(content, "x.tflite")


def test_a_vector_is_counted_before_it_is_walked(monkeypatch):
    monkeypatch.setattr(schema().SubGraph, "Tensors", lambda *_: pytest.fail("walked"))
    with pytest.raises(ExportError, match="its parts hold more than its bytes"):
        parsed(bomb(1, 1000), "x.tflite")


def test_a_file_of_too_many_parts_is_refused(monkeypatch):
    monkeypatch.setattr(extent, "MOST_TABLES", 10)
    with pytest.raises(ExportError, match="more than 10 parts"):
        parsed(FILE, "x.tflite")


def test_what_each_part_of_an_honest_file_takes_is_less_than_its_bytes():
    parsed(FILE, "x.tflite")
    model = parsed(FILE, "x.tflite")
    model.subgraphs *= 2  # packed, they are two, with bytes of their own
    assert len(parsed(packed(model), "x.tflite").subgraphs) == 2


def test_a_buffer_that_many_sparse_tensors_name_is_held_once():
    flat = Flat()
    ones, index = np.ones(250_000, np.float32), np.array([0], np.uint8)
    made = flat.sparse("w", sparse.Csr((1, 9), ones[:1], np.array([0, 1], np.uint8), index))
    content = flat.finish([], [made], "test")
    model = parsed(content, "x.tflite")
    (tensor,) = [t for t in model.subgraphs[0].tensors if t.sparsity is not None]
    model.buffers[tensor.buffer].data = ones.view(np.uint8)
    model.subgraphs[0].tensors += [tensor] * 50
    content = packed(model)
    tracemalloc.start()
    with pytest.raises(ExportError, match="it has 250000 values for 1 indices"):
        sparse_tensors(content, "x.tflite")
    most = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert most < len(content)


@pytest.mark.parametrize("name", ["two\nlines", "\u2028a", "\n"])
def test_a_tensors_name_keeps_the_message_on_one_line(name):
    flat = Flat()
    parts = (np.ones(2, np.float32), np.array([0, 2], np.uint8), np.array([1, 200], np.uint8))
    made = flat.sparse(name, sparse.Csr((1, 9), *parts))
    with pytest.raises(ExportError) as found:
        sparse_tensors(flat.finish([], [made], "test"), "x.tflite")
    assert len(str(found.value).splitlines()) == 1
