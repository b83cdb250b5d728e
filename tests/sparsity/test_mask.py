"""Masks: set algebra, equality by digest, application in place, and files that are whole."""

import os
from math import prod

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from fedsparse import models
from fedsparse.errors import MaskError
from fedsparse.sparsity import Mask

QUICK = settings(max_examples=80, derandomize=True, deadline=None, database=None)
SIDES = st.lists(st.integers(0, 5), max_size=4).map(tuple)
SHAPES = st.dictionaries(st.text("abw.", min_size=1, max_size=8), SIDES, max_size=3)


@st.composite
def masks(draw: st.DrawFn, count: int = 1) -> tuple[Mask, ...]:
    """Draw masks of one model: some names, with shapes of 0 to 4 dimensions."""
    shapes = draw(SHAPES)
    return tuple(
        Mask.from_arrays({name: draw(bits(shape)) for name, shape in shapes.items()})
        for _ in range(count)
    )


def bits(shape: tuple[int, ...]) -> st.SearchStrategy[np.ndarray]:
    size = prod(shape)
    flat = st.lists(st.booleans(), min_size=size, max_size=size)
    return flat.map(lambda values: np.array(values, bool).reshape(shape))


def two_layers() -> Mask:
    """5 of 10 weights: 3 of 6, then 2 of 4."""
    return Mask.from_arrays(
        {
            "a.weight": np.array([[1, 0, 1], [0, 0, 1]], bool),
            "b.weight": np.array([0, 1, 1, 0], bool),
        }
    )


# -- what a mask is -------------------------------------------------------------------


def test_counts_and_densities_by_hand():
    mask = two_layers()
    assert (mask.size, mask.kept, mask.density) == (10, 5, 0.5)
    assert mask.layer_kept() == {"a.weight": 3, "b.weight": 2}
    assert mask.layer_density() == {"a.weight": 0.5, "b.weight": 0.5}
    assert repr(mask) == "Mask(2 tensors, 5 of 10 kept)"


def test_bits_are_packed_first_weight_in_the_highest_bit():
    packed = two_layers().packed
    assert packed["a.weight"].tolist() == [0b10100100]
    assert packed["b.weight"].tolist() == [0b01100000]


def test_names_keep_their_order():
    mask = Mask.full({"z": (1,), "a": (2,), "m": (3,)})
    assert mask.names == ("z", "a", "m")
    assert [name for name, _ in mask.items()] == ["z", "a", "m"]
    assert len(mask) == 3
    assert "a" in mask
    assert "b" not in mask


def test_a_mask_over_nothing_keeps_all_of_it():
    empty = Mask.full({})
    assert (empty.size, empty.kept, empty.density) == (0, 0, 1.0)
    assert Mask.full({"a": (0, 3)}).layer_density() == {"a": 1.0}


@QUICK
@given(masks())
def test_packing_and_unpacking_give_the_same_bits(drawn):
    (mask,) = drawn
    again = Mask.from_packed(mask.shapes, mask.packed)
    assert again == mask
    assert Mask.from_arrays(dict(mask.items())) == mask
    for name, part in again.items():
        assert part.dtype == np.bool_
        assert part.shape == mask.shapes[name]
        assert int(part.sum()) == mask.layer_kept()[name]


@pytest.mark.parametrize("axes", [(1, 0, 2), (2, 1, 0)])
def test_arrays_in_any_memory_order_give_the_same_mask(axes):
    array = np.random.default_rng(0).random((3, 4, 5)) < 0.5
    turned = array.transpose(axes)
    assert not turned.flags.c_contiguous
    assert Mask.from_arrays({"a": turned}) == Mask.from_arrays({"a": turned.copy(order="C")})
    assert np.array_equal(Mask.from_arrays({"a": turned})["a"], turned)


def test_a_mask_cannot_be_changed():
    mask = two_layers()
    for array in (mask["a.weight"], mask.packed["a.weight"]):
        with pytest.raises(ValueError, match="read-only"):
            array[0] = 0
    with pytest.raises(TypeError):
        mask.packed["a.weight"] = np.zeros(1, np.uint8)
    with pytest.raises(TypeError):
        mask.shapes["a.weight"] = (6,)


