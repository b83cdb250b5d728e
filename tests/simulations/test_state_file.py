"""Clients' states on the disk: each kept checkpoint's exactly, or a plain refusal."""

import itertools
import os
import shutil
import signal
import sqlite3

import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from fedsparse.errors import RunFolderError
from simulations.state_file import NAME
from simulations.states import ClientStates
from tests.simulations.test_states import state, stored

CLIENTS = st.integers(0, 4)
CONTENTS = st.sampled_from([b"", b"mask", b"other", b"m" * 5000])
STEPS = st.one_of(
    st.tuples(st.just("keep"), CLIENTS, CONTENTS),
    st.tuples(st.just("drop"), CLIENTS),
    st.tuples(st.just("forget"), CLIENTS),
    st.tuples(st.just("commit"), st.integers(1, 3)),
    st.tuples(st.just("restore"), st.integers(0, 2)),
    st.tuples(st.just("reopen")),
)


class Model:
    """What should be held: a dict now, and a copy of it for each checkpoint that is kept."""

    def __init__(self):
        self.now, self.saved, self.told, self.round = {}, {}, {}, 0
        self.forgotten = set()

    def kept(self, most):
        return sorted(self.saved)[-most:]


def play(states, model, step):
    """Do one step to both, and return the states as they are held from then on."""
    match step:
        case "keep", client, content:
            states.keep(client, state(content))
            model.now[client] = state(content)
        case "drop", client:
            states.keep(client, {})
            model.now.pop(client, None)
        case "forget", client:
            states.forget(client)
            model.now.pop(client, None)
            model.forgotten.add(client)
        case "commit", most:
            model.round += 1
            kept = model.kept(most)
            model.told[model.round] = states.commit(model.round, kept)
            model.saved = {
                r: {c: s for c, s in model.saved[r].items() if c not in model.forgotten}
                for r in kept
            } | {model.round: dict(model.now)}
            model.forgotten.clear()
        case "restore", back if len(model.saved) > back:
            number = sorted(model.saved)[-1 - back]
            states.restore(number, model.told[number])
            model.saved = {r: s for r, s in model.saved.items() if r <= number}
            model.now, model.round = dict(model.saved[number]), number
            model.forgotten.clear()
        case ("reopen",) if model.saved:
            states.close()
            states = ClientStates(states._folder)
            return play(states, model, ("restore", 0))
    return states


EMPTIED = [("keep", 0, b""), ("commit", 1), ("drop", 0), ("commit", 1), ("reopen",)]


