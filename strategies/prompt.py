"""Flower's grid of real nodes, with a wait that is short when replies are and always bounded.

Flower's own looks for replies every three seconds, takes nobody's word that a node is gone, and
waits the whole round for a node that was started again and has forgotten what it was asked. This
one looks soon at first and less often later, and asks such a node again. So it does one that has
forgotten its mask, with what it lacks, while others are still at work.
"""

import time
from collections.abc import Callable, Iterable, Sequence

from flwr.app import Error, Message
from flwr.serverapp import Grid

from strategies.addressing import least_replies
from strategies.wrapped import Wrapped

FIRST_PAUSE, LONGEST_PAUSE = 0.1, 3.0
NODES_EVERY = 2.0
"""Seconds between looks at which nodes are online."""
GONE_SECONDS = 30.0
"""How long a round with too few replies waits for its nodes to come back."""
NODE_UNAVAILABLE = 5
"""Flower's code for a message to a node that has shown no sign of life."""
OFFLINE = Error(NODE_UNAVAILABLE, "the node is offline")
REFUSED = Error(0, "the SuperLink refused the message: too long, or an unknown node")

Remind = Callable[[Sequence[Message]], Sequence[Message]]
"""Of replies to what their nodes are sent in the place of these, one message a node at most."""


class PromptGrid(Wrapped):
    """A deployment's grid that looks for replies soon, and knows of nodes that come and go."""

    may_lack_torch = True
    """Whether there may be nodes that need a description of the model in the place of torch."""

    def __init__(
        self, inner: Grid, *, least: float = 0.0, gone_seconds: float = GONE_SECONDS
    ) -> None:
        """Make a grid whose exchanges want a fraction `least` of replies, and one at least.

        Where nodes went offline and fewer came, their return is hoped for `gone_seconds` long.
        """
        self.inner = inner
        self.least = least
        self.gone_seconds = gone_seconds
        self.remind: Remind | None = None
        """What is asked again at once; whoever sets it sees to it that this comes to an end."""

    def send_and_receive(
        self, messages: Iterable[Message], *, timeout: float | None = None
    ) -> list[Message]:
        """Send messages and return the replies that come within `timeout` seconds.

        One reply to each message; an error that says why stands for that of a node that went
        offline. A node that comes back while others are still waited for is asked again.
        """
        exchange = Exchange(self.inner, list(messages), self.remind)
        begun = hoping = time.monotonic()
        while True:
            exchange.pull()
            now = time.monotonic()
            waited = now - begun
            if exchange.pending:
                hoping = now
            elif exchange.enough(self.least) or now - hoping >= self.gone_seconds:
                exchange.look(at_once=True)
                if not exchange.pending:
                    break
            if timeout is not None and waited >= timeout:
                break
            exchange.look()
            left = pause(waited) if timeout is None else min(pause(waited), timeout - waited)
            time.sleep(left)
        return exchange.result()

    def get_node_ids(self) -> Sequence[int]:
        """Return the nodes that are online."""
        return list(self.inner.get_node_ids())


