"""Which node is which client, which clients take part, and what their messages weigh.

Flower draws node ids at random, so clients are named by partition id everywhere else;
node ids are only addresses. `MeteredGrid` stands between a strategy and any grid: it
puts replies into the order of clients and counts the bytes of every payload.
"""

import math
import time
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from flwr.app import ArrayRecord, ConfigRecord, Message, MetricRecord, RecordDict
from flwr.serverapp import Grid

from fedsparse import messages, seeds, wire
from fedsparse import messages as protocol
from fedsparse.config import FleetConfig
from fedsparse.data import schema
from fedsparse.data.schema import Schema
from fedsparse.errors import GridError, TooFewRepliesError
from strategies.added import AddedUp
from strategies.consecutive import Consecutive
from strategies.reasons import reason_of
from strategies.replies import Reader
from strategies.seats import Kept, KeptOf
from strategies.trips import Trip
from strategies.wrapped import Wrapped

POLL_SECONDS = 0.5
CONNECT_SECONDS = 120.0


@dataclass(frozen=True)
class Directory:
    """Addresses of the clients, by partition id."""

    node_of: Mapping[int, int]
    client_of: Mapping[int, int]
    schemas: Mapping[int, Schema | str] = field(default_factory=dict)
    """What the nodes tell of data of their own, or why they cannot."""
    readers: frozenset[int] = frozenset()
    """Nodes that train without torch when they are sent a description of the model."""
    forgetful: frozenset[int] = frozenset()
    """Clients whose nodes say that they keep no state on their disks."""

    @classmethod
    def of(
        cls,
        grid: Grid,
        clients: int,
        timeout: float = CONNECT_SECONDS,
        *,
        absent: Collection[int] = (),
        config: ConfigRecord | None = None,
    ) -> "Directory":
        """Ask every node who it is, and wait at most `timeout` seconds for all that are not absent.

        With the run's configuration, nodes tell of data of their own, too. A grid that knows its
        clients (`clients_by_node`) isn't asked. Raises GridError with the partition ids that are
        missing when not all are there in time.
        """
        known: Mapping[int, int] | None = getattr(grid, "clients_by_node", None)
        told = Answers()
        if known is None:
            told = _ask(grid, clients, timeout, absent, config)
        client_of = told.client_of if known is None else known
        node_of, missing = _inverted(client_of, clients)
        missing = [client for client in missing if client not in absent]
        if missing:
            named = ", ".join(map(str, missing[:10])) + (", ..." if missing[10:] else "")
            raise GridError(
                f"{clients - len(missing)} of {clients} clients are connected after "
                f"{timeout:.0f} s, without partition-id {named}; start a node for each, "
                f"or lower fleet.clients{told.example}"
            )
        return cls(
            node_of, client_of, told.schemas, frozenset(told.readers), frozenset(told.forgetful)
        )

    @property
    def nodes(self) -> Sequence[int]:
        """Addresses in the order of clients."""
        if isinstance(self.node_of, Consecutive):
            return self.node_of.numbers
        return [node for _, node in sorted(self.node_of.items())]


@dataclass
class Answers:
    """What nodes say when they are asked who they are."""

    client_of: dict[int, int] = field(default_factory=dict)
    schemas: dict[int, Schema | str] = field(default_factory=dict)
    readers: set[int] = field(default_factory=set)
    forgetful: set[int] = field(default_factory=set)
    failures: dict[int, str] = field(default_factory=dict)
    """Why a node cannot say, such as one of another version, which knows not every key."""

    def take(self, node: int, client: int, reply: Message) -> None:
        """Note what the node of a client answers."""
        self.client_of[node] = client
        told = reply.content.config_records.get(messages.DATA)
        if told is not None:
            self.schemas[client] = schema.read(told)
        if _told(reply, messages.READS_MODEL_KEY):
            self.readers.add(node)
        if not _told(reply, messages.KEEPS_STATE_KEY):
            self.forgetful.add(client)

    @property
    def example(self) -> str:
        """The reason of one of those who cannot say who they are; '' for none."""
        left = sorted(self.failures.keys() - self.client_of.keys())
        return f"; node {left[0]} answers: {self.failures[left[0]]}" if left else ""


