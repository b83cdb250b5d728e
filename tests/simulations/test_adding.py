"""Replies that workers add up: the same bits, the same bytes, the same failures as one by one."""

import numpy as np
import pytest
from flwr.app import ConfigRecord, Message, RecordDict
from ray import cloudpickle

from fedsparse import wire
from fedsparse.errors import WireError
from simulations import worker
from simulations.adding import Adder
from simulations.grid import CohortGrid
from simulations.ray_workers import RayExecutor
from simulations.tasks import Task, perform
from strategies.added import is_added
from strategies.addressing import Directory, MeteredGrid
from strategies.replies import Reader
from strategies.seats import Seat
from strategies.sums import Tally
from tests.simulations.summed_app import SCHEMA, app
from tests.strategies.stage import play, stage

PATH = "tests.simulations.summed_app:app"
CLIENTS = 40
READER = Reader(SCHEMA)
START = {name: np.zeros(shape, np.float32) for name, shape in SCHEMA.tensors}


class Whole(CohortGrid):
    """A grid that sees to replies itself, and so gets them whole."""

    def send_and_receive(self, messages, *, timeout=None):
        """Pass on."""
        return super().send_and_receive(messages, timeout=timeout)


def asked(grid, spoilt=False):
    content = RecordDict({"arrays": wire.pack(wire.encode(START))})
    if spoilt:
        content["config"] = ConfigRecord({"spoilt": True})
    return [Message(content, node, "train") for node in grid.get_node_ids()]


def metered(inner):
    return MeteredGrid(inner, Directory.of(inner, CLIENTS))


def learnt(replies):
    """Return the mean of replies as a strategy makes it, and what was wrong with the others."""
    tally, parts, wrong = Tally(SCHEMA, READER.masks), {}, {}
    for client, reply in enumerate(replies):
        try:
            flat, told, _ = READER.open(client, reply)
        except WireError as error:
            wrong[client] = str(error)
            continue
        if flat is None:
            part = reply.content["arrays"].part
            parts[id(part)] = part
        else:
            tally.add(0, flat, told["examples"])
    for part in parts.values():
        tally.merge(part)
    return wire.encode(tally.mean(START, None)), wrong


@pytest.fixture(scope="module", params=[False, True], ids=["good", "spoilt"])
def one_by_one(request):
    with Whole(app, clients=CLIENTS) as inner:
        grid = metered(inner)
        replies = grid.send_and_receive(asked(grid, request.param), reader=READER)
        assert not any(map(is_added, replies))
        return request.param, learnt(replies), grid.read_traffic()


def test_in_this_process(one_by_one):
    spoilt, expected, traffic = one_by_one
    with CohortGrid(app, clients=CLIENTS) as inner:
        grid = metered(inner)
        replies = grid.send_and_receive(asked(grid, spoilt), reader=READER)
        assert sum(map(is_added, replies)) == CLIENTS - 2 * spoilt
        assert learnt(replies) == expected
        assert grid.read_traffic() == traffic
    assert list(expected[1]) == ([1, 2] if spoilt else [])


@pytest.fixture(scope="module")
def workers():
    executor = RayExecutor(PATH, workers=2)
    yield executor
    executor.close()


def test_in_workers(one_by_one, workers):
    spoilt, expected, traffic = one_by_one
    grid = metered(CohortGrid(clients=CLIENTS, executor=workers))
    replies = grid.send_and_receive(asked(grid, spoilt), reader=READER)
    assert any(map(is_added, replies))
    assert learnt(replies) == expected
    assert grid.read_traffic() == traffic


def results(clients):
    with CohortGrid(app, clients=CLIENTS) as grid:
        sent = asked(grid)
        return [perform(app, Task(k, CLIENTS, sent[k], None)) for k in clients]


def test_a_few_replies_go_whole_as_that_is_shorter():
    adder = Adder(READER, at_once=False)
    for result in results(range(4)):
        adder.take(result)
    assert adder.results() == []
    assert [is_added(done.reply) for done in adder.finish()] == [False] * 4


def test_a_worker_reports_a_sum_once_and_then_begins_another():
    desk = worker.Desk(READER)
    chunks = []
    for clients in (range(6), range(6, 12)):
        for result in results(clients):
            desk.done(result, None)
        chunks.append(cloudpickle.loads(cloudpickle.dumps(desk.clear(last=True))))
    assert desk.clear(last=True) is None
    replies = [done.reply for chunk in chunks for done in chunk.results]
    parts = {id(reply.content["arrays"].part) for reply in replies}
    assert (len(replies), len(parts)) == (12, 2)
    assert learnt(replies) == learnt([done.reply for done in results(range(12))])


