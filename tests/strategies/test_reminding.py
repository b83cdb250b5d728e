"""A node that forgot its mask in mid-round is asked again with it, once, and nothing is lost."""

import pytest
from flwr.app import Error, Message

from fedsparse import wire
from fedsparse.messages import EVALUATE, TRAIN
from fedsparse.runs import RunFolder
from fedsparse.runs.progress import Silent
from simulations.experiment import run_experiment
from simulations.flower_internals import RAISED
from strategies import foreign
from strategies.addressing import Directory, MeteredGrid
from strategies.execute import execute
from strategies.reminding import exchange, only_masks
from strategies.task import Task
from tests.node_grid import NodeGrid
from tests.strategies.stage import QUICK, play, stage
from tests.tiny_runs import model_bytes, rows, tiny

NODES = 3
SETTING = (*QUICK, "run.rounds=3", f"fleet.clients={NODES}", "data.client_test_fraction=0.2")
STATIC = ("strategy.name=static", "strategy.density=0.2")
KINDS = {
    "a mask that stays": STATIC,
    "one that moves": ("strategy.granularity=model",),
    "parts of the model": ("strategy.name=fjord",),
}


class Forgetful(NodeGrid):
    """Nodes of which the second is started again ahead of some messages, or says that it was.

    Each is named by its kind, and by how often the client was asked with it.
    """

    def __init__(self, *restarts, lies=()):
        super().__init__([{}] * NODES)
        self.restarts, self.lies, self.timeouts = restarts, lies, []

    def send_and_receive(self, messages, *, timeout=None):
        self.timeouts.append(timeout)
        return super().send_and_receive(messages, timeout=timeout)

    def answer(self, message):
        kind, node = message.metadata.message_type, message.metadata.dst_node_id
        when = (kind, self.times(kind) + 1) if node == 101 else None
        if when in self.restarts:
            del self.states[node]
        reply = super().answer(message)
        said = f"<class 'WireError'>:<'the payload needs mask 0, {wire.NOT_HELD}'>"
        return Message(Error(RAISED, said), reply_to=message) if when in self.lies else reply

    def times(self, kind, client=1):
        """How often a client was asked."""
        return self.asked.count((kind, client))


def carried(out, config, grid):
    """Run a configuration over a grid and return the rows of its clients."""
    task = Task.of(config)
    folder = RunFolder.create(out, task.config, command="test")
    with folder.lock():
        execute(task, foreign.make(task), grid, folder, Silent())
    return folder.clients()


def row_of(clients, number, kind="train", client=1):
    """Return a client's row of a round."""
    (row,) = [r for r in clients if (r["round"], r["kind"], r["client"]) == (number, kind, client)]
    return row


@pytest.mark.parametrize("kind", KINDS)
def test_the_bits_and_the_figures_are_those_of_a_run_in_which_nothing_failed(tmp_path, kind):
    config = tiny(*SETTING, *KINDS[kind])
    run_experiment(config, tmp_path / "plain", command="test")
    grid = Forgetful((TRAIN, 2), (EVALUATE, 1))
    carried(tmp_path / "struck", config, grid)
    assert (grid.times(TRAIN), grid.times(TRAIN, 0)) == (4, 3)
    assert (grid.times(EVALUATE), grid.times(EVALUATE, 0)) == (2, 1)
    assert model_bytes(tmp_path / "struck") == model_bytes(tmp_path / "plain")
    for plain, struck in zip(rows(tmp_path / "plain"), rows(tmp_path / "struck"), strict=True):
        twice = struck.pop("bytes_down") - plain.pop("bytes_down")
        assert (twice > 0) == (plain["round"] == 2)
        assert struck == plain


def test_what_is_sent_twice_is_counted_twice(tmp_path):
    clients = carried(tmp_path / "run", tiny(*SETTING, *STATIC), Forgetful((TRAIN, 2)))
    first, second, third = (row_of(clients, number) for number in (1, 2, 3))
    assert second["status"] == "ok"
    assert second["bytes_down"] == first["bytes_down"] + third["bytes_down"]
    assert second["bytes_up"] == third["bytes_up"]


def test_who_says_so_again_is_named_and_asked_no_more_in_that_round(tmp_path):
    grid = Forgetful(lies=((TRAIN, 2), (TRAIN, 3)))
    clients = carried(tmp_path / "run", tiny(*SETTING, *STATIC), grid)
    assert row_of(clients, 2)["reason"] == f"the payload needs mask 0, {wire.NOT_HELD}"
    assert row_of(clients, 2)["status"] == "failed"
    assert row_of(clients, 3)["status"] == "ok"
    assert grid.times(TRAIN) == 4


def forgotten(timeout):
    """Play a round, then a second in which a node forgot its mask; return grid and replies."""
    task = Task.of(tiny(*SETTING, *STATIC))
    strategy, grid = foreign.make(task), Forgetful((TRAIN, 2))
    strategy.directory = Directory.of(grid, NODES, 1.0)
    metered = MeteredGrid(grid, strategy.directory)
    strategy.prepare(metered)
    play(strategy, metered, 1)
    asked = list(strategy.configure_train(2, strategy.arrays(), None, metered))
    return grid, exchange(metered, strategy, asked, timeout)


def test_both_exchanges_take_no_longer_than_one_may():
    grid, replies = forgotten(60.0)
    assert 0 < grid.timeouts[-1] < grid.timeouts[-2] == 60.0
    assert [reply.has_error() for reply in replies] == [False] * NODES
    assert [reply.metadata.src_node_id for reply in replies] == [100, 101, 102]
    grid, replies = forgotten(0.0)
    assert grid.times(TRAIN) == 2
    assert [reply.has_error() for reply in replies] == [False, True, False]


def test_where_workers_add_up_the_late_reply_joins_the_sum():
    def state(lose):
        strategy, grid = stage(*STATIC)
        strategy.prepare(grid)
        play(strategy, grid, 1)
        if lose:
            grid.inner.load_states({c: s for c, s in grid.inner.states().items() if c != 2})
        asked = list(strategy.configure_train(2, strategy.arrays(), None, grid))
        replies = exchange(grid, strategy, asked, 60.0, strategy.round_reader())
        strategy.learn(2, replies)
        assert not strategy.failures
        return {name: value.tobytes() for name, value in strategy.state.items()}

    assert state(lose=True) == state(lose=False)


MORE_TO_LOSE = {
    "a model of its own": ("strategy.name=dispfl",),
    "an optimizer's state": (*STATIC, "client.keep_optimizer=true", "client.momentum=0.9"),
}


@pytest.mark.parametrize("case", MORE_TO_LOSE)
def test_who_has_lost_more_than_a_mask_is_named_and_left_out_of_the_round(tmp_path, case):
    grid = Forgetful((TRAIN, 2))
    clients = carried(tmp_path / "run", tiny(*SETTING, *MORE_TO_LOSE[case]), grid)
    assert row_of(clients, 2)["reason"].endswith(wire.NOT_HELD)
    assert row_of(clients, 3)["status"] == "ok"
    assert grid.times(TRAIN) == 3


def test_in_secure_aggregation_nobody_is_asked_by_itself():
    pytest.importorskip("cryptography", reason="needs the extra 'secure'")
    secure = stage(*STATIC, "strategy.criterion=random", "secure.aggregation=true")[0]
    assert not only_masks(secure)
    assert only_masks(stage(*STATIC)[0])
