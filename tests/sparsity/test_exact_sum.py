"""Exact sums: right to the last bit, whoever added first, in one sum or in many."""

from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fedsparse.kernels import library
from fedsparse.sparsity import exact_sum
from fedsparse.sparsity.exact_sum import Addend, ExactSum

SIZE = 7
FINITE = st.floats(width=32, allow_nan=False, allow_infinity=False)
USUAL = st.floats(-4, 4, width=32)
VALUES = st.lists(st.one_of(USUAL, FINITE), min_size=SIZE, max_size=SIZE)
WEIGHTS = st.one_of(st.integers(1, 10_000), st.integers(1, 2**53), st.floats(2**-20, 2**20))
ADDENDS = st.lists(st.tuples(VALUES, WEIGHTS), min_size=1, max_size=12)


def summed(addends, groups=1, order=None):
    """Add in an order, dealt out to some sums, which are then merged, the last ones first."""
    sums = [ExactSum(SIZE) for _ in range(groups)]
    for place, number in enumerate(order if order is not None else range(len(addends))):
        values, weight = addends[number]
        sums[place % groups].add(np.array(values, np.float32), weight)
    whole = sums[-1]
    for part in sums[-2::-1]:
        whole.merge(part)
    return whole.total()


def exactly(addends):
    """Return the exact sums of what is added: products are rounded to float64."""
    return [
        sum(
            Fraction(float(np.float64(np.float32(values[i])) * weight))
            for values, weight in addends
        )
        for i in range(SIZE)
    ]


@given(ADDENDS, st.integers(1, 4), st.randoms(use_true_random=False))
@settings(max_examples=60, deadline=None)
def test_no_order_and_no_division_among_workers_changes_a_bit(addends, groups, random):
    order = list(range(len(addends)))
    random.shuffle(order)
    assert summed(addends, groups, order).tobytes() == summed(addends).tobytes()


@given(ADDENDS)
@settings(max_examples=60, deadline=None)
def test_a_sum_is_off_by_a_rounding_of_itself_and_2_to_minus_69_an_addend(addends):
    for found, exact in zip(summed(addends), exactly(addends), strict=True):
        allowed = abs(exact) * Fraction(2) ** -51 + len(addends) * Fraction(2) ** -69
        assert abs(Fraction(float(found)) - exact) <= allowed


@given(ADDENDS)
@settings(max_examples=30, deadline=None)
def test_kernels_and_numpy_give_the_same_bits(addends):
    if exact_sum.native() is None:
        pytest.skip("no kernels here")
    native = summed(addends)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(exact_sum, "_kernel", [None])
        assert summed(addends).tobytes() == native.tobytes()


def test_what_cancels_is_gone_whatever_is_left_of_it_is_exact():
    huge, tiny = np.float32(3e38), np.float32(2.0**-60)
    whole = ExactSum(2)
    for values in ([huge, 1.0], [tiny, 2.0**-24], [-huge, -1.0]):
        whole.add(np.array(values, np.float32), 1)
    assert whole.total().tolist() == [tiny, 2.0**-24]


def test_halves_of_the_last_unit_are_rounded_alike_in_any_order():
    half = np.full(1, exact_sum.FINE / 2, np.float32)
    unit = np.full(1, exact_sum.FINE, np.float32)
    sums = []
    for order in ([half, unit, half], [unit, half, half], [half, half, unit]):
        whole = ExactSum(1)
        for values in order:
            whole.add(values, 1)
        sums.append(whole.total()[0])
    assert sums == [3 * exact_sum.FINE] * 3


def test_digits_are_carried_before_they_could_round(monkeypatch):
    """More additions, and larger ones, than the two lowest digits have room for."""
    monkeypatch.setattr(exact_sum, "MOST_ADDS", 5)
    values = np.array([3.0, -3.0, 2.0**-30], np.float32)
    whole, many = ExactSum(3), 1000
    for _ in range(many):
        whole.add(values, 400_000)
    assert whole.total().tolist() == [many * 400_000 * float(v) for v in values]
    assert whole.higher


def test_a_sum_spread_over_a_larger_one_keeps_every_digit():
    part = ExactSum(2)
    part.add(np.array([1e30, 2.0**-50], np.float32), 3)
    whole = part.spread(np.array([3, 1]), 4)
    assert whole.total().tolist() == [0.0, part.total()[1], 0.0, part.total()[0]]


def test_several_addends_at_once_are_as_many_alone(monkeypatch):
    monkeypatch.setattr(exact_sum, "BLOCK", 3)
    rng = np.random.default_rng(0)
    vectors = [(rng.normal(size=10).astype(np.float32), n) for n in (1, 2.5, 3, 2**40)]
    alone, together = ExactSum(10), ExactSum(10)
    for values, weight in vectors:
        alone.add(values, weight)
    together.add_all([Addend(*vector) for vector in vectors])
    assert alone.total().tobytes() == together.total().tobytes()
    assert (together.nbytes, ExactSum(0).total().size) == (alone.nbytes, 0)


@pytest.mark.parametrize("name", ["baseline", "avx2", "avx512"])
def test_every_instruction_set_adds_vectors_at_any_address(monkeypatch, name):
    try:
        api = library.load(name)
    except library.Unavailable as error:
        pytest.skip(str(error))
    monkeypatch.setattr(library, "load", lambda: api)
    rng = np.random.default_rng(1)
    size, sums = 100, []
    content = [bytes(place) + rng.normal(size=size).astype("<f4").tobytes() for place in range(5)]
    vectors = [np.frombuffer(each, "<f4", size, place) for place, each in enumerate(content)]
    for kernel in (library.exact_adder(), None):
        monkeypatch.setattr(exact_sum, "_kernel", [kernel])
        sums.append(ExactSum(size))
        sums[-1].add_all([Addend(vector, 7, 10.0) for vector in vectors])
    assert sums[0].fine.tobytes() == sums[1].fine.tobytes()
    assert sums[0].coarse.tobytes() == sums[1].coarse.tobytes()


def test_a_vector_that_is_not_in_one_piece_is_added_as_it_is():
    values = np.arange(2 * SIZE, dtype=np.float32)
    apart, whole = ExactSum(SIZE), ExactSum(SIZE)
    apart.add(values[::2], 3)
    whole.add(values[::2].copy(), 3)
    assert apart.total().tobytes() == whole.total().tobytes()


@pytest.mark.parametrize("shape", [SIZE - 1, SIZE + 1, (1, SIZE), ()])
def test_a_vector_of_another_size_is_refused(shape):
    total, fitting = ExactSum(SIZE), np.ones(SIZE, np.float32)
    with pytest.raises(ValueError, match="no addend of 7"):
        total.add_all([Addend(fitting, 1), Addend(np.ones(shape, np.float32), 1)])
    assert not total.total().any()
