"""A client under secure aggregation: what it refuses a server that asks too much; it forgets."""

import numpy as np
import pytest
from flwr.app import ConfigRecord, Message, RecordDict

from clients import kept_state
from fedsparse import messages, wire
from fedsparse.messages import SECURE_KEYS, SECURE_SHARES, SECURE_UNMASK, TRAIN
from fedsparse.secure import keys, letters
from fedsparse.secure.letters import KEY_SHARE, SEED_SHARE, Want
from tests.node_grid import RUN, NodeGrid
from tests.strategies.stage import stage

CLIENTS = 5
FIRST, SECOND = b"1" * 16, b"2" * 16


class Refused(Exception):
    """What a client says that does not answer."""


class Server:
    """A server that asks any client anything, in any order; it need not be honest."""

    def __init__(self):
        self.strategy, metered = stage(
            *("strategy.name=static", "strategy.criterion=random", "data.partition=iid"),
            *("secure.aggregation=true", f"fleet.clients={CLIENTS}"),
        )
        self.strategy.prepare(metered)
        self.grid = metered.inner
        asked = self.strategy.configure_train(1, self.strategy.arrays(), ConfigRecord(), metered)
        self.training = {m.metadata.dst_node_id: m.content for m in asked}
        self.peers = {}
        self.dealt = {}

    def say(self, kind, client, arrays=None, session=FIRST, **about):
        """Return the bytes of a client's answer; raises Refused with its reason."""
        node = self.grid.node_of(client)
        said = ConfigRecord({messages.SESSION_KEY: session, **about})
        content = RecordDict(
            self.training[node]
            if kind == TRAIN
            else {messages.CONFIG: ConfigRecord({messages.ROUND_KEY: 1})}
        )
        content[messages.SECURE] = said
        if arrays is not None:
            content[messages.ARRAYS] = wire.pack(arrays)
        (reply,) = self.grid.send_and_receive([Message(content, node, kind)])
        if reply.has_error():
            raise Refused(reply.error.reason)
        return wire.unpack(reply.content[messages.ARRAYS])

    def ask_keys(self, session=FIRST):
        """Step 0 with every client."""
        for k in range(CLIENTS):
            told = self.say(SECURE_KEYS, k, session=session)
            self.peers[k] = letters.Peer(k, told[:32], told[32:])

    def near(self, client):
        """Return a client's neighbours: all others."""
        return [peer for k, peer in self.peers.items() if k != client]

    def ask_shares(self, client, peers=None, threshold=0.6, session=FIRST):
        """Step 1 with one client."""
        table = letters.write_peers(self.near(client) if peers is None else peers)
        told = self.say(SECURE_SHARES, client, table, session, threshold=threshold)
        count = len(self.near(client) if peers is None else peers)
        self.dealt[client] = letters.pieces(told[32:], letters.SEALED, count, "shares")

    def train(self, client, members=range(CLIENTS), session=FIRST):
        """Step 2 with one client."""
        return self.say(TRAIN, client, session=session, members=list(members))

    def wants(self, client, lost=()):
        """Return what an honest server asks a client, where some were lost."""
        place = {
            i: [p.client for p in self.near(i)].index(client) for i in self.peers if i != client
        }
        return [
            Want(i, KEY_SHARE if i in lost else SEED_SHARE, self.dealt[i][at])
            for i, at in place.items()
        ]

    def unmask(self, client, wants, session=FIRST):
        """Step 3 with one client."""
        return self.say(SECURE_UNMASK, client, letters.write_wants(wants), session)

    def secrets(self, client):
        """Return the names of what a client keeps of its round."""
        state = self.grid.states().get(client, {})
        return set(state.get("arrays", {}).get(messages.SECURE, {}))


@pytest.fixture
def server():
    """A server with which all clients have made keys."""
    found = Server()
    found.ask_keys()
    return found


@pytest.fixture
def trained(server):
    """A server that has every client's masked model."""
    for client in range(CLIENTS):
        server.ask_shares(client)
    for client in range(CLIENTS):
        server.train(client)
    return server


def test_a_client_keeps_secrets_no_longer_than_they_are_needed(server):
    assert server.secrets(0) == {"session", "key-for-shares", "key-for-masks"}
    for client in range(CLIENTS):
        server.ask_shares(client)
    assert server.secrets(0) >= {"seed", "peers", "key-for-masks"}
    for client in range(CLIENTS):
        server.train(client)
    assert server.secrets(0) == {"session", "key-for-shares", "peers", "needed", "members"}
    server.unmask(0, server.wants(0, lost={3}))
    assert server.secrets(0) == set()
    server.ask_keys(SECOND)
    assert server.secrets(1) == {"session", "key-for-shares", "key-for-masks"}, "the old ones went"


def test_keys_seeds_and_masks_are_new_each_round(server):
    words = []
    for session in (FIRST, SECOND):
        before = dict(server.peers)
        server.ask_keys(session)
        assert not {p.for_masks for p in server.peers.values()} & {
            p.for_masks for p in before.values()
        }
        for client in range(CLIENTS):
            server.ask_shares(client, session=session)
        sent = letters_of(server.train(0, session=session))
        words.append(sent)
    same = np.mean(words[0] == words[1])
    assert same < 0.01, "equal models under masks that were used twice would be equal"


