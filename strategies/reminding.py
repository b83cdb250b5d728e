"""A round's exchange with clients, in which one that has forgotten its mask is asked once more.

A node that is started again in mid-round, and keeps no state on its disk, has lost what Flower held
for its client, and cannot read a payload that leaves the mask out. It is sent the mask, and trains
as if nothing had happened: where the mask is all that it had to lose. A grid of real nodes sends it
as soon as the node says so, whoever else is silent; any other when all have replied.
"""

import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

from flwr.app import Message
from flwr.serverapp.strategy import Strategy

from fedsparse import messages, wire
from strategies.addressing import MeteredGrid
from strategies.base import SparseStrategy
from strategies.prompt import PromptGrid
from strategies.reasons import reason_of
from strategies.replies import Reader


def exchange(
    grid: MeteredGrid,
    strategy: Strategy,
    asked: Sequence[Message],
    timeout: float,
    reader: Reader | None = None,
) -> list[Message]:
    """Send messages with a model and return the replies, one a client, in the order of clients.

    Whoever answers that it does not hold its mask is asked again, once, within the same `timeout`
    seconds for all; what it answers then counts, and if that is nothing, it gave no reply in time.
    What goes twice is counted twice.
    """
    if not isinstance(strategy, SparseStrategy) or not only_masks(strategy):
        return grid.send_and_receive(asked, timeout=timeout, reader=reader)
    begun, reminder = time.monotonic(), Reminder(grid, strategy, asked)
    with reminder.at_once():
        replies = grid.send_and_receive(asked, timeout=timeout, reader=reader)
    left = timeout - (time.monotonic() - begun)
    again = reminder.fuller(replies) if left > 0 else []
    if not again:
        return replies
    told = grid.send_and_receive(again, timeout=left)
    twice = {message.metadata.dst_node_id for message in again}
    first = [reply for reply in replies if reply.metadata.src_node_id not in twice]
    client_of = grid.directory.client_of
    return sorted([*first, *told], key=lambda reply: client_of[reply.metadata.src_node_id])


class Reminder:
    """Makes what clients of one exchange are sent who have forgotten their masks, once each."""

    def __init__(
        self, grid: MeteredGrid, strategy: SparseStrategy, asked: Sequence[Message]
    ) -> None:
        self.grid = grid
        self.strategy = strategy
        self.left = {message.metadata.dst_node_id: message for message in asked}
        """What was asked of each node that has not been reminded."""

    @contextmanager
    def at_once(self) -> Iterator[None]:
        """Let a grid of real nodes send reminders itself as long as this lasts."""
        inner = self.grid.inner
        if not isinstance(inner, PromptGrid):
            yield
            return
        inner.remind = lambda replies: self.grid.outgoing(self.fuller(replies))
        try:
            yield
        finally:
            inner.remind = None

    def fuller(self, replies: Sequence[Message]) -> list[Message]:
        """Return what was asked of those who say that they do not hold their masks, with these.

        Their masks are not taken for held any more.
        """
        client_of = self.grid.directory.client_of
        alike: dict[int, tuple[Message, list[int]]] = {}
        for reply in replies:
            node = reply.metadata.src_node_id
            if node in self.left and forgot(reply):
                message = self.left.pop(node)
                record = message.content.config_records[messages.CONFIG]
                alike.setdefault(id(record), (message, []))[1].append(client_of[node])
        again = []
        for message, clients in alike.values():
            plan = messages.read_config(message.content.config_records[messages.CONFIG])[1]
            self.strategy.held.forget(clients)
            again += self.strategy.ask_with_model(clients, message.metadata.message_type, plan)
        return again


def forgot(reply: Message) -> bool:
    """Tell whether a reply says that its client does not hold its mask."""
    return reply.has_error() and reason_of(reply).endswith(wire.NOT_HELD)


def only_masks(strategy: SparseStrategy) -> bool:
    """Tell whether clients that are started again have lost nothing but masks.

    Models of their own and optimizers' states would be missed in silence, and in a round of secure
    aggregation nobody may be asked again by itself. Simulated devices are never started again.
    """
    config = strategy.task.config
    keeps = strategy.clients_keep or config.client.keep_optimizer
    return not (keeps or config.secure.aggregation or config.fleet.profile is not None)