def test_a_mask_does_not_follow_the_arrays_that_it_was_made_of():
    packed = np.array([0b10100100], np.uint8)
    mask = Mask({"a": (6,)}, {"a": packed})
    packed[:] = 0
    assert mask.kept == 3


# -- set algebra ----------------------------------------------------------------------


@QUICK
@given(masks())
def test_what_a_mask_takes_of_a_state_it_spreads_again(drawn):
    (mask,) = drawn
    rng = np.random.default_rng(0)
    state = {n: rng.normal(size=s).astype(np.float32) for n, s in mask.shapes.items()}
    state["bias"] = np.ones(3, np.float32)
    mask.apply_(state)
    whole = mask.spread(mask.take(state))
    assert list(whole) == list(state)
    for name, value in state.items():
        np.testing.assert_array_equal(whole[name], value)


@given(masks(2))
def test_union_and_intersection_commute(drawn):
    a, b = drawn
    assert a & b == b & a
    assert a | b == b | a
    assert a ^ b == b ^ a


@QUICK
@given(masks(3))
def test_intersection_distributes_over_union(drawn):
    a, b, c = drawn
    assert a & (b | c) == (a & b) | (a & c)


@QUICK
@given(masks(2))
def test_de_morgan_within_the_full_mask(drawn):
    a, b = drawn
    full = Mask.full(a.shapes)
    assert full - (a & b) == (full - a) | (full - b)
    assert full - (a | b) == (full - a) & (full - b)
    assert full - (full - a) == a


@QUICK
@given(masks(2))
def test_counts_add_up(drawn):
    a, b = drawn
    assert a.kept + b.kept == (a & b).kept + (a | b).kept
    assert (a - b).kept == a.kept - (a & b).kept
    assert a.hamming(b) == (a ^ b).kept == (a - b).kept + (b - a).kept
    assert a.kept == sum(int(part.sum()) for _, part in a.items())


@QUICK
@given(masks(2))
def test_operators_are_numpys_bit_by_bit(drawn):
    a, b = drawn
    for name in a.names:
        assert np.array_equal((a & b)[name], a[name] & b[name])
        assert np.array_equal((a | b)[name], a[name] | b[name])
        assert np.array_equal((a ^ b)[name], a[name] ^ b[name])
        assert np.array_equal((a - b)[name], a[name] & ~b[name])


def test_overlap_is_jaccards():
    a = Mask.from_arrays({"a": np.array([1, 1, 1, 0], bool)})
    b = Mask.from_arrays({"a": np.array([0, 1, 1, 1], bool)})
    none = Mask.from_arrays({"a": np.zeros(4, bool)})
    assert a.overlap(b) == 2 / 4
    assert a.overlap(a) == none.overlap(none) == 1.0
    assert a.overlap(none) == 0.0


@pytest.mark.parametrize(
    "other", [{"a": (4,)}, {"b": (2, 2)}, {"a": (2, 2), "b": (1,)}, {}], ids=str
)
def test_masks_of_unlike_models_do_not_combine(other):
    with pytest.raises(MaskError, match="unlike models"):
        Mask.full({"a": (2, 2)}) & Mask.full(other)


# -- equality -------------------------------------------------------------------------


@QUICK
@given(masks(2))
def test_digests_are_equal_exactly_where_the_bits_are(drawn):
    a, b = drawn
    same = all(np.array_equal(a[name], b[name]) for name in a.names)
    assert (a == b) is same
    assert (a.digest == b.digest) is same
    assert len({a, b}) == (1 if same else 2)


@QUICK
@given(masks(), st.data())
def test_one_bit_changes_the_digest(drawn, data):
    (mask,) = drawn
    filled = [name for name, shape in mask.shapes.items() if prod(shape)]
    if not filled:
        return
    name = data.draw(st.sampled_from(filled))
    changed = {n: np.array(part) for n, part in mask.items()}
    place = data.draw(st.integers(0, changed[name].size - 1))
    changed[name].reshape(-1)[place] ^= True
    other = Mask.from_arrays(changed)
    assert other != mask
    assert other.hamming(mask) == 1


@pytest.mark.parametrize(
    "other", [{"a": (2, 3), "b": (2,)}, {"b": (2,), "a": (6,)}, {"a": (6,), "c": (2,)}], ids=str
)
def test_shapes_names_and_order_are_part_of_equality(other):
    assert Mask.full({"a": (6,), "b": (2,)}) != Mask.full(other)


