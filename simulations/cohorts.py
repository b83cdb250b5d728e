"""Clients that train at once on an accelerator, where one process is asked for several.

It is for our own ClientApp under `engine.device = "cuda"`: any other app answers one message after
another, as ever.
"""

from collections.abc import Mapping, Sequence
from typing import Any

from flwr.clientapp import ClientApp

from fedsparse import messages
from fedsparse.errors import FedSparseError
from simulations.tasks import Part, TaskResult, result_of


def train_together(app: ClientApp, message_type: str, records: Mapping[str, Any]) -> bool:
    """Whether clients that are sent this are trained at once."""
    if message_type != messages.TRAIN or messages.CONFIG not in records:
        return False
    try:
        config, _ = messages.read_config(records[messages.CONFIG])
    except FedSparseError:
        return False
    if config.engine.device == "cpu":
        return False
    from clients import client_app

    return app is client_app.app


def answer_all(parts: Sequence[Part]) -> list[TaskResult]:
    """Let clients answer training messages at once; an exception becomes that client's error."""
    if not parts:
        return []
    from clients import cohort

    asked = [part.message() for part in parts]
    contexts = [part.context() for part in parts]
    replies = cohort.train_many(asked, contexts)
    return [
        result_of(part, message, context, reply)
        for part, message, context, reply in zip(parts, asked, contexts, replies, strict=True)
    ]