def _inverted(
    client_of: Mapping[int, int], clients: int
) -> tuple[Mapping[int, int], Sequence[int]]:
    """Return node id by partition id, and the partition ids of the run that have none.

    A grid of consecutive clients, which begin at 0, is not gone through.
    """
    if isinstance(client_of, Consecutive) and client_of.numbers.start == 0:
        return client_of.inverse, range(len(client_of), clients)
    node_of = {client: node for node, client in client_of.items()}
    return node_of, [client for client in range(clients) if client not in node_of]


def _ask(
    grid: Grid,
    clients: int,
    timeout: float,
    absent: Collection[int],
    config: ConfigRecord | None,
) -> Answers:
    """Return what every node answers; those of other runs' clients are passed over."""
    found = Answers()
    wanted = set(range(clients)).difference(absent)
    deadline = time.monotonic() + timeout
    while True:
        new = [node for node in grid.get_node_ids() if node not in found.client_of]
        content = RecordDict() if config is None else RecordDict({messages.CONFIG: config})
        asked = [Message(content, node, messages.IDENTIFY) for node in new]
        left = max(1.0, deadline - time.monotonic())
        for reply in grid.send_and_receive(messages=asked, timeout=left) if asked else []:
            client, node = _told(reply, messages.CLIENT_KEY), reply.metadata.src_node_id
            if client is not None and 0 <= client < clients:
                found.take(node, client, reply)
            elif reply.has_error():
                found.failures[node] = reason_of(reply)
        if wanted <= set(found.client_of.values()) or time.monotonic() > deadline:
            return found
        time.sleep(POLL_SECONDS)


def _told(reply: Message, key: str) -> int | None:
    """Return a whole number that a reply tells, such as its partition id; None for none."""
    if not reply.has_content():
        return None
    record = reply.content.metric_records.get(messages.METRICS, MetricRecord())
    value = record.get(key)
    return value if isinstance(value, int) else None


def round_size(fleet: FleetConfig) -> int:
    """Return how many clients a round wants: all, unless the configuration says fewer."""
    return fleet.clients_per_round or fleet.training_clients


def least_replies(asked: int, least: float) -> int:
    """Return how many of those asked must reply, a fraction `least` of them and one at least."""
    return max(1, math.ceil(least * asked - 1e-9))


def require_replies(got: int, asked: int, least: float, failures: dict[int, str]) -> None:
    """Raise TooFewRepliesError when a round has too few replies to go on; it may ask nobody."""
    needed = least_replies(asked, least) if asked else 0
    if got >= needed:
        return
    example = next((f"; client {c}: {reason}" for c, reason in sorted(failures.items())), "")
    raise TooFewRepliesError(
        f"{got} of {asked} clients replied, "
        f"fleet.min_replies = {least:g} asks for {needed}{example}"
    )


def cohort(
    fleet: FleetConfig, seed: int, round_number: int, absent: Collection[int] = ()
) -> list[int]:
    """Return the clients of a round, ascending, by the run's own stream.

    Two strategies with one seed see the same clients in each round. One that is absent has another
    in its place, so that a round that does not draw it is the same with and without it.
    """
    rng = seeds.stream(seed, round_number, seeds.SERVER, "clients")
    return sorted(draw(rng, pool(fleet, seed), round_size(fleet), absent))


def pool(fleet: FleetConfig, seed: int) -> Sequence[int]:
    """Return the clients that the run's rounds draw from: all, or a fraction drawn once.

    Whoever is absent is in it all the same, so that nobody else's place changes. The smaller it is,
    the likelier a client that is to be forgotten was never asked (FATS, Tao et al. 2024).
    """
    everyone = range(fleet.training_clients)
    if fleet.pool is None:
        return everyone
    rng = seeds.stream(seed, 0, seeds.SERVER, "pool")
    return draw(rng, everyone, math.ceil(fleet.pool * len(everyone)))


