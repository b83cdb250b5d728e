"""Flower's own engine, called like a function: it returns, it raises, it leaves nothing."""

import logging
import os
import threading

import pytest
from flwr.app import ConfigRecord, Message, RecordDict

from fedsparse.errors import GridError
from simulations import flower_engine
from simulations.flower_engine import run_with_flower

PATH = "tests.simulations.worker_app:app"


def everyone(grid, kind):
    content = RecordDict({"config": ConfigRecord({"client": 1})})
    while len(nodes := list(grid.get_node_ids())) < 2:
        pass
    messages = [Message(content, node, f"query.{kind}") for node in nodes]
    return list(grid.send_and_receive(messages, timeout=60))


def environment():
    flower = logging.getLogger("flwr").level
    return {k: os.environ.get(k) for k in ("FLWR_HOME", "PYTHONPATH")}, flower


def test_returns_what_the_server_side_returns(capfd):
    before = environment()
    replies = run_with_flower(lambda grid, _: everyone(grid, "threads"), PATH, clients=2, workers=2)
    assert [reply.content["metrics"]["threads"] for reply in replies] == [1, 1]
    assert environment() == before
    assert capfd.readouterr().out == ""


def test_raises_what_the_server_side_raises():
    def interrupted(grid, context):
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run_with_flower(interrupted, PATH, clients=2, workers=1)


@pytest.mark.parametrize(
    ("failure", "expected"),
    [
        (KeyboardInterrupt(), KeyboardInterrupt),
        (RuntimeError("no room\nleft"), GridError),
    ],
    ids=["interrupted", "failed"],
)
def test_an_engine_that_ends_early_ends_the_server_side_too(monkeypatch, failure, expected):
    """The engine is replaced by one that ends while its server side waits for clients."""
    seen = []

    class Waiting:
        def pull_messages(self, messages):
            threading.Event().wait(0.01)

    def server_main(grid, context):
        try:
            while True:
                grid.pull_messages([])
        finally:
            seen.append("cleaned up")

    def engine(server, *_):
        threading.Thread(target=server, args=(Waiting(), None)).start()
        while server.idle.is_set():
            pass
        raise failure

    monkeypatch.setattr(flower_engine, "_simulate", engine)
    with pytest.raises(expected) as caught:
        run_with_flower(server_main, PATH, clients=1, workers=1)
    assert seen == ["cleaned up"]
    if expected is GridError:
        assert str(caught.value) == "Flower's engine failed: RuntimeError: no room left"
