"""A client's state on its node's disk: it outlives the node, and a message asked again meets it."""

import errno
import os
import time

import numpy as np
import pytest
from flwr.app import Array, ArrayRecord, ConfigRecord, Message, MetricRecord, RecordDict

from clients import client_app, kept_state
from clients.kept_state import Kept
from fedsparse import messages, wire
from fedsparse.errors import ConfigError, StateError
from fedsparse.runs import atomic
from simulations import flower_internals as internals
from tests.clients.test_ldp_clients import SMALL as REGRESSION
from tests.clients.visits import strategy
from tests.node_grid import RUN, NodeGrid, context_of


@pytest.fixture(scope="module")
def ditto():
    """A strategy whose clients keep a model of their own."""
    return strategy("ditto")


def asked(strategy, number, kind=messages.TRAIN) -> Message:
    internals.become_server(RUN)
    content = RecordDict(
        {
            messages.ARRAYS: wire.pack(wire.encode(strategy.shared)),
            messages.CONFIG: messages.write_config(strategy.task.config, strategy.plan(number)),
        }
    )
    message = Message(content, 100, kind)
    internals.number(message, f"m{number}")
    return message


def told(folder, client=0):
    return {messages.CLIENT_KEY: client, kept_state.PATH: str(folder)}


def answer(strategy, number, node, kind=messages.TRAIN):
    """Let a node that holds nothing in memory answer a message; return all that it says."""
    context = context_of(node)
    reply = client_app.app(asked(strategy, number, kind), context)
    return everything(reply.content), context


def everything(content):
    arrays = {n: [bytes(a.data) for a in r.values()] for n, r in content.array_records.items()}
    return arrays, {n: dict(r) for n, r in content.metric_records.items()}


def in_another_process(work):
    """Do some work in a process that ends at once, as a killed node's does."""
    process = os.fork()
    if not process:
        try:
            work()
        finally:
            os._exit(9)
    os.waitpid(process, 0)


def file_of(folder):
    return folder / f"run-{RUN}-client-0.state"


def test_a_node_that_restarts_answers_as_one_that_never_did(tmp_path, ditto):
    """Every message in a process of its own; the other node keeps its state in memory."""
    grid = NodeGrid([{}])
    alive = [everything(grid.answer(asked(ditto, number)).content) for number in (1, 2, 3)]
    for number in (1, 2):
        in_another_process(lambda number=number: answer(ditto, number, told(tmp_path)))
    assert answer(ditto, 3, told(tmp_path))[0] == alive[2]
    assert kept_state.plain(grid.states[100]) == kept_state.read(file_of(tmp_path)).after


def test_the_personal_model_is_that_of_a_node_that_never_stopped(tmp_path, ditto):
    grid = NodeGrid([{}])
    for number in (1, 2):
        grid.answer(asked(ditto, number))
        in_another_process(lambda number=number: answer(ditto, number, told(tmp_path)))
    alive = everything(grid.answer(asked(ditto, 2, messages.EVALUATE)).content)
    assert answer(ditto, 2, told(tmp_path), messages.EVALUATE)[0] == alive
    assert answer(ditto, 2, told(tmp_path / "none"), messages.EVALUATE)[0] != alive


def test_a_message_asked_again_after_a_crash_has_the_same_answer(tmp_path, ditto):
    """The node died after its state was written and before its reply left."""
    in_another_process(lambda: answer(ditto, 1, told(tmp_path)))
    in_another_process(lambda: answer(ditto, 2, told(tmp_path)))
    written = file_of(tmp_path).read_bytes()
    first = answer(ditto, 2, told(tmp_path))[1]
    assert file_of(tmp_path).read_bytes() == written
    again = answer(ditto, 2, told(tmp_path))[1]
    assert kept_state.plain(again.state) == kept_state.plain(first.state)
    answer(ditto, 3, told(tmp_path))
    assert file_of(tmp_path).read_bytes() != written


def test_the_disk_counts_whatever_flower_s_memory_holds(tmp_path, ditto):
    """A round that is asked again by a resumed server finds the node alive, and one round on."""
    first, context = answer(ditto, 1, told(tmp_path))
    again = client_app.app(asked(ditto, 1), context)
    assert everything(again.content) == first
    assert kept_state.plain(context.state) == kept_state.read(file_of(tmp_path)).after


def test_a_round_before_the_last_is_refused(tmp_path, ditto):
    for number in (1, 2):
        answer(ditto, number, told(tmp_path))
    with pytest.raises(StateError, match=r"after round 2, and round 1 is asked.*start"):
        answer(ditto, 1, told(tmp_path))


def test_clients_and_runs_have_files_of_their_own(tmp_path, ditto):
    answer(ditto, 1, told(tmp_path))
    answer(ditto, 1, told(tmp_path, client=1))
    assert sorted(path.name for path in tmp_path.iterdir()) == [
        f"run-{RUN}-client-{client}.state" for client in (0, 1)
    ]


def test_a_message_that_changes_nothing_writes_nothing(tmp_path, ditto):
    answer(ditto, 1, told(tmp_path), messages.EVALUATE)
    assert not list(tmp_path.iterdir())


def test_states_of_old_runs_go(tmp_path, ditto):
    for run in range(100, 120):
        path = tmp_path / f"run-{run}-client-0.state"
        path.write_bytes(b"old")
        os.utime(path, (run, run))
    (tmp_path / "run-1-client-1.state").write_bytes(b"another client's")
    answer(ditto, 1, told(tmp_path))
    left = {path.name for path in tmp_path.iterdir()}
    assert len(left) == kept_state.MOST_RUNS + 1
    assert {"run-1-client-1.state", f"run-{RUN}-client-0.state"} <= left
    assert {f"run-{run}-client-0.state" for run in range(113, 120)} <= left


