"""CohortGrid: the interface that Flower's strategies and clients rely on."""

import inspect

import pytest
from flwr.app import Array, ArrayRecord, ConfigRecord, Message, RecordDict
from flwr.serverapp import Grid
from flwr.supercore.task_identity import TaskIdentity
from ray import cloudpickle

from fedsparse.errors import GridError
from simulations import flower_internals as internals
from simulations import parcels  # noqa: F401  (says how large arrays are carried)
from simulations.grid import FIRST_NODE, CohortGrid, InlineExecutor
from tests.simulations.third_party_app import app


def ask(grid: CohortGrid, kind: str, **config: str) -> list[Message]:
    content = RecordDict({"config": ConfigRecord(dict(config))})
    messages = [Message(content, node, f"query.{kind}") for node in reversed(grid.get_node_ids())]
    return list(grid.send_and_receive(messages=iter(messages), timeout=60))


def test_has_every_method_of_flowers_grid():
    assert not inspect.isabstract(CohortGrid)
    assert issubclass(CohortGrid, Grid)


def test_flower_still_has_the_internals_that_we_touch():
    """When this fails after an update of flwr, mend simulations/flower_internals.py."""
    internals.become_server(7)
    assert (TaskIdentity.run_id, TaskIdentity.node_id) == (7, internals.SERVER_NODE)
    message = Message(RecordDict(), 12, "query")
    internals.number(message, "abc")
    assert message.metadata.message_id == "abc"
    reply = internals.error_reply(message, internals.CRASHED, "gone")
    assert reply.metadata.reply_to_message_id == "abc"
    assert (reply.error.code, reply.metadata.src_node_id) == (8, 12)
    again = internals.message_of(message.metadata, {"x": ConfigRecord({"a": 1})})
    assert again.content["x"]["a"] == 1
    to = internals.Address("def", 13, 2.5)
    readdressed = internals.addressed(message.metadata, to)
    assert internals.address(readdressed) == to != internals.address(message.metadata)
    assert internals.alike(readdressed) == internals.alike(message.metadata)
    internals.put(again, "y", ConfigRecord({"b": 2}))
    assert sorted(again.content) == ["x", "y"]


@pytest.mark.parametrize("size", [8, internals.LARGE])
def test_arrays_come_through_whatever_way_they_are_carried(size):
    content = bytes(range(8)) * (size // 8)
    record = ArrayRecord({"a": Array("uint8", (size,), "some.type", content)})
    buffers = []
    carried = cloudpickle.dumps(record, protocol=5, buffer_callback=buffers.append)
    assert len(buffers) == (size == internals.LARGE)
    array = cloudpickle.loads(carried, buffers=buffers)["a"]
    assert (array.dtype, array.shape, array.stype) == ("uint8", (size,), "some.type")
    assert type(array.data) is bytes
    assert array.data == content


def test_replies_come_in_the_order_of_clients():
    with CohortGrid(app, clients=5) as grid:
        nodes = [reply.metadata.src_node_id for reply in ask(grid, "count")]
    assert nodes == [FIRST_NODE + client for client in range(5)]


def test_state_outlives_a_message_and_goes_through_a_checkpoint():
    with CohortGrid(app, clients=2) as grid:
        ask(grid, "count")
        ask(grid, "count")
        saved = grid.states()
    assert saved[1] == {"metrics": {"calls": {"n": 2}}}
    with CohortGrid(app, clients=2) as fresh:
        fresh.load_states(saved)
        counts = [r.content["metrics"]["n"] for r in ask(fresh, "count")]
    assert counts == [3, 3]


def kept(grid: CohortGrid) -> list[bytes]:
    """Return the bytes that `remember` left with each client."""
    arrays = [state["arrays"]["mask"] for state in grid.states().values()]
    return [array["data"] for record in arrays for array in record.values()]


def test_clients_that_keep_the_same_share_one_object():
    with CohortGrid(app, clients=8) as grid:
        ask(grid, "remember", number="3")
        assert len(kept(grid)) == 8
        assert len({id(content) for content in kept(grid)}) == 1


def test_an_exception_in_a_client_is_an_error_reply():
    with CohortGrid(app, clients=3) as grid:
        replies = ask(grid, "raise")
    assert [reply.has_error() for reply in replies] == [False, True, False]
    assert replies[1].error.code == internals.RAISED
    assert replies[1].error.reason == "ValueError: an odd client"


def test_pushed_messages_can_be_pulled_once():
    with CohortGrid(app, clients=2) as grid:
        ids = list(grid.push_messages([Message(RecordDict(), FIRST_NODE, "query.count")]))
        assert len(list(grid.pull_messages(ids))) == 1
        assert list(grid.pull_messages(ids)) == []


def test_no_reply_comes_after_the_time_limit():
    with CohortGrid(app, clients=3) as grid:
        messages = [Message(RecordDict(), node, "query.count") for node in grid.get_node_ids()]
        assert list(grid.send_and_receive(messages, timeout=-1.0)) == []


def test_progress_counts_replies():
    seen = []
    with CohortGrid(app, clients=3) as grid:
        grid.progress = lambda done, total: seen.append((done, total))
        ask(grid, "count")
    assert seen == [(1, 3), (2, 3), (3, 3)]


def test_mistakes_are_typed_errors():
    with pytest.raises(GridError, match="at least one"):
        CohortGrid(app, clients=0)
    with pytest.raises(GridError, match="no client 5"):
        CohortGrid(app, clients=5).node_of(5)
    with pytest.raises(GridError, match="cannot import"):
        InlineExecutor("tests.nowhere:app")
    with pytest.raises(GridError, match="not a flwr ClientApp"):
        InlineExecutor("os:path")