def draw(
    rng: np.random.Generator, clients: Sequence[int], size: int, absent: Collection[int] = ()
) -> list[int]:
    """Draw some of the clients as if none were absent, and others in the places of absent ones.

    Those come from further draws of the same stream, which say nothing of who else is absent.
    There are fewer where too few are present; all that are present where `size` is all.
    """
    if size >= len(clients):
        return [client for client in clients if client not in absent]
    chosen = rng.choice(len(clients), size, replace=False)
    found = [clients[int(place)] for place in chosen]
    gone = [place for place, client in enumerate(found) if client in absent]
    if not gone:
        return found
    left = np.setdiff1d(np.arange(len(clients)), chosen, assume_unique=True)
    others = (clients[int(place)] for place in rng.permutation(left))
    spare = (client for client in others if client not in absent)
    for place, client in zip(gone, spare, strict=False):
        found[place] = client
    return [client for client in found if client not in absent]


def tested_by(fleet: FleetConfig, absent: Collection[int]) -> list[int]:
    """Return the clients that test on their own samples: the first that train, and novel ones."""
    trained = range(min(fleet.training_clients, fleet.evaluate_clients))
    novel = range(fleet.training_clients, fleet.clients)[: fleet.evaluate_clients]
    return [client for client in (*trained, *novel) if client not in absent]


@dataclass
class Traffic:
    """What went over the grid since the last reading: bytes by client, both ways."""

    down: dict[int, int] = field(default_factory=dict)
    up: dict[int, int] = field(default_factory=dict)

    @property
    def bytes_down(self) -> int:
        """Bytes of the payloads sent to clients."""
        return sum(self.down.values())

    @property
    def bytes_up(self) -> int:
        """Bytes of the payloads that clients sent."""
        return sum(self.up.values())


