"""The grid of real nodes, over a SuperLink of this process: who replied, who was offline, and when.

The SuperLink behaves as Flower's: what it has told once of a message it forgets with it.
"""

from types import SimpleNamespace

import pytest
from flwr.app import Error, Message, MetricRecord, RecordDict

from simulations.flower_internals import SERVER_NODE, become_server, number, redirect
from strategies import prompt
from strategies.addressing import answers
from strategies.prompt import NODE_UNAVAILABLE, PromptGrid
from tests.node_grid import SuperLinkSide

NODES = (11, 22, 33)


class Link(SuperLinkSide):
    """A SuperLink's side of a grid; `turns` says what happens to its nodes at each look."""

    def __init__(self, turns=(), most=10):
        self.turns, self.most = list(turns), most
        self.online = dict.fromkeys(NODES, "first")
        self.silent: set[int] = set()
        self.waiting: dict[str, Message] = {}
        self.told: list[int] = []
        self.unknown: set[int] = set()
        self.forgotten: set[str] = set()
        self.sent: list[Message] = []

    def push_messages(self, messages):
        if len(messages) > self.most:
            return []
        numbers = []
        for message in messages:
            node = message.metadata.dst_node_id
            self.told.append(node)
            self.sent.append(message)
            number(message, "" if node in self.unknown else f"m{len(self.told)}")
            numbers.append(message.metadata.message_id)
            if numbers[-1]:
                self.waiting[numbers[-1]] = message
        return numbers

    def pull_messages(self, message_ids):
        found = []
        for name in message_ids:
            message = self.waiting[name]
            node = message.metadata.dst_node_id
            if node not in self.online:
                reply = Message(Error(NODE_UNAVAILABLE, "Error: Node"), reply_to=message)
                redirect(reply, SERVER_NODE)
            elif node in self.silent or name in self.forgotten:
                continue
            else:
                content = RecordDict({"metrics": MetricRecord({"node": node})})
                reply = Message(content, reply_to=message)
            del self.waiting[name]
            found.append(reply)
        return found

    def get_node_ids(self):
        return list(self.online)

    def get_nodes(self):
        if self.turns:
            self.turns.pop(0)(self)
        return [SimpleNamespace(node_id=n, last_activated_at=t) for n, t in self.online.items()]


def quiet(*nodes):
    return lambda link: link.silent.update(nodes)


def gone(node):
    return lambda link: link.online.pop(node)


def back(node, when="again"):
    def turn(link):
        link.online[node] = when
        link.silent.discard(node)

    return turn


@pytest.fixture(autouse=True)
def fast(monkeypatch):
    """Let every look be a look at the nodes, too."""
    become_server(1)
    monkeypatch.setattr(prompt, "NODES_EVERY", 0.0)
    monkeypatch.setattr(prompt, "FIRST_PAUSE", 0.001)


def asked(link, timeout=5.0, gone_seconds=0.0, least=0.0, remind=None):
    """Send a message to each node; return the reason or None by node, as the round loop sees it."""
    sent = [Message(RecordDict(), node, "train") for node in NODES]
    grid = PromptGrid(link, least=least, gone_seconds=gone_seconds)
    grid.remind = remind
    replies = answers(grid.send_and_receive(sent, timeout=timeout), sent)
    found = {r.metadata.src_node_id: r.error.reason if r.has_error() else None for r in replies}
    assert len(found) == len(replies)
    return found


def test_replies_come_from_every_node():
    assert asked(Link()) == dict.fromkeys(NODES)


def test_a_node_that_goes_offline_is_named_and_not_waited_for():
    link = Link([quiet(22), gone(22)])
    assert asked(link) == {11: None, 22: "the node is offline", 33: None}
    assert link.told == list(NODES)


def test_a_node_that_was_offline_before_costs_nothing():
    link = Link([gone(33)])
    assert asked(link, timeout=0.0)[33] == "the node is offline"


