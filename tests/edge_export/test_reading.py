"""Files that were cut, changed or are something else are refused in one line."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from edge_export import network, sparse
from edge_export.emit import emit
from edge_export.flat import Flat
from edge_export.reading import read, sparse_tensors
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