def letters_of(payload):
    """Return the words of a masked payload."""
    return np.frombuffer(payload[48:-4], "<u4")


def test_masks_that_were_used_twice_would_be_seen(monkeypatch):
    monkeypatch.setattr(keys, "fresh", lambda: b"\7" * 32)
    with pytest.raises(AssertionError):
        test_keys_seeds_and_masks_are_new_each_round(Server())


def test_both_secrets_of_one_client_are_not_told(trained):
    wants = trained.wants(0)
    both = [*wants, wants[0]._replace(kind=KEY_SHARE)]
    with pytest.raises(Refused, match="names a client twice"):
        trained.unmask(0, both)
    trained.unmask(0, wants)
    with pytest.raises(Refused, match="not in"):
        trained.unmask(0, trained.wants(0, lost={1}))


def test_below_the_threshold_nothing_is_told(trained):
    with pytest.raises(Refused, match="2 neighbours are left, 3 are needed; no shares"):
        trained.unmask(0, trained.wants(0, lost={1, 2}))
    assert len(trained.unmask(0, trained.wants(0, lost={1}))) == 4 * 33


@pytest.mark.parametrize("change", ["other", "own", "kind", "damaged", "short", "another's"])
def test_what_no_honest_server_asks_is_refused(trained, change):
    wants = trained.wants(0)
    first = wants[0]
    forged = {
        "other": [*wants, first._replace(client=77)],
        "own": [*wants, first._replace(client=0)],
        "kind": [first._replace(kind=2), *wants[1:]],
        "damaged": [first._replace(sealed=bytes(94)), *wants[1:]],
        "short": wants[:2],
        "another's": [first._replace(sealed=wants[1].sealed), *wants[1:]],
    }
    with pytest.raises(Refused):
        trained.unmask(0, forged[change])


def test_steps_out_of_order_are_refused(server):
    with pytest.raises(Refused, match="sends no model"):
        server.train(0)
    for client in range(CLIENTS):
        server.ask_shares(client)
    with pytest.raises(Refused, match="tells no shares"):
        server.unmask(0, server.wants(0))
    with pytest.raises(Refused, match="dealt its shares of this round already"):
        server.ask_shares(0)
    server.train(0)
    with pytest.raises(Refused, match="no seed of this round"):
        server.train(0)  # two models under one mask would tell their difference


def test_a_message_of_a_round_before_is_refused(trained):
    old = trained.wants(0)
    trained.ask_keys(SECOND)
    with pytest.raises(Refused, match="a round of secure aggregation that this client is not in"):
        trained.unmask(0, old)
    with pytest.raises(Refused, match="not in"):
        trained.ask_shares(0, session=FIRST)


@pytest.mark.parametrize("threshold", [0.5, 0.1, -1.0, 1.1, float("nan")])
def test_a_threshold_that_is_not_above_a_half_is_refused(server, threshold):
    with pytest.raises(Refused, match="not above a half"):
        server.ask_shares(0, threshold=threshold)


def test_a_sum_with_one_neighbour_or_with_itself_is_refused(server):
    with pytest.raises(Refused, match="1 neighbours is refused"):
        server.ask_shares(0, server.near(0)[:1])
    with pytest.raises(Refused, match="refused"):
        server.ask_shares(0, list(server.peers.values()))
    weak = [peer._replace(for_shares=bytes(32)) for peer in server.near(0)]
    with pytest.raises(Refused, match="a public key is none"):
        server.ask_shares(0, weak)


def test_with_too_few_in_the_sum_or_without_itself_no_model_is_sent(server):
    for client in range(CLIENTS):
        server.ask_shares(client)
    with pytest.raises(Refused, match="2 of 4 neighbours are left, 3 are needed"):
        server.train(0, [0, 1, 2])
    with pytest.raises(Refused, match="sends no model"):
        server.train(0, [1, 2, 3, 4])
    assert server.train(0, [0, 1, 2, 3])


def test_a_model_in_plain_is_not_to_be_had(server):
    node = server.grid.node_of(0)
    (reply,) = server.grid.send_and_receive([Message(server.training[node], node, TRAIN)])
    assert "sends nothing in plain" in reply.error.reason


def test_where_a_node_keeps_its_state_no_secret_is_kept_and_no_step_is_answered_twice(tmp_path):
    """A message that is asked again meets the state before it: never the secrets before it."""
    server = Server()
    training = [server.training[server.grid.node_of(client)] for client in range(CLIENTS)]
    server.grid = NodeGrid([{kept_state.PATH: str(tmp_path)}] * CLIENTS)
    server.grid.node_of = lambda client: 100 + client
    server.training = {100 + client: content for client, content in enumerate(training)}
    server.ask_keys()
    for client in range(CLIENTS):
        server.ask_shares(client)
    for client in range(CLIENTS):
        server.train(client)
    kept = kept_state.read(tmp_path / f"run-{RUN}-client-0.state")
    assert kept.after["arrays"]
    assert not any(
        messages.SECURE in state.get("arrays", {}) for state in (kept.before, kept.after)
    )
    with pytest.raises(Refused, match="no seed of this round"):
        server.train(0, [0, 1, 2, 3])
    server.unmask(0, server.wants(0))
    with pytest.raises(Refused, match="not in"):
        server.unmask(0, server.wants(0, lost={1}))
