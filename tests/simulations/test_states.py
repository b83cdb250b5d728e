"""What the grid holds of its clients: equal bytes once, and none that no client keeps."""

from typing import Any

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
    assert len({id(content) for content in held(states)}) == len(states.shared) == 2


def test_a_state_that_no_client_holds_any_more_is_let_go():
    states = ClientStates()
    for client in range(3):
        states.keep(client, state(b"old"))
    states.keep(0, state(b"new"))
    states.keep(1, {})
    assert held(states) == [b"new", b"old"]
    assert len(states.shared) == 2
    states.keep(2, state(b"new"))
    assert held(states) == [b"new", b"new"]
    assert len(states.shared) == 1
    states.keep(0, {})
    states.keep(2, {})
    assert (states.all(), len(states.shared)) == ({}, 0)


def test_a_state_that_is_kept_again_stays():
    """As after an error reply, which brings back what was sent."""
    states = ClientStates()
    states.keep(0, state(b"mask"))
    before = states.get(0)
    assert before is not None
    states.keep(0, before)
    assert held(states) == [b"mask"]
    assert len(states.shared) == 1


def test_loading_replaces_all_and_shares_again():
    states = ClientStates()
    for client in (0, 7):
        states.keep(client, state(b"old"))
    states.load({client: state(b"mask") for client in range(4)})
    assert list(states.all()) == [0, 1, 2, 3]
    assert len({id(content) for content in held(states)}) == len(states.shared) == 1


def test_a_client_that_keeps_equal_bytes_twice_holds_them_until_both_are_gone():
    states = ClientStates()
    twice = state(b"mask")
    twice["arrays"]["again"] = state(b"mask")["arrays"]["mask"]
    states.keep(0, twice)
    states.keep(0, state(b"mask"))
    assert (held(states), len(states.shared)) == ([b"mask"], 1)
    states.keep(0, {})
    assert len(states.shared) == 0
