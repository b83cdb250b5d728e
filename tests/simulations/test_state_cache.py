"""A worker's copies of states: known by their bits, and never more than they may take."""

import copy

import pytest
from hypothesis import given
from hypothesis import strategies as st

from simulations.state_cache import StateCache, digest, size

values = st.none() | st.integers() | st.floats() | st.text(max_size=3) | st.binary(max_size=3)
states = st.recursive(
    st.dictionaries(st.text(max_size=2), values | st.lists(st.integers(), max_size=2), max_size=3),
    lambda inner: st.dictionaries(st.text(max_size=2), inner | values, max_size=3),
    max_leaves=5,
)


@given(states, states)
def test_equal_states_alone_have_equal_digests(first, second):
    assert digest(first) == digest(copy.deepcopy(first))
    if digest(first) == digest(second):
        assert repr(first) == repr(second)


def test_bytes_are_told_from_what_stands_for_them():
    inner = digest({"a": b"x"})
    assert digest({"a": inner}) != digest({"a": b"x"})
    assert digest({"a": "b'x'"}) != digest({"a": b"x"})


def test_the_states_seen_last_are_kept_within_the_bound():
    cache = StateCache(most_bytes=5000)
    names = {client: cache.keep(client, {"a": bytes([client]) * 2000}) for client in (1, 2)}
    assert cache.get(1, names[1]) == {"a": b"\x01" * 2000}
    names[3] = cache.keep(3, {"a": b"\x03" * 2000})
    assert cache.get(2, names[2]) is None
    assert [cache.get(client, names[client]) is None for client in (1, 3)] == [False, False]
    assert cache.bytes == 4000


def test_a_newer_state_takes_the_place_of_the_older():
    cache = StateCache(most_bytes=5000)
    old = cache.keep(1, {"a": b"o" * 3000})
    new = cache.keep(1, {"a": b"n" * 4000})
    assert old != new
    assert cache.get(1, old) is None
    assert size(cache.get(1, new)) == cache.bytes == 4000
    assert cache.keep(1, {}) is None
    assert (cache.get(1, new), cache.bytes) == (None, 0)


@pytest.mark.parametrize(("bound", "taken"), [(5000, 999), (5000, 5001), (0, 3000)])
def test_what_is_small_or_larger_than_the_bound_is_not_kept(bound, taken):
    assert StateCache(bound).keep(1, {"a": bytes(taken)}) is None
