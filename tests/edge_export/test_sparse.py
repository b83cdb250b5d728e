"""Sparse tensors: what is read back is what was written, and nothing else is believed."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

from edge_export import sparse
from edge_export.flat import Flat, Scale
from edge_export.reading import sparse_tensors
from fedsparse.errors import ExportError

VALUES = {
    "float32": st.floats(-(2.0**99), 2.0**99, width=32).map(lambda x: x or 1.0),
    "float16": st.floats(-(2.0**15), 2.0**15, width=16).map(lambda x: x or 1.0),
    "int8": st.integers(-127, 127).map(lambda x: x or 1),
}


def through_a_file(csr, scale=None):
    """Write a file with one sparse constant, and return it as it is read back."""
    flat = Flat()
    constant = flat.sparse("w/kept", csr, scale)
    dense = flat.value("w", csr.shape, str(csr.values.dtype), scale)
    flat.add("DENSIFY", [constant], dense)
    (found,) = sparse_tensors(flat.finish([], [dense], "test"), "file")
    return found.csr


@st.composite
def tensors(draw):
    kind = draw(st.sampled_from(sorted(VALUES)))
    shape = draw(arrays.array_shapes(min_dims=1, max_dims=4, min_side=1, max_side=6))
    kept = draw(arrays.arrays(np.bool_, shape, fill=st.just(False)))
    values = draw(arrays.arrays(np.dtype(kind), shape, elements=VALUES[kind]))
    return np.where(kept, values, 0).astype(kind), kept


@given(tensors())
@settings(deadline=None, max_examples=150)
def test_mask_and_values_come_back_bit_for_bit(tensor):
    dense, kept = tensor
    scale = Scale(np.ones(1, np.float32)) if dense.dtype == np.int8 else None
    back, mask = sparse.decode(through_a_file(sparse.encode(dense), scale))
    assert back.dtype == dense.dtype
    assert back.tobytes() == dense.tobytes()
    np.testing.assert_array_equal(mask, kept)


@given(tensors())
@settings(deadline=None, max_examples=50)
def test_a_kept_zero_stays_kept(tensor):
    dense, kept = tensor
    back, mask = sparse.decode(through_a_file(sparse.encode(np.zeros_like(dense), kept)))
    assert not back.any()
    np.testing.assert_array_equal(mask, kept)


@pytest.mark.parametrize(
    ("columns", "index"), [(256, "uint8"), (257, "uint16"), (65536, "uint16"), (65537, "int32")]
)
def test_indices_are_as_wide_as_the_last_column_asks(columns, index):
    dense = np.zeros((2, columns), np.float32)
    dense[:, -1] = 1, 2
    csr = through_a_file(sparse.encode(dense))
    assert sparse.encode(dense).indices.dtype == index
    np.testing.assert_array_equal(sparse.decode(csr)[0], dense)


@pytest.mark.parametrize(
    ("rows", "segment"), [(255, "uint8"), (256, "uint16"), (65535, "uint16"), (65536, "int32")]
)
def test_row_starts_are_as_wide_as_the_number_of_values_asks(rows, segment):
    dense = np.ones((rows, 1), np.int8)
    csr = sparse.encode(dense)
    assert csr.segments.dtype == segment
    np.testing.assert_array_equal(sparse.decode(through_a_file(csr))[0], dense)


def test_bytes_are_values_indices_and_row_starts():
    dense = np.eye(10, dtype=np.float32)
    assert sparse.encode(dense).nbytes == 10 * 4 + 10 + 11


BROKEN = {
    "an index 3 is out of range for 3 columns": {"indices": [0, 3]},
    "the indices of a row do not rise": {"indices": [1, 1]},
    "do not fit a tensor": {"segments": [0, 2]},
    "row starts": {"segments": [1, 1, 2]},
    "2 values for 2 indices in 1 places": {"segments": [0, 1, 1]},
    "3 values": {"values": [1, 2, 3]},
}


@pytest.mark.parametrize("said", BROKEN)
def test_what_is_no_such_tensor_is_refused(said):
    parts = {"values": [1, 2], "segments": [0, 2, 2], "indices": [0, 2]} | BROKEN[said]
    csr = sparse.Csr((2, 3), *(np.array(parts[n]) for n in ("values", "segments", "indices")))
    with pytest.raises(ExportError, match=said):
        sparse.decode(csr)
    with pytest.raises(ExportError, match=said):
        through_a_file(
            sparse.Csr(
                csr.shape,
                csr.values.astype(np.float32),
                sparse.narrowest(csr.segments),
                sparse.narrowest(csr.indices),
            )
        )


def test_an_index_below_zero_is_refused():
    parts = (np.ones(1), np.array([0, 1]), np.array([-1]))
    with pytest.raises(ExportError, match="an index -1 is out of range"):
        sparse.decode(sparse.Csr((1, 3), *parts))


def test_a_number_has_no_rows():
    with pytest.raises(ExportError, match="cannot be stored sparsely"):
        sparse.encode(np.float32(1).reshape(()))
