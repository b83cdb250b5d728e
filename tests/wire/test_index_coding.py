"""Index sections: the bytes that the format says, close to the entropy, and nothing else read."""

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fedsparse.errors import WireError
from fedsparse.wire import index_coding

QUICK = settings(max_examples=300, derandomize=True, deadline=None, database=None)


def positions(*entries: int) -> np.ndarray:
    return np.array(entries, np.int32)


def section(kept: np.ndarray, size: int) -> bytes:
    index = index_coding.plan(kept, size)
    written = index_coding.write(index)
    assert len(written) == index.length
    return written


def read(section: bytes, size: int) -> tuple[list[int], int]:
    flags, used = index_coding.read(memoryview(section), size)
    assert (flags.dtype, flags.shape) == (np.bool_, (size,))
    return np.flatnonzero(flags).tolist(), used


def random_positions(seed: int, size: int, density: float) -> np.ndarray:
    flags = np.random.default_rng(seed).random(size) < density
    return np.flatnonzero(flags).astype(np.int32)


def entropy_bytes(count: int, size: int) -> float:
    d = count / size
    return -size * (d * math.log2(d) + (1 - d) * math.log2(1 - d)) / 8


def golomb_by_the_book(kept: list[int], size: int) -> bytes:
    """Write a Golomb section one symbol at a time."""
    count = len(kept)
    m = (693 * size + 300 * count) // (1000 * count)
    width = math.ceil(math.log2(m))
    short = 2**width - m
    unary = fixed = extra = ""
    for before, here in zip([-1, *kept], kept, strict=False):
        quotient, rest = divmod(here - before - 1, m)
        unary += "0" * quotient + "1"
        if rest < short:
            fixed += f"{rest:0{width - 1}b}" if width > 1 else ""
        else:
            code = f"{rest + short:0{width}b}"
            fixed, extra = fixed + code[:-1], extra + code[-1:]
    bits = unary + fixed + extra
    bits += "0" * (-len(bits) % 8)
    assert count < 128
    return bytes([3, count]) + int(bits, 2).to_bytes(len(bits) // 8, "big")


@pytest.mark.parametrize("density", [0.5, 0.4, 0.3, 0.1, 0.01, 0.001])
@pytest.mark.parametrize("size", [100_000, 1_000_000])
@pytest.mark.parametrize("seed", [0, 1, 2])
def test_a_random_mask_costs_within_a_twentieth_of_its_entropy(seed, size, density):
    kept = random_positions(seed, size, density)
    written = section(kept, size)
    assert len(written) <= 1.05 * entropy_bytes(len(kept), size)
    flags, used = index_coding.read(memoryview(written), size)
    assert used == len(written)
    assert np.array_equal(np.flatnonzero(flags), kept)


@pytest.mark.parametrize("density", [0.001, 0.01, 0.05, 0.1])
def test_sparse_random_masks_cost_within_a_hundredth_of_their_entropy(density):
    kept = random_positions(7, 1_000_000, density)
    assert len(section(kept, 1_000_000)) <= 1.01 * entropy_bytes(len(kept), 1_000_000)


@pytest.mark.parametrize(
    ("kept", "size", "written"),
    [
        ([], 0, "00"),
        ([], 1000, "00"),
        ([0], 1, "01"),
        (range(1000), 1000, "01"),
        # 0100 0001 01.. ....
        ([1, 7, 9], 10, "02 41 40"),
        # M = 14, so remainders 0 and 1 take 3 bits, others 4. Gaps 3 and 16 = 14 + 2:
        # unary 1 01, fixed 010 010, extra 1 0.
        ([3, 20], 40, "03 02 a9 40"),
        # Gaps 1 and 18 = 14 + 4: unary 1 01, fixed 001 011, extra 0.
        ([1, 20], 40, "03 02 a5 80"),
    ],
)
def test_sections_worked_out_by_hand(kept, size, written):
    assert section(positions(*kept), size) == bytes.fromhex(written)
    assert read(bytes.fromhex(written), size) == (list(kept), len(bytes.fromhex(written)))


@QUICK
@given(st.integers(40, 2000), st.data())
def test_golomb_sections_are_those_of_the_book(size, data):
    count = st.integers(1, min(127, 2 * size // 5))
    kept = sorted(data.draw(st.sets(st.integers(0, size - 1), min_size=1, max_size=20)))
    kept = kept[: data.draw(count)]
    book = golomb_by_the_book(kept, size)
    assert read(book, size) == (kept, len(book))
    bitmask = 1 + (size + 7) // 8
    written = section(positions(*kept), size)
    assert written == book if len(book) < bitmask else len(written) == bitmask


@QUICK
@given(st.integers(0, 70), st.data())
def test_every_set_of_positions_comes_back_and_what_follows_is_left(size, data):
    kept = [i for i in range(size) if data.draw(st.booleans())]
    written = section(positions(*kept), size)
    assert len(written) <= 1 + (size + 7) // 8
    assert read(written + b"\xff\x01", size) == (kept, len(written))


@pytest.mark.parametrize("count", [1, 127, 128, 16_383, 16_384, 300_000])
def test_counts_of_every_width_come_back(count):
    kept = np.arange(count, dtype=np.int32) * 3 + 2
    written = section(kept, 3 * count + 5)
    flags, used = index_coding.read(memoryview(written), 3 * count + 5)
    assert used == len(written)
    assert np.array_equal(np.flatnonzero(flags), kept)


@pytest.mark.parametrize("size", [7, 8, 9, 15, 16, 17, 63, 64, 65, 4096, 8191, 8192, 8193])
def test_sizes_around_whole_bytes_keep_their_first_and_last_entries(size):
    for kept in ([0], [size - 1], [0, size - 1], list(range(size - 1)), list(range(1, size))):
        assert read(section(positions(*kept), size), size)[0] == kept


@pytest.mark.parametrize(
    ("damaged", "size", "message"),
    [
        ("", 40, "ends before a tensor's index"),
        ("04", 40, "index coding 4 is unknown"),
        ("ff", 40, "index coding 255 is unknown"),
        ("02 41", 10, "ends inside a tensor's bitmask"),
        ("02 41 41", 10, "bits set beyond its tensor's end"),
        ("03", 40, "ends inside a number"),
        ("03 82", 40, "ends inside a number"),
        ("03 82 00", 40, "number is damaged"),
        ("03 ff ff ff ff ff 01", 40, "number is damaged"),
        ("03 00", 40, "counts 0 of 40"),
        ("03 11", 40, "counts 17 of 40"),
        ("03 ff ff ff ff 7f", 40, "counts 34359738367 of 40"),
        ("03 01", 0, "counts 1 of 0"),
        ("03 02", 40, "ends inside a tensor's index"),
        ("03 02 a9", 40, "ends inside a tensor's index"),
        ("03 02 00 00", 40, "ends inside a tensor's index"),
        ("03 02 a9 41", 40, "bits set beyond its end"),
        # Unary 001 01 are more zeros than fit 40 entries.
        ("03 02 28 00", 40, "ends inside a tensor's index"),
        # Unary 1 001, remainders 13: gaps of 13 and 41.
        ("03 02 9f f0", 40, "points at entry 55 of 40"),
    ],
)
def test_damaged_sections_are_refused(damaged, size, message):
    with pytest.raises(WireError, match=message):
        read(bytes.fromhex(damaged), size)


def test_positions_beyond_32_bits_are_refused():
    with pytest.raises(WireError, match="too large"):
        index_coding.plan(positions(0), 2**31)