class MeteredGrid(Wrapped):
    """Any grid, with replies in the order of clients and every payload's bytes counted."""

    def __init__(self, inner: Grid, directory: Directory) -> None:
        self.inner = inner
        self.directory = directory
        self._traffic = Traffic()
        self.least_nodes = 1
        """Nodes that a strategy of another maker waits for."""
        self.absent: Collection[int] = ()
        """Clients whose nodes a strategy of another maker isn't told of."""
        self.lost = False
        """Whether the last round's replies, though enough, make no sum: the next round goes on."""
        self.described: bytes | None = None
        """The description of the model, for nodes that read it in the place of torch."""

    def read_traffic(self) -> Traffic:
        """Return what was counted since the last call, and start again from zero."""
        seen, self._traffic = self._traffic, Traffic()
        return seen

    # -- what a grid with a simulated clock knows more of -------------------------------

    @property
    def trips(self) -> Mapping[int, Trip]:
        """Each client's trip since `figures` was last read, on the simulated clock."""
        return {}

    def describe(
        self, plan: messages.Plan, kept: Kept | KeptOf | None, fits: frozenset[str]
    ) -> Any:
        """Return what is to be said of the devices; None without any."""
        return None

    def figures(self, kept: Kept | KeptOf | None, fits: frozenset[str]) -> dict[str, Any]:
        """Return the clock's figures of the round that has ended."""
        return {
            "simulated_seconds": None,
            "waited_seconds": None,
            "energy_joules": None,
            "clients_refused": 0,
        }

    def state_dict(self) -> dict[str, Any]:
        """Return what a resumed run must know of the clock."""
        return {}

    def load_state_dict(self, saved: Mapping[str, Any]) -> None:
        """Go on from what `state_dict` returned."""

    # -- messages ---------------------------------------------------------------------

    def send_and_receive(
        self,
        messages: Iterable[Message],
        *,
        timeout: float | None = None,
        reader: Reader | None = None,
    ) -> list[Message]:
        """Send messages, wait for the replies, and return them in the order of clients.

        With a reader, a grid whose workers can do so adds models up on the way.
        """
        sent = self._with_model(messages)
        if not sent:
            return []
        client_of = self.directory.client_of
        adds = {"reader": reader} if reader and getattr(self.inner, "adds_up", False) else {}
        replies = answers(self.inner.send_and_receive(messages=sent, timeout=timeout, **adds), sent)
        reached: set[str] | None = getattr(self.inner, "reached", None)
        sizes: dict[int, int] = {}  # of what is sent to several clients
        for message in sent:
            if reached is None or message.metadata.message_id in reached:
                alike = id(message.content)
                if alike not in sizes:
                    sizes[alike] = payload_bytes(message)
                client = client_of[message.metadata.dst_node_id]
                self._traffic.down[client] = self._traffic.down.get(client, 0) + sizes[alike]
        replies.sort(key=lambda reply: client_of[reply.metadata.src_node_id])
        for reply in replies:
            _count(self._traffic.up, client_of[reply.metadata.src_node_id], reply)
        return replies

    def _with_model(self, sent: Iterable[Message]) -> list[Message]:
        """Return messages, with the description of the model for those who read it.

        What is sent to several stays one object.
        """
        if self.described is None or not self.directory.readers:
            return list(sent)
        made: dict[int, tuple[RecordDict, RecordDict]] = {}
        found = []
        for message in sent:
            whole = message.content
            kind, node = message.metadata.message_type, message.metadata.dst_node_id
            if node in self.directory.readers and kind not in protocol.MASKING:
                if id(whole) not in made:
                    made[id(whole)] = whole, self._described(whole)
                message.content = made[id(whole)][1]
            found.append(message)
        return found

    def _described(self, whole: RecordDict) -> RecordDict:
        """Return a message's content with the description in its configuration."""
        record = whole.config_records.get(protocol.CONFIG, ConfigRecord())
        told = ConfigRecord({**record, protocol.MODEL_KEY: self.described or b""})
        return RecordDict({**whole, protocol.CONFIG: told})

    def get_node_ids(self) -> Sequence[int]:
        """Return the nodes' addresses in the order of clients, without those that are absent."""
        nodes, client_of = self.directory.nodes, self.directory.client_of
        absent = self.absent
        return [node for node in nodes if client_of[node] not in absent] if absent else nodes

    def push_messages(self, messages: Iterable[Message]) -> Iterable[str]:
        """Count and pass on to the grid behind."""
        return self.inner.push_messages(self.outgoing(messages))

    def outgoing(self, messages: Iterable[Message]) -> list[Message]:
        """Return messages as nodes are sent them, and count their bytes."""
        sent = self._with_model(messages)
        for message in sent:
            client = self.directory.client_of[message.metadata.dst_node_id]
            _count(self._traffic.down, client, message)
        return sent

    def pull_messages(self, message_ids: Iterable[str]) -> Iterable[Message]:
        """Take from the grid behind, and count."""
        replies = list(self.inner.pull_messages(message_ids))
        for reply in replies:
            client = self.directory.client_of[reply.metadata.src_node_id]
            _count(self._traffic.up, client, reply)
        return replies


def answers(replies: Iterable[Message], sent: Sequence[Message]) -> list[Message]:
    """Return the replies to what was sent, each from the node that it was sent to.

    One to a message of an earlier round counted there, or was given up: it must not stand for its
    client's reply now. A grid that numbers no messages has its nodes alone looked at.
    """
    asked = {message.metadata.message_id: message.metadata.dst_node_id for message in sent}
    nodes = set(asked.values())
    if "" in asked:
        return [reply for reply in replies if reply.metadata.src_node_id in nodes]
    return [
        reply
        for reply in replies
        if asked.get(reply.metadata.reply_to_message_id) == reply.metadata.src_node_id
    ]


def payload_bytes(message: Message) -> int:
    """Return the length of a message's payloads, also of what was added up since.

    A description of the model counts as one.
    """
    if not message.has_content():
        return 0
    record = message.content.config_records.get(protocol.CONFIG)
    described = None if record is None else record.get(protocol.MODEL_KEY)
    return (len(described) if isinstance(described, bytes) else 0) + sum(
        record.length if isinstance(record, AddedUp) else wire.record_bytes(record)
        for record in message.content.values()
        if isinstance(record, ArrayRecord)
    )


def _count(table: dict[int, int], client: int, message: Message) -> None:
    """Add the lengths of a message's payloads to a client's account."""
    table[client] = table.get(client, 0) + payload_bytes(message)
