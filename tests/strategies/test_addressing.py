"""Who is who on a grid, and what counts as sent: only what a client was handed."""

import random

import pytest
from flwr.app import ConfigRecord, Message, MetricRecord, RecordDict
from hypothesis import given, settings
from hypothesis import strategies as st

from fedsparse import messages, wire
from fedsparse.config import FleetConfig
from fedsparse.errors import GridError
from simulations.experiment import CLIENT_APP
from simulations.flower_internals import RAISED, error_reply
from simulations.grid import CohortGrid, InlineExecutor
from strategies.addressing import Directory, MeteredGrid, cohort, pool
from strategies.consecutive import Consecutive
from strategies.execute import execute
from tests.strategies.stage import stage

IDLE = RecordDict({"metrics": ConfigRecord({"partition-id": 1})})


class Answering:
    """A grid of nodes 100, 101, ... that answer who they are: a number, content, or an error."""

    def __init__(self, *told):
        self.told = {100 + i: value for i, value in enumerate(told)}

    def get_node_ids(self):
        return list(self.told)

    def send_and_receive(self, messages, *, timeout=None):
        return [self.reply(message) for message in messages]

    def reply(self, message):
        value = self.told[message.metadata.dst_node_id]
        if value is None:
            return error_reply(message, RAISED, "not ready")
        if not isinstance(value, RecordDict):
            value = RecordDict({"metrics": MetricRecord({"partition-id": value})})
        return Message(value, reply_to=message)


@pytest.fixture(autouse=True)
def server():
    """Make this process one that may send messages."""
    CohortGrid(CLIENT_APP, clients=1)


def test_clients_are_named_by_what_their_nodes_answer():
    directory = Directory.of(Answering(2, 0, 1), 3, 0.0)
    assert directory.node_of == {2: 100, 0: 101, 1: 102}
    assert directory.client_of == {100: 2, 101: 0, 102: 1}


def test_a_node_that_cannot_say_who_it_is_says_why():
    """Such as one of another version, which refuses a key of the run's configuration."""
    with pytest.raises(GridError, match=r"partition-id 1; start .*; node 101 answers: not ready$"):
        Directory.of(Answering(0, None), 2, 0.0)


def test_who_reads_a_description_of_the_model_is_sent_one_which_is_counted():
    light = RecordDict({"metrics": MetricRecord({"partition-id": 1, "reads-model": 1})})
    nodes = Answering(0, light, 2)
    directory = Directory.of(nodes, 3, 0.0)
    assert directory.readers == {101}
    grid = MeteredGrid(nodes, directory)
    grid.described = b"what it is"
    whole = RecordDict({"arrays": wire.pack(b"payload")})
    sent = [Message(whole, node, "train") for node in nodes.get_node_ids()]
    grid.send_and_receive(sent)
    assert [list(message.content) for message in sent] == [
        ["arrays"],
        ["arrays", messages.CONFIG],
        ["arrays"],
    ]
    assert sent[1].content[messages.CONFIG] == {messages.MODEL_KEY: b"what it is"}
    assert grid.read_traffic().down == {0: 7, 1: 17, 2: 7}
    assert list(whole) == ["arrays"]


def test_a_grid_that_knows_its_clients_has_nobody_who_reads_one():
    strategy, _ = stage("strategy.name=fedavg")
    assert strategy.directory.readers == frozenset()


ODD = {
    "nothing": RecordDict(),
    "another record": IDLE,
    "another key": RecordDict({"metrics": MetricRecord({"number": 1})}),
    "half a client": 1.5,
    "a list": [1],
    "an error": None,
    "one too high": 2,
    "less than none": -1,
}


@pytest.mark.parametrize("case", ODD)
def test_a_node_that_does_not_say_which_client_it_is_is_passed_over(case):
    assert Directory.of(Answering(ODD[case], 0, 1), 2, 0.0).client_of == {101: 0, 102: 1}
    with pytest.raises(GridError, match=r"1 of 2 clients are connected.* partition-id 1; start"):
        Directory.of(Answering(0, ODD[case]), 2, 0.0)


def test_two_nodes_of_one_client_do_not_stand_for_another():
    with pytest.raises(GridError, match=r"1 of 2 clients .*without partition-id 1;"):
        Directory.of(Answering(0, 0), 2, 0.0)


def test_of_many_clients_that_are_missing_the_first_are_named():
    with pytest.raises(GridError, match=r"partition-id 1, 2, .*, 10, \.\.\.; start") as error:
        Directory.of(Answering(0), 50, 0.0)
    assert "\n" not in str(error.value)


class Stopping(InlineExecutor):
    """Time is up after the second client."""

    def run(self, tasks, timeout, reader=None):
        """Answer for two clients alone."""
        yield from super().run(tasks[:2], None, reader)


def test_a_client_that_the_time_limit_left_out_was_sent_nothing():
    strategy, _ = stage("strategy.name=fedavg")
    inner = CohortGrid(clients=4, executor=Stopping(CLIENT_APP))
    grid = MeteredGrid(inner, strategy.directory)
    strategy.prepare(grid)
    asked = strategy.configure_train(1, None, None, grid)
    assert len(grid.send_and_receive(asked)) == 2
    traffic = grid.read_traffic()
    assert set(traffic.down) == set(traffic.up) == {0, 1}
    assert traffic.bytes_down == traffic.bytes_up > 0


