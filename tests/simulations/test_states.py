"""What the grid holds of its clients: equal bytes once, and none that no client keeps."""

import math
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fedsparse import state_codec
from simulations.state_file import Recent
from simulations.states import ClientStates


def state(content: bytes, **metrics: int) -> dict[str, Any]:
    """Return a state in the form of `plain_state`; its bytes are an object of its own."""
    array = {
        "dtype": "uint8",
        "shape": [len(content)],
        "stype": "",
        "data": bytes(bytearray(content)),
    }
    return {"arrays": {"mask": {"payload": array}}, "metrics": {"calls": metrics}}


def held(states: ClientStates) -> list[bytes]:
    return [s["arrays"]["mask"]["payload"]["data"] for s in states.all().values()]


def stored(states: ClientStates, table: str = "parts") -> int:
    """Return how many bodies or byte strings are held, whoever keeps them."""
    assert states._file is not None
    (count,) = states._file._db.execute(f"SELECT count(*) FROM {table}").fetchone()
    return int(count)


def test_states_come_back_as_they_were_kept_in_the_order_of_clients():
    states = ClientStates()
    for client in (2, 0, 1):
        states.keep(client, state(b"mask", n=client))
    assert states.get(1) == state(b"mask", n=1)
    assert states.get(3) is None
    assert list(states.all().items()) == [(client, state(b"mask", n=client)) for client in range(3)]


def test_equal_bytes_are_one_object_and_unlike_ones_are_not():
    states = ClientStates()
    for client in range(8):
        states.keep(client, state(b"odd" if client % 2 else b"even"))
    assert len({id(content) for content in held(states)}) == stored(states) == 2


def test_equal_states_are_stored_once():
    states = ClientStates()
    for client in range(8):
        states.keep(client, state(b"mask", n=client % 2))
    assert (stored(states, "bodies"), stored(states, "parts")) == (2, 1)


def test_a_state_that_no_client_holds_any_more_is_let_go():
    states = ClientStates()
    for client in range(3):
        states.keep(client, state(b"old"))
    states.keep(0, state(b"new"))
    states.keep(1, {})
    assert held(states) == [b"new", b"old"]
    assert stored(states) == 2
    states.keep(2, state(b"new"))
    assert held(states) == [b"new", b"new"]
    assert stored(states) == 1
    states.keep(0, {})
    states.keep(2, {})
    assert (states.all(), stored(states)) == ({}, 0)


def test_a_state_that_is_kept_again_stays():
    """As after an error reply, which brings back what was sent."""
    states = ClientStates()
    states.keep(0, state(b"mask"))
    before = states.get(0)
    assert before is not None
    states.keep(0, before)
    assert held(states) == [b"mask"]
    assert stored(states) == 1


def test_loading_replaces_all_and_shares_again():
    states = ClientStates()
    for client in (0, 7):
        states.keep(client, state(b"old"))
    states.load({client: state(b"mask") for client in range(4)})
    assert list(states.all()) == [0, 1, 2, 3]
    assert len({id(content) for content in held(states)}) == stored(states) == 1


def test_a_client_that_keeps_equal_bytes_twice_holds_them_until_both_are_gone():
    states = ClientStates()
    twice = state(b"mask")
    twice["arrays"]["again"] = state(b"mask")["arrays"]["mask"]
    states.keep(0, twice)
    states.keep(0, state(b"mask"))
    assert (held(states), stored(states)) == ([b"mask"], 1)
    states.keep(0, {})
    assert stored(states) == 0


def test_what_a_client_keeps_may_look_like_what_is_stored():
    """The bytes of one client are the body of another's state, and end before it does."""
    states = ClientStates()
    states.keep(0, state(b"mask"))
    body, _ = state_codec.encode(state(b"mask"))
    states.keep(1, state(body))
    states.keep(0, {})
    assert held(states) == [body]
    states.keep(0, state(b"mask"))
    states.keep(1, {})
    assert held(states) == [b"mask"]


# -- the form in which a state is stored -----------------------------------------------

number = st.integers(-(2**63), 2**63 - 1) | st.floats(allow_nan=False)
value = number | st.booleans() | st.text() | st.binary(max_size=20)
record = st.dictionaries(st.text(), value | st.lists(number) | st.lists(st.binary(max_size=9)))
plain_states = st.dictionaries(st.sampled_from(["arrays", "metrics", "configs"]), record)


@given(plain_states)
@settings(max_examples=200, deadline=None)
def test_any_state_goes_through_its_stored_form(kept):
    body, parts = state_codec.encode(kept)
    named = state_codec.named(body)
    assert len(named) == len(parts)
    back = state_codec.decode(body, dict(zip(named, parts, strict=True)).__getitem__)
    assert repr(back) == repr(kept)


@pytest.mark.parametrize("odd", [math.nan, math.inf, -math.inf, -0.0])
def test_figures_that_are_no_numbers_survive(odd):
    states = ClientStates()
    states.keep(0, {"metrics": {"told": {"loss": odd, "all": [odd, 1.5]}}})
    assert repr(states.get(0)) == repr({"metrics": {"told": {"loss": odd, "all": [odd, 1.5]}}})


# -- what stays in memory --------------------------------------------------------------


def test_what_was_used_last_stays_in_memory_up_to_the_bound():
    recent = Recent(10)
    for name in (b"a", b"b", b"c"):
        recent.put(name, name * 4)
    assert recent.get(b"a") is None
    assert recent.get(b"b") == b"bbbb"
    recent.put(b"d", b"dddd")
    assert recent.get(b"c") is None
    assert recent.get(b"b") == b"bbbb"
    assert recent.bytes == 8
    recent.put(b"e", b"e" * 50)
    assert recent.get(b"e") == b"e" * 50
    assert recent.bytes == 50
