"""Which node is which client, which clients take part, and what their messages weigh.

Flower draws node ids at random, so clients are named by partition id everywhere else;
node ids are only addresses. `MeteredGrid` stands between a strategy and any grid: it
puts replies into the order of clients and counts the bytes of every payload.
"""

import time
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

from flwr.app import Message, MetricRecord, RecordDict
from flwr.serverapp import Grid

from fedsparse import messages, seeds, wire
from fedsparse.config import FleetConfig
from fedsparse.errors import GridError

POLL_SECONDS = 0.5
CONNECT_SECONDS = 120.0


@dataclass(frozen=True)
class Directory:
    """Addresses of the clients, by partition id."""

    node_of: Mapping[int, int]
    client_of: Mapping[int, int]

    @classmethod
    def of(cls, grid: Grid, clients: int, timeout: float = CONNECT_SECONDS) -> "Directory":
        """Ask every node who it is, and wait at most `timeout` seconds for all.

        A grid that knows its clients (`clients_by_node`) isn't asked. Raises GridError
        with the partition ids that are missing when not all are there in time.
        """
        known: Mapping[int, int] | None = getattr(grid, "clients_by_node", None)
        found = dict(known) if known is not None else _ask(grid, clients, timeout)
        missing = sorted(set(range(clients)) - set(found.values()))
        if missing:
            named = ", ".join(map(str, missing[:10])) + (", ..." if missing[10:] else "")
            raise GridError(
                f"{clients - len(missing)} of {clients} clients are connected after "
                f"{timeout:.0f} s, without partition-id {named}; start a node for each, "
                "or lower fleet.clients"
            )
        return cls({client: node for node, client in found.items()}, found)


def _ask(grid: Grid, clients: int, timeout: float) -> dict[int, int]:
    """Return node id to partition id of every node that answers with one of this run."""
    found: dict[int, int] = {}
    deadline = time.monotonic() + timeout
    while True:
        new = [node for node in grid.get_node_ids() if node not in found]
        asked = [Message(RecordDict(), node, messages.IDENTIFY) for node in new]
        left = max(1.0, deadline - time.monotonic())
        for reply in grid.send_and_receive(messages=asked, timeout=left) if asked else []:
            client = _told(reply)
            if client is not None and 0 <= client < clients:
                found[reply.metadata.src_node_id] = client
        if len(set(found.values())) == clients or time.monotonic() > deadline:
            return found
        time.sleep(POLL_SECONDS)


def _told(reply: Message) -> int | None:
    """Return the partition id that a reply tells, None when it tells none."""
    if not reply.has_content():
        return None
    record = reply.content.metric_records.get(messages.METRICS, MetricRecord())
    value = record.get(messages.CLIENT_KEY)
    return value if isinstance(value, int) else None


def cohort(fleet: FleetConfig, seed: int, round_number: int) -> list[int]:
    """Return the clients of a round, ascending, by the run's own stream.

    Two strategies with one seed see the same clients in each round.
    """
    size = fleet.clients_per_round or fleet.clients
    if size >= fleet.clients:
        return list(range(fleet.clients))
    rng = seeds.stream(seed, round_number, seeds.SERVER, "clients")
    return sorted(int(c) for c in rng.choice(fleet.clients, size, replace=False))


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


class MeteredGrid(Grid):
    """Any grid, with replies in the order of clients and every payload's bytes counted."""

    def __init__(self, inner: Grid, directory: Directory) -> None:
        self.inner = inner
        self.directory = directory
        self._traffic = Traffic()

    def read_traffic(self) -> Traffic:
        """Return what was counted since the last call, and start again from zero."""
        seen, self._traffic = self._traffic, Traffic()
        return seen

    def send_and_receive(
        self, messages: Iterable[Message], *, timeout: float | None = None
    ) -> list[Message]:
        """Send messages, wait for the replies, and return them in the order of clients."""
        sent = list(messages)
        if not sent:
            return []
        client_of = self.directory.client_of
        replies = list(self.inner.send_and_receive(messages=sent, timeout=timeout))
        reached: set[str] | None = getattr(self.inner, "reached", None)
        for message in sent:
            if reached is None or message.metadata.message_id in reached:
                _count(self._traffic.down, client_of[message.metadata.dst_node_id], message)
        replies.sort(key=lambda reply: client_of[reply.metadata.src_node_id])
        for reply in replies:
            _count(self._traffic.up, client_of[reply.metadata.src_node_id], reply)
        return replies

    def get_node_ids(self) -> list[int]:
        """Return the nodes' addresses in the order of clients."""
        return [node for _, node in sorted(self.directory.node_of.items())]

    def set_run(self, *args: Any, **kwargs: Any) -> None:
        """Pass on to the grid behind."""
        self.inner.set_run(*args, **kwargs)

    @property
    def run(self) -> Any:
        """The run of the grid behind."""
        return self.inner.run

    def create_message(self, *args: Any, **kwargs: Any) -> Message:
        """Pass on to the grid behind."""
        return self.inner.create_message(*args, **kwargs)

    def push_messages(self, messages: Iterable[Message]) -> Iterable[str]:
        """Count and pass on to the grid behind."""
        sent = list(messages)
        for message in sent:
            client = self.directory.client_of[message.metadata.dst_node_id]
            _count(self._traffic.down, client, message)
        return self.inner.push_messages(sent)

    def pull_messages(self, message_ids: Iterable[str]) -> Iterable[Message]:
        """Take from the grid behind, and count."""
        replies = list(self.inner.pull_messages(message_ids))
        for reply in replies:
            client = self.directory.client_of[reply.metadata.src_node_id]
            _count(self._traffic.up, client, reply)
        return replies


def _count(table: dict[int, int], client: int, message: Message) -> None:
    """Add the lengths of a message's payloads to a client's account."""
    size = 0
    if message.has_content():
        size = sum(wire.record_bytes(r) for r in message.content.array_records.values())
    table[client] = table.get(client, 0) + size