class Exchange:
    """Messages under way: who owes a reply, who is gone, and what has come."""

    def __init__(
        self, grid: Grid, messages: Sequence[Message], remind: Remind | None = None
    ) -> None:
        self.grid = grid
        self.remind = remind
        self.pending: dict[str, Message] = {}
        """What was asked first, by each number under which it was sent."""
        self.replies: list[Message] = []
        self.gone: list[Message] = []
        """What was asked of nodes that are offline."""
        self.fuller: dict[int, Message] = {}
        """What reminded nodes were sent, by the identity of what they were asked first."""
        self.since = started(grid)
        self.looked = time.monotonic()
        self.send(messages, messages)

    def send(self, messages: Sequence[Message], first: Sequence[Message]) -> None:
        """Send messages that stand for `first`, which are the same or are asked again."""
        for number, asked in zip(self.push(messages), first, strict=True):
            if number:
                self.pending[number] = asked
            else:
                self.replies.append(Message(REFUSED, reply_to=asked))

    def push(self, messages: Sequence[Message]) -> list[str]:
        """Hand messages over, one by one where they are too long together; '' for a refused one."""
        numbers = list(self.grid.push_messages(messages)) if messages else []
        if len(numbers) == len(messages):
            return numbers
        singles = [list(self.grid.push_messages([message])) for message in messages]
        return [single[0] if single else "" for single in singles]

    def pull(self) -> None:
        """Take what has come; of several replies to one message the first."""
        came: list[tuple[Message, Message]] = []
        for reply in self.grid.pull_messages(list(self.pending)) if self.pending else []:
            asked = self.pending.pop(reply.metadata.reply_to_message_id, None)
            if asked is None:
                continue
            if reply.has_error() and reply.error.code == NODE_UNAVAILABLE:
                if not any(other is asked for other in self.pending.values()):
                    self.gone.append(asked)
                continue
            came.append((answering(reply, asked), asked))
            self.pending = {n: other for n, other in self.pending.items() if other is not asked}
        if came:
            self.take(came)

    def take(self, came: Sequence[tuple[Message, Message]]) -> None:
        """Keep replies, each with what was asked first; who is to be reminded owes one still."""
        told = self.remind([reply for reply, _ in came]) if self.remind else []
        fuller = {message.metadata.dst_node_id: message for message in told}
        again = []
        for reply, asked in came:
            message = fuller.pop(asked.metadata.dst_node_id, None)
            if message is None:
                self.replies.append(reply)
            else:
                self.fuller[id(asked)] = message
                again.append((message, asked))
        self.send([message for message, _ in again], [asked for _, asked in again])

    def enough(self, least: float) -> bool:
        """Tell whether a fraction `least` has replied, or nobody's return can be hoped for."""
        asked = len(self.replies) + len(self.gone) + len(self.pending)
        got = sum(not reply.has_error() for reply in self.replies)
        return not self.gone or got >= least_replies(asked, least)

    def look(self, *, at_once: bool = False) -> None:
        """Ask those again who came back, or were started anew and have forgotten their message.

        Every few seconds, or `at_once` where any are gone: a node may be back since the last look,
        and Flower withholds a reply whose node went offline before it was fetched.
        """
        wanted = self.gone if at_once else time.monotonic() - self.looked >= NODES_EVERY
        if not wanted:
            return
        self.looked = time.monotonic()
        online = started(self.grid)
        anew = {n for n, when in online.items() if n in self.since and when != self.since[n]}
        self.since |= online
        owing = {id(asked): asked for asked in self.pending.values()}
        again = [asked for asked in owing.values() if asked.metadata.dst_node_id in anew]
        back = [asked for asked in self.gone if asked.metadata.dst_node_id in online]
        self.gone = [asked for asked in self.gone if asked.metadata.dst_node_id not in online]
        first = [*again, *back]
        self.send([copied(self.fuller.get(id(asked), asked)) for asked in first], first)

    def result(self) -> list[Message]:
        """Return the replies, and an error that says why for each node that is offline."""
        return [*self.replies, *(Message(OFFLINE, reply_to=asked) for asked in self.gone)]


def started(grid: Grid) -> dict[int, str]:
    """Return since when each node that is online has been so, as the SuperLink tells it."""
    return {int(node.node_id): str(node.last_activated_at) for node in grid.get_nodes()}


def copied(message: Message) -> Message:
    """Return a message with the same content, to be sent again under another number."""
    told = message.metadata
    return Message(
        message.content, told.dst_node_id, told.message_type, ttl=told.ttl, group_id=told.group_id
    )


def answering(reply: Message, first: Message) -> Message:
    """Return a reply as one to the first message that its node was sent."""
    quoted, source = reply.metadata.reply_to_message_id, reply.metadata.src_node_id
    if (quoted, source) == (first.metadata.message_id, first.metadata.dst_node_id):
        return reply
    content = reply.error if reply.has_error() else reply.content
    return Message(content, reply_to=first)


def pause(waited: float) -> float:
    """Return how long to wait before the next look after `waited` seconds: a tenth of them."""
    return min(LONGEST_PAUSE, max(FIRST_PAUSE, waited / 10))