def test_a_client_that_failed_was_sent_its_model():
    strategy, grid = stage("strategy.name=fedavg")
    strategy.prepare(grid)
    (asked, *_) = strategy.configure_train(1, None, None, grid)
    asked.content["config"] = ConfigRecord()
    (failed,) = grid.send_and_receive([asked])
    assert failed.has_error()
    assert grid.read_traffic().bytes_down > 0


def test_a_run_names_the_clients_that_it_lacks():
    strategy, _ = stage("strategy.name=fedavg", "fleet.clients=4")
    few = CohortGrid(CLIENT_APP, clients=2)
    with pytest.raises(GridError, match=r"2 of 4 clients .*without partition-id 2, 3; start"):
        execute(strategy.task, strategy, few, None, None)


# -- a directory of very many ------------------------------------------------------------

keys = st.integers(-3, 25) | st.sampled_from(["0", None, 1.5])


@given(st.integers(0, 20), st.integers(0, 5), st.integers(0, 5), keys)
@settings(max_examples=200, deadline=None)
def test_consecutive_numbers_are_read_like_a_dict_of_them(size, first, number, key):
    lazy = Consecutive(range(number, number + size), range(first, first + size))
    plain = {first + i: number + i for i in range(size)}
    assert lazy == plain
    assert list(lazy.items()) == list(plain.items())
    assert (len(lazy), key in lazy, lazy.get(key)) == (len(plain), key in plain, plain.get(key))
    assert lazy.inverse == {value: k for k, value in plain.items()}


class Plain(CohortGrid):
    """A grid that knows its clients by a dict, as another maker's might."""

    @property
    def clients_by_node(self):
        """The same in a dict, in another order."""
        return dict(reversed(list(super().clients_by_node.items())))


@given(st.integers(1, 12), st.integers(1, 14))
@settings(max_examples=50, deadline=None)
def test_the_directory_of_a_grid_is_that_of_its_dict(there, wanted):
    grids = [kind(CLIENT_APP, clients=there) for kind in (CohortGrid, Plain)]
    if wanted > there:
        lines = []
        for grid in grids:
            with pytest.raises(GridError) as error:
                Directory.of(grid, wanted)
            lines.append(str(error.value))
        assert lines[0] == lines[1]
        return
    lazy, plain = (Directory.of(grid, wanted) for grid in grids)
    assert lazy.node_of == plain.node_of
    assert lazy.client_of == plain.client_of
    assert list(lazy.nodes) == list(plain.nodes)


def test_nothing_is_made_for_each_of_a_billion_clients():
    inner = CohortGrid(CLIENT_APP, clients=10**9)
    directory = Directory.of(inner, 10**9)
    grid = MeteredGrid(inner, directory)
    last = directory.node_of[10**9 - 1]
    assert directory.client_of[last] == 10**9 - 1
    assert len(grid.get_node_ids()) == len(inner.get_node_ids()) == 10**9
    assert all(node in directory.client_of for node in random.sample(grid.get_node_ids(), 5))
    with pytest.raises(KeyError):
        directory.node_of[10**9]
    with pytest.raises(GridError, match=r"1000000000 of 1000000005 .* 1000000000, 1000000001"):
        Directory.of(inner, 10**9 + 5)


# -- clients that are absent --------------------------------------------------------------

SIZED = FleetConfig(clients=30, clients_per_round=6)


@given(st.sets(st.integers(0, 29), max_size=6), st.integers(0, 29))
def test_a_round_that_does_not_draw_a_client_is_the_same_without_it(absent, target):
    for round_number in range(1, 6):
        before = cohort(SIZED, 3, round_number, absent)
        after = cohort(SIZED, 3, round_number, absent | {target})
        assert len(after) == 6
        assert target not in after
        if target in before:
            assert len(set(before) - set(after)) == 1
        else:
            assert after == before


def test_too_few_present_clients_make_a_smaller_round():
    assert cohort(SIZED, 0, 1, set(range(27))) == [27, 28, 29]
    assert cohort(FleetConfig(clients=5), 0, 1, {2}) == [0, 1, 3, 4]


def test_a_pool_is_drawn_once_and_all_rounds_draw_from_it():
    fleet = SIZED.model_copy(update={"pool": 0.3})
    drawn = set(pool(fleet, 0))
    asked = {client for t in range(1, 50) for client in cohort(fleet, 0, t)}
    assert len(drawn) == 9
    assert asked == drawn


def test_whoever_is_outside_the_pool_can_be_absent_without_a_trace():
    fleet = SIZED.model_copy(update={"pool": 0.3})
    inside = sorted(pool(fleet, 0))[0]
    outside = next(c for c in range(30) if c not in pool(fleet, 0))
    for t in range(1, 20):
        assert cohort(fleet, 0, t, {outside}) == cohort(fleet, 0, t)
    moved = [t for t in range(1, 20) if cohort(fleet, 0, t, {inside}) != cohort(fleet, 0, t)]
    assert moved == [t for t in range(1, 20) if inside in cohort(fleet, 0, t)]
