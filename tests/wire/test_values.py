"""Values: every bit of f32, nearest even for f16 and bf16, half a step for int8."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from fedsparse.errors import WireError
from fedsparse.wire import values

QUICK = settings(max_examples=300, derandomize=True, deadline=None, database=None)
LARGEST = float(np.finfo(np.float32).max)
SMALLEST = 2.0**-149
FINITE = arrays(np.float32, st.integers(0, 20), elements=st.floats(width=32, allow_nan=False))
FINITE = FINITE.filter(lambda array: bool(np.isfinite(array).all()))


def f32(*numbers: float) -> np.ndarray:
    return np.array(numbers, np.float32)


def back(array: np.ndarray, kind: str, *, finite: bool = True) -> np.ndarray:
    raw = values.write(array, kind)
    assert len(raw) == values.size(kind, len(array))
    read = values.read(memoryview(raw), kind, len(array), finite)
    assert (read.dtype, read.shape) == (np.float32, array.shape)
    return read


def bits(array: np.ndarray) -> list[int]:
    return array.view(np.uint32).tolist()


@pytest.mark.parametrize(
    ("numbers", "kind", "written"),
    [
        ([1.0, -2.0], "f32", "0000803f 000000c0"),
        ([1.0, -2.0], "f16", "003c 00c0"),
        ([1.0, -2.0], "bf16", "803f 00c0"),
        ([127.0, -127.0, 1.0], "int8", "0000803f 7f 81 01"),
        ([0.0, -0.0], "int8", "00000000 00 00"),
        ([], "int8", ""),
    ],
)
def test_bytes_worked_out_by_hand(numbers, kind, written):
    assert values.write(f32(*numbers), kind) == bytes.fromhex(written)


@QUICK
@given(arrays(np.uint32, st.integers(0, 20)))
def test_f32_keeps_every_bit_of_everything(raw):
    assert bits(back(raw.view(np.float32), "f32", finite=False)) == raw.tolist()


def test_f32_keeps_signed_zeros_subnormals_and_damaged_numbers():
    special = np.array([0x80000000, 1, 0x807FFFFF, 0x7F800000, 0xFFC12345, 0x7F800001], np.uint32)
    assert bits(back(special.view(np.float32), "f32", finite=False)) == special.tolist()


@QUICK
@given(FINITE)
def test_bf16_rounds_to_nearest_even(array):
    rounded = torch.from_numpy(array).to(torch.bfloat16).to(torch.float32).numpy()
    overflown = np.isinf(rounded)
    read = back(array, "bf16")
    assert bits(read[~overflown]) == bits(rounded[~overflown])
    assert np.array_equal(np.abs(read[overflown]), np.full(overflown.sum(), 2.0**128 - 2.0**120))


@QUICK
@given(FINITE)
def test_f16_rounds_to_nearest_even(array):
    array = np.where(np.abs(array) < 65_520, array, np.float32(-0.0))
    assert bits(back(array, "f16")) == bits(array.astype(np.float16).astype(np.float32))


def test_halfway_values_go_to_the_even_neighbour():
    step = 2.0**-10
    assert back(f32(1 + step / 2, 1 + 3 * step / 2), "f16").tolist() == [1, 1 + 2 * step]
    step = 2.0**-7
    assert back(f32(1 + step / 2, 1 + 3 * step / 2), "bf16").tolist() == [1, 1 + 2 * step]


@QUICK
@given(FINITE)
def test_int8_is_within_half_a_step_and_keeps_zeros(array):
    read = back(array, "int8").astype(np.float64)
    largest = float(np.abs(array).max(initial=0))
    # A subnormal step is rounded to whole units of 2**-149, of which 127 may be missing.
    half = largest / 254 * (1 + 1e-5) + 64 * SMALLEST
    assert (np.abs(read - array) <= half).all()
    assert not read[array == 0].any()


@pytest.mark.parametrize("largest", [LARGEST, -LARGEST, np.nextafter(np.float32(LARGEST), f32(0))])
def test_the_largest_values_survive_int8(largest):
    read = back(f32(float(np.float32(largest).item()), 0.0), "int8")
    assert read[0] == pytest.approx(largest, rel=1e-6)
    assert read[1] == 0


def test_int8_of_the_smallest_values_is_zero_not_damage():
    assert back(f32(SMALLEST, -SMALLEST), "int8").tolist() == [0, 0]


@pytest.mark.parametrize("number", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("kind", ["f16", "bf16", "int8"])
def test_only_f32_carries_nan_and_infinity(kind, number):
    with pytest.raises(WireError, match=f"cannot travel as {kind}"):
        values.write(f32(1, number), kind)


@pytest.mark.parametrize("number", [65_520.0, -1e6])
def test_values_beyond_f16_are_refused_by_name(number):
    assert back(f32(65_519, -65_504), "f16").tolist() == [65_504, -65_504]
    with pytest.raises(WireError, match=r"(65520|1e\+06) is beyond f16's range"):
        values.write(f32(number), "f16")


@pytest.mark.parametrize(
    ("kind", "raw"),
    [("f32", "0000807f"), ("f32", "ffffffff"), ("f16", "007c"), ("f16", "ffff"), ("bf16", "807f")],
)
def test_a_receiver_refuses_nan_and_infinity_unless_asked_for(kind, raw):
    view = memoryview(bytes.fromhex(raw))
    assert not np.isfinite(values.read(view, kind, 1, False)).any()
    with pytest.raises(WireError, match="NaN or infinity"):
        values.read(view, kind, 1, True)


@pytest.mark.parametrize("scale", ["0000807f", "0000c07f", "000080bf"])
def test_int8_scales_that_are_no_lengths_are_refused(scale):
    with pytest.raises(WireError, match="has the scale"):
        values.read(memoryview(bytes.fromhex(scale + "01")), "int8", 1, False)


def test_an_int8_scale_that_overflows_is_refused():
    with pytest.raises(WireError, match="NaN or infinity"):
        values.read(memoryview(bytes.fromhex("ffff7f7f" + "02")), "int8", 1, True)
