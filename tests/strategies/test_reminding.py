"""A node that forgot its mask in mid-round is asked again with it, once, and nothing is lost."""

from types import SimpleNamespace

import pytest
from flwr.app import Error, Message

from fedsparse import wire
from fedsparse.messages import EVALUATE, TRAIN
from fedsparse.runs import RunFolder
from fedsparse.runs.progress import Silent
from simulations.experiment import run_experiment
from simulations.flower_internals import RAISED, number
from strategies import foreign, prompt, reminding
from strategies.addressing import Directory, MeteredGrid
from strategies.execute import execute
from strategies.prompt import PromptGrid
from strategies.reminding import exchange, only_masks
from strategies.task import Task
from tests.node_grid import NodeGrid, SuperLinkSide
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


class Link(SuperLinkSide):
    """A SuperLink's side of those nodes; of some nothing is heard in some exchanges of training.

    Each is named by its client, and by which of the messages to train it does not answer.
    """

    def __init__(self, nodes, *silent):
        self.nodes, self.silent, self.sent, self.count = nodes, silent, {}, 0

    @classmethod
    def prompt(cls, nodes, *silent):
        """Return the grid of real nodes over such a SuperLink, without models' descriptions."""
        grid = PromptGrid(cls(nodes, *silent))
        grid.may_lack_torch = False
        return grid

    def push_messages(self, messages):
        numbers = []
        for message in messages:
            self.count += 1
            number(message, f"m{self.count}")
            numbers.append(message.metadata.message_id)
            client = message.metadata.dst_node_id - 100
            reply = self.nodes.answer(message)
            if (client, self.nodes.times(TRAIN, client)) not in self.silent:
                self.sent[numbers[-1]] = reply
        return numbers

    def pull_messages(self, message_ids):
        return [self.sent.pop(name) for name in message_ids if name in self.sent]

    def get_node_ids(self):
        return self.nodes.get_node_ids()

    def get_nodes(self):
        return [SimpleNamespace(node_id=n, last_activated_at="") for n in self.get_node_ids()]


GRIDS = {"a grid that waits for all": lambda nodes: nodes, "one of real nodes": Link.prompt}


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


@pytest.mark.parametrize("over", GRIDS)
@pytest.mark.parametrize("kind", KINDS)
def test_the_bits_and_the_figures_are_those_of_a_run_in_which_nothing_failed(tmp_path, kind, over):
    config = tiny(*SETTING, *KINDS[kind])
    run_experiment(config, tmp_path / "plain", command="test")
    grid = Forgetful((TRAIN, 2), (EVALUATE, 1))
    carried(tmp_path / "struck", config, GRIDS[over](grid))
    assert (grid.times(TRAIN), grid.times(TRAIN, 0)) == (4, 3)
    assert (grid.times(EVALUATE), grid.times(EVALUATE, 0)) == (2, 1)
    assert model_bytes(tmp_path / "struck") == model_bytes(tmp_path / "plain")
    for plain, struck in zip(rows(tmp_path / "plain"), rows(tmp_path / "struck"), strict=True):
        twice = struck.pop("bytes_down") - plain.pop("bytes_down")
        assert (twice > 0) == (plain["round"] == 2)
        assert struck == plain


@pytest.mark.parametrize("over", GRIDS)
def test_what_is_sent_twice_is_counted_twice(tmp_path, over):
    grid = GRIDS[over](Forgetful((TRAIN, 2)))
    clients = carried(tmp_path / "run", tiny(*SETTING, *STATIC), grid)
    first, second, third = (row_of(clients, number) for number in (1, 2, 3))
    assert second["status"] == "ok"
    assert second["bytes_down"] == first["bytes_down"] + third["bytes_down"]
    assert second["bytes_up"] == third["bytes_up"]


@pytest.mark.parametrize("over", GRIDS)
def test_who_says_so_again_is_named_and_asked_no_more_in_that_round(tmp_path, over):
    grid = Forgetful(lies=((TRAIN, 2), (TRAIN, 3)))
    clients = carried(tmp_path / "run", tiny(*SETTING, *STATIC), GRIDS[over](grid))
    assert row_of(clients, 2)["reason"] == f"the payload needs mask 0, {wire.NOT_HELD}"
    assert row_of(clients, 2)["status"] == "failed"
    assert row_of(clients, 3)["status"] == "ok"
    assert grid.times(TRAIN) == 4


@pytest.fixture
def quick(monkeypatch):
    """Let no time pass where the grid of real nodes waits, but on its clock."""
    clock = SimpleNamespace(now=0.0)

    def sleep(seconds):
        clock.now += seconds

    told = SimpleNamespace(monotonic=lambda: clock.now, sleep=sleep)
    for module in (prompt, reminding):
        monkeypatch.setattr(module, "time", told)


@pytest.mark.usefixtures("quick")
def test_it_is_sent_its_mask_though_another_client_is_silent_to_the_end(tmp_path):
    grid = Link.prompt(Forgetful((TRAIN, 2)), (2, 2))
    clients = carried(tmp_path / "run", tiny(*SETTING, *STATIC), grid)
    found = {c: row_of(clients, 2, client=c) for c in range(NODES)}
    assert [found[c]["status"] for c in range(NODES)] == ["ok", "ok", "failed"]
    assert found[2]["reason"] == "no reply in time"
    assert row_of(clients, 3, client=2)["status"] == "ok"
    assert grid.remind is None


@pytest.mark.usefixtures("quick")
@pytest.mark.parametrize("over", GRIDS)
def test_who_was_sent_its_mask_and_is_late_gave_no_reply_in_time(tmp_path, over):
    class Late(Forgetful):
        """Nodes of which the second does not answer when it is reminded."""

        def send_and_receive(self, messages, *, timeout=None):
            replies = super().send_and_receive(messages, timeout=timeout)
            return [] if self.times(TRAIN) == 3 and len(replies) == 1 else replies

    nodes = Late((TRAIN, 2))
    grid = nodes if over == "a grid that waits for all" else Link.prompt(nodes, (1, 3))
    clients = carried(tmp_path / "run", tiny(*SETTING, *STATIC), grid)
    row = row_of(clients, 2)
    assert (row["status"], row["reason"]) == ("failed", "no reply in time")
    assert row_of(clients, 3)["status"] == "ok"


@pytest.mark.parametrize("over", GRIDS)
def test_whoever_fails_otherwise_keeps_the_reason(tmp_path, over):
    class Broken(Forgetful):
        """Nodes of which the third breaks down in round 2, beside the second, which forgets."""

        def answer(self, message):
            reply = super().answer(message)
            if message.metadata.dst_node_id == 102 and self.times(TRAIN, 2) == 2:
                return Message(Error(RAISED, "<class 'OSError'>:<'no disk'>"), reply_to=message)
            return reply

    grid = GRIDS[over](Broken((TRAIN, 2)))
    clients = carried(tmp_path / "run", tiny(*SETTING, *STATIC), grid)
    assert row_of(clients, 2)["status"] == "ok"
    assert row_of(clients, 2, client=2)["reason"] == "OSError: no disk"


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