def test_a_digest_is_16_bytes_and_a_mask_equals_only_masks():
    assert len(two_layers().digest) == 16
    assert two_layers() != two_layers().digest


# -- what is refused ------------------------------------------------------------------


@pytest.mark.parametrize("dtype", [np.uint8, np.float32, np.int64])
def test_only_booleans_make_a_mask(dtype):
    with pytest.raises(MaskError, match=rf"'a' is {np.dtype(dtype)}; pass booleans"):
        Mask.from_arrays({"a": np.ones(3, dtype)})


@pytest.mark.parametrize(
    ("shape", "packed"),
    [
        ((9,), [255]),
        ((8,), [255, 0]),
        ((0,), [0]),
        ((-8,), [255]),
        ((2**62, 4), []),
        ((2**40, 2**40), [1]),
    ],
    ids=str,
)
def test_bits_that_do_not_fit_the_shape_are_refused(shape, packed):
    with pytest.raises(MaskError, match="do not fit"):
        Mask.from_packed({"a": shape}, {"a": np.array(packed, np.uint8)})


def test_bits_beyond_the_end_are_refused():
    with pytest.raises(MaskError, match="beyond the tensor's end"):
        Mask.from_packed({"a": (5,)}, {"a": np.array([0b11111100], np.uint8)})


@pytest.mark.parametrize("packed", [np.array([511]), np.array([1.0]), [300]], ids=str)
def test_bits_that_are_no_bytes_are_refused(packed):
    with pytest.raises(MaskError, match="pass bytes"):
        Mask.from_packed({"a": (8,)}, {"a": packed})


def test_names_of_bits_and_of_shapes_must_agree():
    with pytest.raises(MaskError, match="same names"):
        Mask.from_packed({"a": (8,)}, {"b": np.zeros(1, np.uint8)})


def test_a_tensor_that_is_not_covered_is_named():
    with pytest.raises(MaskError, match=r"does not cover 'c\.weight'"):
        two_layers()["c.weight"]


# -- application ----------------------------------------------------------------------


@QUICK
@given(masks())
def test_pruned_entries_of_arrays_become_zero_and_kept_ones_stay(drawn):
    (mask,) = drawn
    arrays = {name: np.full(shape, 2.5, np.float32) for name, shape in mask.shapes.items()}
    mask.apply_(arrays)
    for name, array in arrays.items():
        assert np.array_equal(array, np.where(mask[name], np.float32(2.5), np.float32(0)))


@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last], ids=str)
def test_application_is_in_place_in_any_memory_format(layout):
    torch.manual_seed(0)
    conv = nn.Conv2d(3, 4, 3).to(memory_format=layout)
    mask = Mask.from_arrays(
        {"weight": np.random.default_rng(0).random((4, 3, 3, 3)) < 0.5},
    )
    before, place = conv.weight.detach().numpy().copy(), conv.weight.data_ptr()
    mask.apply_(dict(conv.named_parameters()))
    after = conv.weight.detach().numpy()
    assert np.array_equal(after, np.where(mask["weight"], before, 0))
    assert conv.weight.data_ptr() == place
    assert conv.weight.is_contiguous(memory_format=layout)
    assert conv.weight.requires_grad


def test_a_nan_that_is_pruned_becomes_zero():
    tensor = torch.tensor([float("nan"), 1.0])
    Mask.from_arrays({"a": np.array([False, True])}).apply_({"a": tensor})
    assert tensor.tolist() == [0.0, 1.0]


def test_tensors_that_the_mask_does_not_cover_are_left_alone():
    model = models.build("cnn", input_shape=(1, 8, 8), classes=3, width=0.25)
    before = models.get_state(model)
    Mask.from_arrays({"fc2.weight": np.zeros((3, 16), bool)}).apply_(model.state_dict())
    after = models.get_state(model)
    assert not after["fc2.weight"].any()
    assert all(np.array_equal(before[n], after[n]) for n in before if n != "fc2.weight")


