"""Reasons of failed replies are plain, however they were sent, and whatever a client sends."""

import pytest
from flwr.app import Error, Message, RecordDict
from hypothesis import example, given, settings
from hypothesis import strategies as st

from fedsparse.errors import MissingExtraError, WireError
from simulations.flower_internals import become_server
from strategies.addressing import Traffic
from strategies.checks import trusted
from strategies.client_rows import client_rows
from strategies.reasons import plain

FULL = OSError(28, "No space left on device", "/a b/x", None, "/y")
PLAIN = {
    "ours": (
        WireError("the payload needs mask 5b9e, which..."),
        "the payload needs mask 5b9e, which...",
    ),
    "ours, of a kind": (
        MissingExtraError("x", "y"),
        "x needs extra packages: pip install 'fedsparse[y]'",
    ),
    "another's": (FULL, "OSError: [Errno 28] No space left on device: '/a b/x' -> '/y'"),
    "several lines": (RuntimeError("one\n  two\n"), "RuntimeError: one two"),
    "a key": (KeyError("arrays"), "KeyError: 'arrays'"),
    "quotes": (ValueError("'>:<'it''s'>"), "ValueError: '>:<'it''s'>"),
}


def sent_by_nodes(error):
    """What a SuperNode makes of an exception."""
    return str(type(error)) + ":<'" + str(error) + "'>"


def sent_by_simulator(error):
    """What our simulator makes of it."""
    return f"{type(error).__name__}: {error}".replace("\n", " ").replace("   ", " ").strip()


@pytest.mark.parametrize("sent", [sent_by_nodes, sent_by_simulator])
@pytest.mark.parametrize("case", PLAIN)
def test_a_reason_says_what_was_wrong_and_names_no_class_of_ours(case, sent):
    error, said = PLAIN[case]
    assert plain(sent(error)) == said


def test_a_reason_of_flower_s_engine_is_what_stands_behind_its_traceback():
    said = "Exception ClientAppException occurred. Message: the loss is nan"
    told = f"<class 'ray.exceptions.RayTaskError(ClientAppException)'>:<'\x1b[36mray\n{said}'>"
    assert plain(told) == "the loss is nan"


@pytest.mark.parametrize(
    ("told", "said"),
    [
        ("the node is offline", "the node is offline"),
        ("Error: Node", "Error: Node"),
        ("<class 'ValueError'>:<''>", "ValueError"),
        ("WireError: ", "WireError:"),
        ("Traceback\n  raise\nhow it ended\n\n", "how it ended"),
        ("\x1b[2J\x1b[1;31mall is\twell\x07\u202e\x00", "?[2J?[1;31mall is well???"),
        ("\x1b\x07\n\n", "??"),
        ("", "no reason given"),
        (None, "no reason given"),
    ],
)
def test_other_reasons_stay_as_they_are_but_for_what_does_not_print(told, said):
    assert plain(told) == said


@settings(deadline=None)
@given(st.text() | st.text().map(lambda text: f"<class 'a.{text}'>:<'{text}'>"))
@example("x" * 10**5)
@example("<class 'OSError'>:<'" + "x" * 10**5 + "'>")
@example("<class 'a'>:<'" * 10**4)
def test_whatever_a_client_sends_is_one_short_line_that_prints(told):
    found = plain(told)
    assert found
    assert found.isprintable()
    assert len(found) <= 300
    assert found == found.strip()


def test_failures_and_the_rows_of_clients_hold_plain_reasons():
    become_server(1)
    asked = Message(RecordDict(), 11, "train")
    reply = Message(Error(2, sent_by_nodes(FULL)), reply_to=asked)
    _, failures = trusted([reply], {11: 0}, lambda client, message: client)
    nothing = {"client_of": {11: 0}, "failures": {}, "trips": {}, "budget_of": None}
    (row,) = client_rows(1, "train", [asked], [reply], Traffic(), **nothing)
    assert failures == {0: row["reason"]} == {0: PLAIN["another's"][1]}
