"""What one client does to its message, its state or its process is nobody else's affair."""

from collections.abc import Sequence

import numpy as np
import pytest
from flwr.app import ArrayRecord, ConfigRecord, Context, Message, MetricRecord, RecordDict
from flwr.clientapp import ClientApp
from flwr.common.constant import ErrorCode

from fedsparse.errors import GridError
from fedsparse.state_codec import plain_state, record_state
from simulations import flower_internals as internals
from simulations.grid import CohortGrid
from tests.simulations.worker_app import app


def ask(
    grid: CohortGrid, kind: str, content: RecordDict | None = None, copies: int = 1
) -> Sequence[Message]:
    """Send every client one shared RecordDict, as Flower's strategies do."""
    content = content or RecordDict({"config": ConfigRecord({"client": 1})})
    nodes = list(grid.get_node_ids()) * copies
    messages = (Message(content, node, f"query.{kind}") for node in nodes)
    return list(grid.send_and_receive(messages=messages))


def test_error_codes_are_flowers():
    assert internals.RAISED == ErrorCode.CLIENT_APP_RAISED_EXCEPTION
    assert internals.CRASHED == ErrorCode.CLIENT_APP_CRASHED


def test_a_client_that_writes_into_its_message_changes_nothing_for_others():
    model = ArrayRecord([np.ones(4, np.float32)])
    content = RecordDict({"arrays": model, "config": ConfigRecord({"client": 1})})
    with CohortGrid(app, clients=3) as grid:
        replies = ask(grid, "scribble", content)
    assert [dict(r.content["metrics"]) for r in replies] == [{"calls": 0, "arrays": 1}] * 3
    assert len(model) == 1
    assert "calls" not in content["config"]


def test_an_array_is_a_clients_own_and_its_bytes_are_shared():
    model = ArrayRecord([np.ones(4, np.float32)])
    message = Message(RecordDict({"arrays": model}), 1000, "train")
    first, second = (internals.message_of(message.metadata, message.content) for _ in range(2))
    assert first.content["arrays"]["0"].data is model["0"].data
    first.content["arrays"]["0"].data = b"gone"
    assert second.content == message.content == RecordDict({"arrays": model})


def test_a_client_that_fails_keeps_the_state_it_had():
    with CohortGrid(app, clients=1) as grid:
        ask(grid, "remember_then_fail")
        before = grid.states()
        (reply,) = ask(grid, "remember_then_fail")
        assert grid.states() == before
    assert before[0]["metrics"] == {"kept": {"calls": [1]}}
    assert reply.error.reason == "ValueError: two lines"


def test_state_is_plain_and_comes_back_as_it_was():
    state = RecordDict(
        {
            "model": ArrayRecord([np.arange(6, dtype=np.float32).reshape(2, 3)]),
            "metrics": MetricRecord({"loss": 0.5, "counts": [1, 2]}),
            "config": ConfigRecord({"name": "x", "raw": b"\x00\xff", "on": True, "empty": []}),
            "nothing": ConfigRecord({}),
        }
    )
    plain = plain_state(state)
    assert record_state(plain) == state
    assert plain_state(RecordDict()) == {}


def test_a_client_that_exits_or_returns_nothing_is_an_error_reply():
    with CohortGrid(app, clients=2) as grid:
        left = ask(grid, "leave")
        nothing = ask(grid, "nothing")
    assert [r.has_error() for r in left] == [False, True]
    assert left[1].error.reason == "SystemExit: enough"
    assert [r.error.code for r in nothing] == [internals.RAISED] * 2
    assert "returned NoneType, not a Message" in nothing[0].error.reason


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (lambda reply: reply.__dict__.update(_content=None), "ValueError: Message content is None"),
        (lambda reply: reply.content.__dict__.update(_data=None), "AttributeError: 'NoneType'"),
        (lambda reply: setattr(reply.content["a"]["0"], "data", 3), "TypeError: 'a' holds int"),
    ],
)
def test_a_reply_that_could_not_be_sent_is_an_error_reply(change, reason):
    spoilt = ClientApp()

    @spoilt.query()
    def query(message: Message, context: Context) -> Message:
        reply = Message(RecordDict({"a": ArrayRecord([np.ones(2)])}), reply_to=message)
        change(reply)
        return reply

    with CohortGrid(spoilt, clients=1) as grid:
        (reply,) = grid.send_and_receive([Message(RecordDict(), 1000, "query")])
    assert reply.error.reason.startswith(reason)


def test_two_messages_to_one_client_are_answered_in_turn():
    with CohortGrid(app, clients=2) as grid:
        replies = ask(grid, "remember_then_fail", copies=2)
    assert [(r.metadata.src_node_id, r.has_error()) for r in replies] == [
        (1000, False),
        (1000, True),
        (1001, False),
        (1001, True),
    ]


def test_states_come_in_the_order_of_clients():
    with CohortGrid(app, clients=3) as grid:
        grid.load_states({2: {"metrics": {"a": {"n": 1}}}, 0: {"metrics": {"a": {"n": 2}}}})
        assert list(grid.states()) == [0, 2]


def test_an_abandoned_grid_wakes_whoever_waits_in_it():
    with CohortGrid(app, clients=1) as grid:
        internals.abandon(grid)
        with pytest.raises(GridError, match="has ended"):
            grid.push_messages([])
        with pytest.raises(GridError, match="has ended"):
            grid.pull_messages([])


def test_an_app_of_the_main_script_is_refused():
    with pytest.raises(GridError, match="put the ClientApp in a module"):
        internals.load_app("__main__:app")