def test_a_sum_waits_for_clients_and_a_state_that_is_missed_does_not(monkeypatch):
    monkeypatch.setattr(worker, "SUM_LEAST_SECONDS", 0.0)
    desk = worker.Desk(READER)
    done = results(range(worker.SUM_CLIENTS))
    for result in done[:-1]:
        desk.done(result, None)
    desk.miss(3)
    chunk = desk.clear(last=False)
    assert (chunk.results, chunk.missing) == ([], [3])
    assert desk.clear(last=False) is None
    desk.done(done[-1], None)
    assert len(desk.clear(last=False).results) == worker.SUM_CLIENTS
    desk.done(results([20])[0], None)
    monkeypatch.setattr(worker, "SUM_SECONDS", 0.0)
    assert len(desk.clear(last=False).results) == 1


def test_who_must_come_apart_is_not_added():
    adder = Adder(Reader(SCHEMA, apart=frozenset({2})), at_once=True)
    for result in results(range(3)):
        adder.take(result)
    assert [is_added(done.reply) for done in adder.finish()] == [True, True, False]


def without_content(reply):
    reply.__dict__["_content"] = None


def without_bytes(reply):
    reply.content["arrays"]["payload"].data = 10**15


def with_other_bytes(reply):
    reply.content["arrays"]["payload"].data = "text"


def with_odd_figures(reply):
    reply.content["metrics"].__dict__["_data"] = {"num-examples": object(), "loss": None}


def with_no_records(reply):
    reply.content.__dict__["_data"] = None


@pytest.mark.parametrize(
    "spoil", [without_content, without_bytes, with_other_bytes, with_odd_figures, with_no_records]
)
def test_whatever_a_client_makes_of_its_reply_the_others_are_added(spoil):
    adder = Adder(READER, at_once=True)
    for result in results(range(3)):
        if result.client == 1:
            spoil(result.reply)
        adder.take(result)
    done = {result.client: result.reply for result in adder.finish()}
    assert [is_added(done[client]) for client in (0, 2)] == [True, True]
    with pytest.raises((WireError, KeyError)):
        READER.open(1, done[1])


def test_what_a_client_writes_into_its_metadata_is_carried_as_it_is():
    done = results(range(6))
    del done[4].reply.metadata.__dict__["_delivered_at"]
    done[5].reply.metadata.__dict__["_group_id"] = ["a list"]
    desk = worker.Desk(READER)
    for result in done:
        desk.done(result, None)
    chunk = desk.clear(last=True)
    sent = {result.client: dict(vars(result.reply.metadata)) for result in chunk.results}
    carried = cloudpickle.loads(cloudpickle.dumps(chunk)).results
    assert {result.client: vars(result.reply.metadata) for result in carried} == sent
    assert all(is_added(result.reply) for result in carried)


def halves(grid, number, plan):
    return {client: Seat(share=0.5 if client % 2 else 1.0) for client in range(4)}


@pytest.mark.parametrize("name", ["fedavg", "static", "fedtiny", "unlike masks"])
def test_strategies_learn_the_same_from_sums(monkeypatch, name):
    unlike = name == "unlike masks"
    settings = [f"strategy.name={'static' if unlike else name}", "data.public_samples=40"]
    if name == "fedtiny":
        settings += ["strategy.selection=none", "strategy.adjust_every=2"]
    models = []
    for grid in (CohortGrid, Whole):
        strategy, metered_grid = stage(*settings, grid=grid)
        if unlike:
            monkeypatch.setattr(strategy, "choose", halves)
        strategy.prepare(metered_grid)
        for number in (1, 2):
            replies = play_round(strategy, metered_grid, number)
            assert all(map(is_added, replies)) == (grid is CohortGrid)
        models.append(
            (wire.encode(strategy.state, mask=strategy.mask), metered_grid.read_traffic())
        )
    assert models[0] == models[1]


def play_round(strategy, grid, number):
    """As `play`, with replies added up where the grid can."""
    assert strategy.adds_up
    sent = strategy.configure_train(number, strategy.arrays(), ConfigRecord(), grid)
    replies = grid.send_and_receive(sent, reader=strategy.reader())
    strategy.learn(number, replies)
    return replies


def test_a_strategy_that_looks_at_single_models_gets_them(monkeypatch):
    strategy, grid = stage("strategy.name=fedavg")
    seen = []

    class Curious(type(strategy)):
        def aggregate(self, round_number, replies):
            seen.extend(sorted(reply.kept) for reply in replies)
            super().aggregate(round_number, replies)

    strategy.__class__ = Curious
    assert not strategy.adds_up
    strategy.prepare(grid)
    play(strategy, grid, 1)
    assert seen == [sorted(strategy.task.schema.names)] * 4


def test_a_strategy_that_reads_replies_in_its_own_way_is_given_them():
    strategy, grid = stage("strategy.name=fedavg")
    seen = []

    class Reading(type(strategy)):
        def read_replies(self, replies):
            seen.extend(replies := list(replies))
            return super().read_replies(replies)

    strategy.__class__ = Reading
    assert not strategy.adds_up
    strategy.prepare(grid)
    play(strategy, grid, 1)
    assert len(seen) == 4
    assert not any(map(is_added, seen))