def test_a_run_that_others_overtook_keeps_its_state_for_a_week(tmp_path, ditto):
    """Its server may wait for days, and ask for the client's next round then."""
    now = time.time()
    in_progress, over = (tmp_path / f"run-{run}-client-0.state" for run in (1, 2))
    for path, age in ((in_progress, 6), (over, 8)):
        path.write_bytes(b"old")
        os.utime(path, (now - age * 86400,) * 2)
    for run in range(100, 100 + kept_state.MOST_RUNS):
        (tmp_path / f"run-{run}-client-0.state").write_bytes(b"new")
    answer(ditto, 1, told(tmp_path))
    assert in_progress.exists()
    assert not over.exists()


def test_the_state_that_was_just_written_stays_whatever_the_clock_says(tmp_path, ditto):
    """A node without a clock of its own starts in 1970; all others' states are newer."""
    answer(ditto, 1, told(tmp_path))
    os.utime(file_of(tmp_path), (0, 0))
    for run in range(100, 120):
        (tmp_path / f"run-{run}-client-0.state").write_bytes(b"new")
    kept_state.forget_old_runs(file_of(tmp_path))
    assert len(list(tmp_path.iterdir())) == 21


def test_a_folder_in_nobody_s_home_is_refused(ditto):
    with pytest.raises(ConfigError, match=r"state-path = '~nobody-at-all/x': nobody has such a"):
        kept_state.place_of(context_of(told("~nobody-at-all/x")))


def test_a_full_disk_fails_the_message_and_leaves_the_old_state(tmp_path, ditto, monkeypatch):
    answer(ditto, 1, told(tmp_path))
    before = file_of(tmp_path).read_bytes()

    def full(descriptor):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with monkeypatch.context() as patched:
        patched.setattr(atomic.os, "fsync", full)
        with pytest.raises(StateError, match="the disk is full; free some space; the old state"):
            answer(ditto, 2, told(tmp_path))
    assert file_of(tmp_path).read_bytes() == before
    assert [path.name for path in tmp_path.iterdir()] == [file_of(tmp_path).name]
    answer(ditto, 2, told(tmp_path))


def test_a_message_that_fails_leaves_the_state_as_it_was(tmp_path, ditto, monkeypatch):
    """Flower takes the context also after an error."""
    _, context = answer(ditto, 1, {messages.CLIENT_KEY: 0})
    before = kept_state.plain(context.state)
    monkeypatch.setattr(client_app, "reply_arrays", lambda *_, **__: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        client_app.app(asked(ditto, 2), context)
    assert kept_state.plain(context.state) == before


@pytest.mark.parametrize("keep", [0, 10, 60, -33, -1])
def test_a_damaged_file_is_told_not_passed_over(tmp_path, ditto, keep):
    answer(ditto, 1, told(tmp_path))
    whole = file_of(tmp_path).read_bytes()
    file_of(tmp_path).write_bytes(whole[:keep])
    with pytest.raises(StateError, match=r"no whole state of a client; put it back.*remove it"):
        answer(ditto, 2, told(tmp_path))
    flipped = bytearray(whole)
    flipped[len(whole) // 2] ^= 1
    file_of(tmp_path).write_bytes(flipped)
    with pytest.raises(StateError, match="no whole state"):
        answer(ditto, 2, told(tmp_path))


def test_every_record_comes_back_as_it_was():
    state = RecordDict(
        {
            "arrays": ArrayRecord({"a": Array(np.arange(6.0).reshape(2, 3))}),
            "metrics": MetricRecord({"n": 3, "x": 0.1, "list": [1, 2]}),
            "configs": ConfigRecord({"s": "text", "b": b"\0bytes", "t": True, "l": ["a", "b"]}),
        }
    )
    plain = kept_state.plain(state)
    found = kept_state.decode(kept_state.encode(Kept("key", 4, {}, plain)))
    assert (found.asked, found.round, found.before, found.after) == ("key", 4, {}, plain)
    assert kept_state.records(found.after) == state


def test_bytes_that_both_states_hold_are_written_once():
    state = kept_state.plain(RecordDict({"a": wire.pack(bytes(10_000))}))
    assert len(kept_state.encode(Kept("key", 1, state, state))) < 11_000


def test_what_was_told_under_local_privacy_is_never_taken_back(tmp_path):
    """A message that is asked again meets the state before it: but not the budget before it."""
    private = strategy("ldp-iht", "privacy.entropy=system", small=REGRESSION)
    first = answer(private, 1, told(tmp_path))[0]
    assert answer(private, 1, told(tmp_path))[0] == first
    private.state = {name: value + np.float32(1) for name, value in private.state.items()}
    for _ in range(2):
        with pytest.raises(ConfigError, match="answers nothing more in this run"):
            answer(private, 1, told(tmp_path))


def test_a_first_state_that_cannot_be_written_is_not_in_memory_either(tmp_path, ditto):
    (tmp_path / "file").write_bytes(b"")
    context = context_of(told(tmp_path / "file"))
    with pytest.raises(StateError, match="cannot be written"):
        client_app.app(asked(ditto, 1), context)
    assert not context.state


def test_others_on_the_machine_cannot_read_a_state(tmp_path, ditto):
    answer(ditto, 1, told(tmp_path / "states"))
    assert file_of(tmp_path / "states").stat().st_mode & 0o777 == 0o600
    assert (tmp_path / "states").stat().st_mode & 0o777 == 0o700
