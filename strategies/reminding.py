"""A round's exchange with clients, in which one that has forgotten its mask is asked once more.

A node that is started again in mid-round, and keeps no state on its disk, has lost what Flower held
for its client, and cannot read a payload that leaves the mask out. It is sent the mask at once, and
trains as if nothing had happened: where the mask is all that it had to lose.
"""

import time
from collections.abc import Mapping, Sequence

from flwr.app import Message
from flwr.serverapp.strategy import Strategy

from fedsparse import messages, wire
from strategies.addressing import MeteredGrid
from strategies.base import SparseStrategy
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

    Whoever answers that it does not hold its mask is asked again, within the same `timeout` seconds
    for all; what it answers then counts. What goes twice is counted twice.
    """
    begun, client_of = time.monotonic(), grid.directory.client_of
    replies = grid.send_and_receive(asked, timeout=timeout, reader=reader)
    again = reminders(strategy, asked, replies, client_of)
    left = timeout - (time.monotonic() - begun)
    if not again or left <= 0:
        return replies
    told = grid.send_and_receive(again, timeout=left)
    heard = {reply.metadata.src_node_id for reply in told}
    first = [reply for reply in replies if reply.metadata.src_node_id not in heard]
    return sorted([*first, *told], key=lambda reply: client_of[reply.metadata.src_node_id])


def reminders(
    strategy: Strategy,
    asked: Sequence[Message],
    replies: Sequence[Message],
    client_of: Mapping[int, int],
) -> list[Message]:
    """Return what was asked of those who have forgotten their masks, with the masks in it.

    Their masks are not taken for held any more.
    """
    if not isinstance(strategy, SparseStrategy) or not only_masks(strategy):
        return []
    forgot = {
        reply.metadata.src_node_id
        for reply in replies
        if reply.has_error() and reason_of(reply).endswith(wire.NOT_HELD)
    }
    alike: dict[int, tuple[Message, list[int]]] = {}
    for message in asked:
        if (node := message.metadata.dst_node_id) in forgot:
            record = message.content.config_records[messages.CONFIG]
            alike.setdefault(id(record), (message, []))[1].append(client_of[node])
    again = []
    for message, clients in alike.values():
        plan = messages.read_config(message.content.config_records[messages.CONFIG])[1]
        strategy.held.forget(clients)
        again += strategy.ask_with_model(clients, message.metadata.message_type, plan)
    return again


def only_masks(strategy: SparseStrategy) -> bool:
    """Tell whether clients that are started again have lost nothing but masks.

    Models of their own and optimizers' states would be missed in silence, and in a round of secure
    aggregation nobody may be asked again by itself. Simulated devices are never started again.
    """
    config = strategy.task.config
    keeps = strategy.clients_keep or config.client.keep_optimizer
    return not (keeps or config.secure.aggregation or config.fleet.profile is not None)