def test_a_missing_or_unlike_tensor_is_named():
    mask = Mask.full({"a": (2, 2)})
    with pytest.raises(MaskError, match="no tensor 'a'"):
        mask.apply_({"b": torch.zeros(2, 2)})
    with pytest.raises(MaskError, match=r"'a' has shape \(4,\), its mask \(2, 2\)"):
        mask.apply_({"a": torch.zeros(4)})


# -- files ----------------------------------------------------------------------------


@QUICK
@given(drawn=masks())
def test_saving_and_loading_give_the_same_mask(tmp_path_factory, drawn):
    (mask,) = drawn
    path = tmp_path_factory.getbasetemp() / "round-trip.safetensors"
    mask.save(path)
    again = Mask.load(path)
    assert again == mask
    assert again.names == mask.names


def test_equal_masks_make_equal_files_and_nothing_else_is_left(tmp_path):
    two_layers().save(tmp_path / "one.safetensors")
    two_layers().save(str(tmp_path / "two.safetensors"))
    one, two = sorted(tmp_path.iterdir())
    assert one.read_bytes() == two.read_bytes()


def test_a_save_that_fails_leaves_the_old_file(tmp_path, monkeypatch):
    path = tmp_path / "mask.safetensors"
    two_layers().save(path)

    def full_disk(descriptor: int) -> None:
        raise OSError("no space left")

    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", full_disk)
        with pytest.raises(OSError, match="no space"):
            Mask.full({"a": (3,)}).save(path)
    assert Mask.load(path) == two_layers()
    assert list(tmp_path.iterdir()) == [path]


def test_a_saved_mask_is_on_the_disk_before_it_takes_its_name(tmp_path, monkeypatch):
    calls = []
    monkeypatch.setattr(os, "fsync", lambda descriptor: calls.append("fsync"))
    monkeypatch.setattr(os, "replace", lambda source, target: calls.append("replace"))
    two_layers().save(tmp_path / "mask.safetensors")
    assert calls == ["fsync", "replace"]


@QUICK
@given(drawn=masks())
def test_bytes_are_those_of_the_file_and_come_back_as_the_mask(tmp_path_factory, drawn):
    (mask,) = drawn
    path = tmp_path_factory.getbasetemp() / "bytes.safetensors"
    mask.save(path)
    assert mask.to_bytes() == path.read_bytes()
    assert Mask.from_bytes(mask.to_bytes()) == mask


def test_bytes_whose_bits_do_not_match_their_digest_are_refused():
    whole = two_layers().to_bytes()
    other = Mask.full(two_layers().shapes).to_bytes()
    bits, full = (
        Mask.from_bytes(content).packed["b.weight"].tobytes() for content in (whole, other)
    )
    with pytest.raises(MaskError, match="damaged: its bits do not match its digest"):
        Mask.from_bytes(whole.replace(bits, full))


def test_every_truncated_file_is_refused(tmp_path):
    path = tmp_path / "mask.safetensors"
    two_layers().save(path)
    whole = path.read_bytes()
    for length in range(len(whole)):
        path.write_bytes(whole[:length])
        with pytest.raises(MaskError, match="no mask file"):
            Mask.load(path)


def test_every_flipped_bit_is_refused_or_harmless(tmp_path):
    path = tmp_path / "mask.safetensors"
    mask = two_layers()
    mask.save(path)
    whole = path.read_bytes()
    header = 8 + int.from_bytes(whole[:8], "little")
    for place in range(8 * len(whole)):
        damaged = bytearray(whole)
        damaged[place // 8] ^= 1 << place % 8
        path.write_bytes(damaged)
        try:
            found = Mask.load(path)
        except MaskError:
            continue
        assert found == mask
        assert place // 8 < header, "a flipped bit of the content went unnoticed"


@pytest.mark.parametrize("content", [b"", b"{}", b"\xff" * 100, bytes(1000)], ids=len)
def test_what_is_no_mask_file_is_refused(tmp_path, content):
    path = tmp_path / "mask.safetensors"
    path.write_bytes(content)
    with pytest.raises(MaskError, match="no mask file"):
        Mask.load(path)


def test_a_missing_file_and_a_folder_are_refused(tmp_path):
    with pytest.raises(MaskError, match="no mask file"):
        Mask.load(tmp_path / "nothing")
    with pytest.raises(MaskError, match="no mask file"):
        Mask.load(tmp_path)