def test_a_node_that_was_started_again_is_asked_again_for_it_has_forgotten():
    def started_anew(link):
        """A new life, which was never told of the message that the earlier one took."""
        link.online[22] = "again"
        link.forgotten.add("m2")
        link.silent.clear()

    link = Link([quiet(22), started_anew])
    assert asked(link) == dict.fromkeys(NODES)
    assert link.told == [*NODES, 22]


def test_a_node_that_comes_back_while_others_are_waited_for_takes_part_again():
    link = Link([quiet(11, 22), gone(22), back(22), lambda link: None, back(11, "first")])
    assert asked(link) == dict.fromkeys(NODES)
    assert link.told.count(22) == 2


def test_a_node_that_is_back_when_the_last_reply_comes_takes_part_again(monkeypatch):
    """Between two looks; Flower withholds its reply, if it was offline before that was fetched."""
    monkeypatch.setattr(prompt, "NODES_EVERY", 60.0)
    link = Link([gone(22), back(22)])
    assert asked(link) == dict.fromkeys(NODES)
    assert link.told == [*NODES, 22]


def test_a_reply_of_an_earlier_life_and_one_of_the_next_count_once():
    link = Link([quiet(22), lambda link: link.online.update({22: "again"}), back(22)])
    assert asked(link) == dict.fromkeys(NODES)


def test_with_too_few_replies_the_return_of_nodes_is_hoped_for_a_while():
    def cut(link):
        link.online.clear()

    turns = [quiet(*NODES), cut, lambda link: None, *(back(node) for node in NODES)]
    assert asked(Link(turns), gone_seconds=5.0, least=1.0) == dict.fromkeys(NODES)
    assert asked(Link([quiet(*NODES), cut])) == dict.fromkeys(NODES, "the node is offline")


def test_a_silent_node_that_is_online_is_waited_for_until_the_timeout():
    assert asked(Link([quiet(22)]), timeout=0.2) == {11: None, 33: None}


def test_a_message_that_the_superlink_refuses_is_named_at_once():
    link = Link()
    link.unknown.add(22)
    assert "refused" in asked(link)[22]


def test_messages_that_are_too_long_together_go_one_by_one():
    link = Link(most=1)
    assert asked(link) == dict.fromkeys(NODES)


def reminding(*nodes):
    """A callback that has some nodes asked more, once each, and the replies that it was shown."""
    left, shown = set(nodes), []

    def remind(replies):
        shown.append([reply.metadata.src_node_id for reply in replies])
        due = [node for node in shown[-1] if node in left]
        left.difference_update(due)
        more = RecordDict({"more": MetricRecord({"more": 1})})
        return [Message(more, node, "train") for node in due]

    return remind, shown


def test_who_is_to_be_reminded_is_asked_at_once_whoever_else_is_silent():
    link = Link([quiet(33)])
    remind, shown = reminding(22)
    assert asked(link, timeout=0.5, remind=remind) == {11: None, 22: None}
    assert link.told == [*NODES, 22]
    assert "more" in link.sent[-1].content
    assert shown == [[11, 22], [22]]


def test_a_reminded_node_that_is_started_again_is_asked_with_what_reminded_it():
    """The new life was never told of it."""

    def started_anew(link):
        link.online[22] = "again"
        link.forgotten.add("m4")
        link.silent.clear()

    link = Link([quiet(33), started_anew])
    remind, shown = reminding(22)
    assert asked(link, remind=remind) == dict.fromkeys(NODES)
    assert link.told == [*NODES, 22, 22]
    assert ["more" in message.content for message in link.sent] == [False] * 3 + [True] * 2
    assert shown[0] == [11, 22]


def test_a_round_that_has_enough_does_not_wait_for_a_reminded_node_that_goes_offline():
    """Hoping for its return would take an hour."""
    link = Link([lambda link: None, gone(22)])
    remind, _ = reminding(22)
    found = asked(link, gone_seconds=3600.0, least=0.5, timeout=5.0, remind=remind)
    assert found == {11: None, 22: "the node is offline", 33: None}
    assert link.told == [*NODES, 22]