@given(st.lists(STEPS, max_size=25))
@example([*EMPTIED, ("keep", 0, b"")])
@example([*EMPTIED, ("forget", 0), ("commit", 1)])
@settings(
    max_examples=120, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
def test_states_are_a_dict_that_goes_back_to_its_checkpoints(tmp_path_factory, steps):
    folder = tmp_path_factory.mktemp("states")
    states, model = ClientStates(folder), Model()
    for step in steps:
        states = play(states, model, step)
        assert states.all() == model.now
    states.close()
    for number in sorted(model.saved, reverse=True):
        again = ClientStates(folder)
        again.restore(number, model.told[number])
        assert again.all() == model.saved[number]
        again.close()
    shutil.rmtree(folder)


def rounds(folder, last, keep=2):
    """Write `last` checkpoints in which one of three clients keeps something new each."""
    states, told = ClientStates(folder), {}
    for number in range(1, last + 1):
        states.keep(number % 3, state(b"of round %d" % number))
        told[number] = states.commit(number, sorted(told)[-keep:])
    return states, told


def test_versions_that_no_kept_checkpoint_needs_are_removed(tmp_path):
    states, _ = rounds(tmp_path, 40)
    assert stored(states) == 5  # what three clients keep, and what two of them kept before
    states.close()


def test_a_file_does_not_grow_with_the_rounds(tmp_path):
    for last, name in ((20, "short"), (80, "long")):
        (tmp_path / name).mkdir()
        rounds(tmp_path / name, last)[0].close()
    assert (tmp_path / "long" / NAME).stat().st_size <= (tmp_path / "short" / NAME).stat().st_size


def test_without_states_there_is_no_file(tmp_path):
    states = ClientStates(tmp_path)
    states.keep(0, {})
    assert states.commit(1, []) == {}
    states.restore(1, {})
    assert states.all() == {}
    assert list(tmp_path.iterdir()) == []


def test_restoring_writes_nothing_before_the_next_checkpoint(tmp_path):
    states, told = rounds(tmp_path, 3)
    states.close()
    before = (tmp_path / NAME).read_bytes()
    states.restore(2, told[2])
    states.close()
    assert (tmp_path / NAME).read_bytes() == before
    states.restore(3, told[3])
    states.close()


def test_states_of_an_earlier_run_in_the_folder_are_not_taken_over(tmp_path):
    rounds(tmp_path, 3)[0].close()
    states = ClientStates(tmp_path)
    assert states.all() == {}
    states.keep(1, state(b"new"))
    states.commit(0, [])
    assert states.all() == {1: state(b"new")}
    states.close()


def test_checkpoints_that_held_the_states_themselves_can_be_restored(tmp_path):
    states = ClientStates(tmp_path)
    states.restore(4, {"0": state(b"mask"), "12": state(b"mask")})
    assert states.all() == {0: state(b"mask"), 12: state(b"mask")}
    states.close()


def test_a_forgotten_client_is_nowhere_in_the_file(tmp_path):
    secret = b"what nobody else keeps"
    states = ClientStates(tmp_path)
    told = {}
    for number in (1, 2):
        states.keep(0, state(secret * number))
        states.keep(1, state(b"mask"))
        told[number] = states.commit(number, [1])
    assert secret in (tmp_path / NAME).read_bytes()
    states.forget(0)
    told[3] = states.commit(3, [1, 2])
    states.close()
    assert secret not in (tmp_path / NAME).read_bytes()
    for number in (3, 2, 1):
        states.restore(number, told[number])
        assert states.all() == {1: state(b"mask")}
    states.close()


# -- damage ----------------------------------------------------------------------------


def refused(folder, number, saved):
    """Return the one line with which states are refused, after checking that none are there."""
    states = ClientStates(folder)
    with pytest.raises(RunFolderError) as error:
        states.restore(number, saved)
    assert states.all() == {}
    line = str(error.value)
    assert "\n" not in line
    assert NAME in line
    assert "another --out" in line
    return line


def change(folder, statement, *values):
    with sqlite3.connect(folder / NAME) as file:
        file.execute(statement, values)
    file.close()


@pytest.mark.parametrize(
    "damage",
    [
        lambda path: path.unlink(),
        lambda path: path.write_bytes(b""),
        lambda path: path.write_bytes(b"no database" * 1000),
        lambda path: path.write_bytes(path.read_bytes()[:5000]),
        lambda path: path.write_bytes(path.read_bytes().replace(b"of round 2", b"of round 7")),
        lambda path: change(path.parent, "UPDATE states SET client = 9 WHERE client = 1"),
        lambda path: change(path.parent, "DELETE FROM states WHERE client = 1"),
        lambda path: change(path.parent, "UPDATE states SET client = 'x' WHERE client = 1"),
        lambda path: change(path.parent, "UPDATE states SET body = 1 WHERE client = 1"),
        lambda path: change(path.parent, "UPDATE states SET body = NULL WHERE client = 1"),
        lambda path: change(path.parent, "DELETE FROM bodies WHERE id = 2"),
        lambda path: change(path.parent, "UPDATE parts SET content = 3"),
        lambda path: change(path.parent, "DELETE FROM checkpoints"),
        lambda path: change(path.parent, "DROP TABLE parts"),
    ],
)
def test_a_missing_or_damaged_file_is_refused_in_one_line(tmp_path, damage):
    states, told = rounds(tmp_path, 4)
    states.close()
    damage(tmp_path / NAME)
    refused(tmp_path, 4, told[4])


def test_a_file_of_another_time_is_refused(tmp_path):
    states, told = rounds(tmp_path, 3)
    shutil.copy(tmp_path / NAME, tmp_path / "old")
    states.keep(0, state(b"later"))
    told[4] = states.commit(4, [2, 3])
    states.close()
    shutil.copy(tmp_path / "old", tmp_path / NAME)
    assert "does not hold the states of round 4" in refused(tmp_path, 4, told[4])
    states.restore(3, told[3])
    states.keep(0, state(b"otherwise"))
    states.commit(4, [2, 3])
    states.close()
    assert "does not hold the states that checkpoint 4" in refused(tmp_path, 4, told[4])


@given(place=st.floats(0, 1, exclude_max=True), bit=st.integers(0, 7))
@settings(
    max_examples=50, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
def test_a_flipped_bit_is_harmless_or_refused(tmp_path_factory, place, bit):
    """Or harmless: of a page that is free, or of a version that this checkpoint does not need."""
    folder = tmp_path_factory.mktemp("flip")
    states, told = rounds(folder, 4)
    expected = states.all()
    states.close()
    content = bytearray((folder / NAME).read_bytes())
    content[int(place * len(content))] ^= 1 << bit
    (folder / NAME).write_bytes(content)
    try:
        states.restore(4, told[4])
    except RunFolderError as error:
        line = str(error)
    else:
        line = "another --out"
        assert states.all() == expected
    states.close()
    shutil.rmtree(folder)
    assert "\n" not in line
    assert "another --out" in line or "cannot be written" in line


def test_a_full_disk_is_one_line_and_the_checkpoint_before_stays(tmp_path):
    states, told = rounds(tmp_path, 3)
    expected = states.all()
    states._file._db.execute("PRAGMA max_page_count = 1")  # no more pages than there are
    states.keep(0, state(b"small"))
    with pytest.raises(RunFolderError, match=r"is full; .* `fedsparse resume`") as error:
        states.keep(1, state(bytes(10**6)))
    assert "\n" not in str(error.value)
    states.close()
    states.restore(3, told[3])
    assert states.all() == expected
    states.close()


def test_a_file_that_another_program_holds_is_refused_in_one_line(tmp_path, monkeypatch):
    states, told = rounds(tmp_path, 3)
    connect = sqlite3.connect
    monkeypatch.setattr(sqlite3, "connect", lambda *a, **k: connect(*a, **k, timeout=0.01))
    with pytest.raises(RunFolderError, match=r"cannot be written: database is locked"):
        ClientStates(tmp_path).restore(3, told[3])
    states.close()


# -- kills -----------------------------------------------------------------------------


def killed_while_committing(folder, told, deadly):
    """Commit round 4 in a child that is killed before its `deadly`-th statement.

    Returns whether the child died; False means that it ran fewer statements than that.
    """
    child = os.fork()
    if child == 0:
        try:
            states = ClientStates(folder)
            states.restore(3, told[3])
            calls = itertools.count(1)

            def trace(statement):
                if next(calls) == deadly:
                    os.kill(os.getpid(), signal.SIGKILL)

            states._file._db.set_trace_callback(trace)
            states.keep(1, state(b"later"))
            states.keep(7, state(b"m" * 10**6))
            states.commit(4, [2, 3])
            os._exit(0)
        finally:
            os._exit(1)
    status = os.waitpid(child, 0)[1]
    assert os.WIFSIGNALED(status) or os.WEXITSTATUS(status) == 0
    return os.WIFSIGNALED(status)


def test_a_kill_at_any_statement_leaves_the_checkpoint_before(tmp_path):
    states, told = rounds(tmp_path, 3)
    expected = states.all()
    states.close()
    for deadly in itertools.count(1):
        if not killed_while_committing(tmp_path, told, deadly):
            break
        states = ClientStates(tmp_path)
        states.restore(3, told[3])
        assert states.all() == expected
        states.close()
    assert deadly > 15


def test_a_checkpoint_that_was_committed_here_alone_is_undone(tmp_path):
    """As a kill leaves it between the states' commit and the checkpoint's own."""
    states, told = rounds(tmp_path, 3)
    expected = states.all()
    states.close()
    assert not killed_while_committing(tmp_path, told, 10**9)
    states.restore(3, told[3])
    assert states.all() == expected
    states.keep(1, state(b"again"))
    told[4] = states.commit(4, [2, 3])
    states.close()
    states.restore(4, told[4])
    assert states.all() == {**expected, 1: state(b"again")}
    states.close()
