"""A checkpoint's tree comes back as it went in, whatever it nests."""

import hashlib
import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from fedsparse.errors import RunFolderError
from fedsparse.runs import checkpoint
from fedsparse.runs import tree as trees

DTYPES = ["?", "i1", "<i2", "<i4", "<i8", "u1", "<u2", "<u4", "<u8", "<f2", "<f4", "<f8"]
OTHER_DTYPES = [">f4", ">i8", "<c8", "<c16", "<U3", "S4", "<M8[s]"]


def there_and_back(folder, tree):
    checkpoint.save(folder, 1, {"tree": tree}, keep=0)
    return checkpoint.load(folder, 1)["tree"]


def same(a, b):
    """Equal in type, shape, dtype and every bit; nan equals nan."""
    if isinstance(a, np.ndarray):
        return a.shape == b.shape and a.dtype == b.dtype and a.tobytes() == b.tobytes()
    if isinstance(a, dict):
        return list(a) == list(b) and all(same(a[k], b[k]) for k in a)
    if isinstance(a, list | tuple):
        return type(a) is type(b) and len(a) == len(b) and all(map(same, a, b))
    if isinstance(a, float) and math.isnan(a):
        return isinstance(b, float) and math.isnan(b)
    return type(a) is type(b) and a == b


@pytest.mark.parametrize("dtype", DTYPES + OTHER_DTYPES)
@pytest.mark.parametrize("shape", [(), (0,), (3,), (2, 0, 3), (2, 3)])
def test_arrays_of_every_dtype_and_shape_come_back(tmp_path, dtype, shape):
    array = np.arange(np.prod(shape, dtype=int)).astype(dtype).reshape(shape)
    back = there_and_back(tmp_path, array)
    assert same(array.astype(array.dtype.newbyteorder("<")), back)
    assert back.flags.writeable


def test_arrays_that_are_not_contiguous_come_back(tmp_path):
    array = np.arange(24.0).reshape(2, 3, 4).transpose(2, 0, 1)[::2]
    assert np.array_equal(there_and_back(tmp_path, array), array)


@pytest.mark.parametrize(
    "value",
    [
        None,
        True,
        0,
        -(2**200),
        1.5,
        -0.0,
        math.inf,
        -math.inf,
        math.nan,
        "ü\ud800",
        "",
        b"",
        b"\0x",
    ],
)
def test_scalars_keep_type_and_value(tmp_path, value):
    assert same(value, there_and_back(tmp_path, value))


def test_numpy_scalars_keep_their_type(tmp_path):
    for value in (np.float32(0.1), np.int64(-3), np.bool_(True), np.float64("nan")):
        assert same(np.asarray(value), np.asarray(there_and_back(tmp_path, value)))


def test_keys_that_look_like_our_marks_or_are_no_strings_are_kept(tmp_path):
    tree = {"$array": 1, "a": {7: (1, 2), "$float": "nan", None: []}, "": {}, "x/y": {"$map": []}}
    assert same(tree, there_and_back(tmp_path, tree))


def test_bytes_that_many_hold_are_hashed_once_stored_once_and_come_back_as_one(monkeypatch):
    hashed = []
    blake2b = hashlib.blake2b
    monkeypatch.setattr(hashlib, "blake2b", lambda c, **k: hashed.append(c) or blake2b(c, **k))
    mask = bytes(range(256))
    tensors = trees.Tensors()
    held = {"a": mask, "b": [mask, b"other"], 3: (bytes(bytearray(mask)),)}
    encoded = trees.encode(held, tensors)
    assert hashed == [mask, b"other"]
    assert len(tensors) == 2
    back = trees.decode(encoded, tensors)
    assert same(held, back)
    assert back["a"] is back["b"][0] is back[3][0]


LEAVES = (
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats()
    | st.text()
    | st.binary(max_size=20)
    | hnp.arrays(st.sampled_from(DTYPES), hnp.array_shapes(min_dims=0, min_side=0, max_side=3))
)
TREES = st.recursive(
    LEAVES,
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.lists(inner, max_size=2).map(tuple)
        | st.dictionaries(st.text(max_size=4) | st.integers(), inner, max_size=3)
    ),
    max_leaves=12,
)


@settings(max_examples=150, deadline=None)
@given(tree=TREES)
def test_any_tree_comes_back(tmp_path_factory, tree):
    assert same(tree, there_and_back(tmp_path_factory.getbasetemp(), tree))


@pytest.mark.parametrize(
    ("value", "named"),
    [(object(), "object at '/tree/0'"), (np.array([None]), "objects at '/tree/0'")],
)
def test_a_value_that_cannot_be_stored_is_named_with_its_place(tmp_path, value, named):
    with pytest.raises(RunFolderError, match=named):
        checkpoint.save(tmp_path, 1, {"tree": [value]}, keep=0)
    assert list(tmp_path.iterdir()) == []
