"""CRC-32 and the largest magnitude: the same from every instruction set, and as zlib says."""

import zlib

import numpy as np
import pytest

from fedsparse.errors import WireError
from fedsparse.kernels import library
from fedsparse.wire import Schema, checksum, decode_flat, encode

RNG = np.random.default_rng(0)
BLOCK = 2**14
LENGTHS = [*range(0, 140), BLOCK - 1, BLOCK, BLOCK + 1, 2 * BLOCK + 65, 50_001]


@pytest.fixture(params=["baseline", "avx2", "avx512", "none"])
def form(request, monkeypatch):
    """Check with one instruction set, or without kernels."""
    if request.param == "none":
        monkeypatch.setattr(checksum, "_native", lambda: None)
        return
    try:
        api = library.load(request.param)
    except library.Unavailable as error:
        pytest.skip(str(error))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(library, "load", lambda: api)
        native = library.payload_checker()
    monkeypatch.setattr(checksum, "_native", lambda: native)


def test_it_is_zlibs(form):
    for length in LENGTHS:
        content = RNG.bytes(length + 3)
        assert checksum.check(content, length)[0] == zlib.crc32(content[:length])
        assert checksum.crc32(bytearray(content)) == zlib.crc32(content)


def test_the_largest_magnitude_is_found_wherever_the_floats_begin(form):
    for first, count in [(0, 0), (0, 1), (17, 5), (3, BLOCK // 4), (16_383, 9_000)]:
        content = RNG.bytes(first + 4 * count + 2)
        bits = np.frombuffer(content, "<u4", count, first) & 0x7FFFFFFF
        _, largest = checksum.check(content, len(content), first, count)
        assert largest in (None, bits.max(initial=0))


@pytest.mark.parametrize("wrong", [np.nan, -np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("place", [0, 4_999])
def test_no_value_that_is_not_finite_is_let_through(form, wrong, place):
    state = {"w": RNG.normal(size=5_000).astype(np.float32)}
    state["w"][place] = wrong
    with pytest.raises(WireError, match="NaN or infinity"):
        decode_flat(encode(state), Schema.of(state), None)
    flat, largest = decode_flat(encode(state), Schema.of(state), None, finite=False)
    assert np.array_equal(flat, state["w"], equal_nan=True)
    assert largest is None


@pytest.mark.parametrize("span", [(5, 0, 3), (8, 5, 1), (9, 0, 0), (8, -1, 1), (8, 4, -1)])
def test_nothing_beyond_the_content_is_read(span):
    with pytest.raises(ValueError, match="are not in"):
        checksum.check(bytes(8), *span)
