"""Flower's grid of real nodes, with a wait that is short when replies are and always bounded.

Flower's own looks for replies every three seconds, and waits out the whole round for a node
that is gone. This one looks soon at first and less often later, and stops waiting once the only
nodes that owe a reply have been offline for a while.
"""

import time
from collections.abc import Iterable, Sequence

from flwr.app import Message
from flwr.serverapp import Grid

from strategies.wrapped import Wrapped

FIRST_PAUSE, LONGEST_PAUSE = 0.1, 3.0
ONLINE_EVERY = 5.0
GONE_SECONDS = 30.0
"""How long all nodes that still owe a reply must be offline before nobody waits for them."""


class PromptGrid(Wrapped):
    """A deployment's grid that looks for replies soon and gives up on nodes that are gone."""

    def __init__(self, inner: Grid, *, gone_seconds: float = GONE_SECONDS) -> None:
        self.inner = inner
        self.gone_seconds = gone_seconds

    def send_and_receive(
        self, messages: Iterable[Message], *, timeout: float | None = None
    ) -> list[Message]:
        """Send messages and return the replies that come within `timeout` seconds.

        A reply that comes twice is taken once. Whoever's node is gone has no reply.
        """
        sent = list(messages)
        pending = dict(zip(self.inner.push_messages(sent), sent, strict=True))
        begun = time.monotonic()
        gone = Absence(self.inner, self.gone_seconds)
        replies: list[Message] = []
        while pending:
            for reply in self.inner.pull_messages(list(pending)):
                if pending.pop(reply.metadata.reply_to_message_id, None) is not None:
                    replies.append(reply)
            waited = time.monotonic() - begun
            if not pending or (timeout is not None and waited >= timeout):
                break
            if gone.told(message.metadata.dst_node_id for message in pending.values()):
                break
            time.sleep(pause(waited))
        return replies

    def get_node_ids(self) -> Sequence[int]:
        """Return the nodes that are online."""
        return list(self.inner.get_node_ids())


class Absence:
    """How long all of some nodes have been offline."""

    def __init__(self, grid: Grid, seconds: float) -> None:
        self.grid = grid
        self.seconds = seconds
        self.looked = time.monotonic()
        self.since: float | None = None

    def told(self, nodes: Iterable[int]) -> bool:
        """Tell whether every one of `nodes` has been offline for long enough."""
        now = time.monotonic()
        if now - self.looked >= min(ONLINE_EVERY, self.seconds):
            self.looked = now
            offline = set(nodes).isdisjoint(self.grid.get_node_ids())
            self.since = (self.since or now) if offline else None
        return self.since is not None and now - self.since >= self.seconds


def pause(waited: float) -> float:
    """Return how long to wait before the next look after `waited` seconds: a tenth of them."""
    return min(LONGEST_PAUSE, max(FIRST_PAUSE, waited / 10))
