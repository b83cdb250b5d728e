"""Nodes in this process that know nothing but their configuration, as a SuperNode tells it.

One that restarts has lost what Flower held of its client: each message then meets an empty state.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from flwr.app import Context, Error, Message, RecordDict
from flwr.serverapp import Grid

from clients.client_app import app
from fedsparse import data, messages
from fedsparse.config import Config
from fedsparse.data import Dataset
from simulations import flower_internals as internals

RUN = 7


class SuperLinkSide(Grid):
    """The part of a grid that pushes and pulls; a grid of ours over it does the rest."""

    run = None

    def set_run(self, *args: Any, **kwargs: Any) -> None:
        """Nothing to be set."""

    def send_and_receive(self, messages: Any, *, timeout: Any = None) -> list[Message]:
        raise AssertionError("the grid over it exchanges messages by itself")

    def create_message(self, *args: Any, **kwargs: Any) -> Message:
        raise AssertionError("messages are made without a grid")


class NodeGrid:
    """A grid of nodes 100, 101, ... that answer with the real ClientApp."""

    def __init__(self, nodes: Sequence[Mapping[str, Any]], *, restarting: bool = False) -> None:
        self.nodes = {
            100 + client: {messages.CLIENT_KEY: client, **told} for client, told in enumerate(nodes)
        }
        self.restarting = restarting
        self.states: dict[int, RecordDict] = {}
        self.asked: list[tuple[str, int]] = []
        internals.become_server(RUN)

    def get_node_ids(self) -> list[int]:
        return list(self.nodes)

    def send_and_receive(self, messages: Any, *, timeout: Any = None) -> list[Message]:
        sent = list(messages)
        for place, message in enumerate(sent):
            internals.number(message, f"{len(self.asked)}-{place}")
        return [self.answer(message) for message in sent]

    def answer(self, message: Message) -> Message:
        node = message.metadata.dst_node_id
        self.asked.append((message.metadata.message_type, node - 100))
        context = context_of(self.nodes[node], self.states.get(node))
        try:
            reply = app(internals.message_of(message.metadata, message.content), context)
        except Exception as error:  # as a SuperNode puts it
            told = str(type(error)) + ":<'" + str(error) + "'>"
            return Message(Error(internals.RAISED, told), reply_to=message)
        if not self.restarting:
            self.states[node] = context.state
        return reply


def context_of(told: Mapping[str, Any], state: RecordDict | None = None) -> Context:
    """Return a client's context at a node that was told something."""
    return Context(RUN, 1, dict(told), state if state is not None else RecordDict(), {})


def parts(config: Config) -> list[Dataset]:
    """Return each client's samples of a run's data set, for training and testing together."""
    whole = data.of(config)
    return [whole.train.take(np.sort(own)) for own in whole.partition]
