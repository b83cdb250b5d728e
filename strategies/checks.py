"""Which replies of a round are used: those that can be read, and are not unlike all others.

What one reply must be is said by its `Reader`; what it must be beside the others, here. Every reply
that is left out has its reason, by client, for the run folder and the report.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import TypeVar

import numpy as np
from flwr.app import Message

from fedsparse.errors import FedSparseError, one_line
from strategies.reasons import reason_of
from strategies.replies import Before, Reply
from strategies.stack import Stack

T = TypeVar("T")


def trusted(
    replies: Iterable[Message],
    client_of: Mapping[int, int],
    read: Callable[[int, Message], T],
) -> tuple[list[T], dict[int, str]]:
    """Read replies, each client's first alone; return them and, by client, what is wrong."""
    good: list[T] = []
    failures: dict[int, str] = {}
    seen: set[int] = set()
    for message in replies:
        client = client_of[message.metadata.src_node_id]
        if client in seen:
            continue
        seen.add(client)
        if message.has_error():
            failures[client] = reason_of(message)
            continue
        try:
            good.append(read(client, message))
        except FedSparseError as error:
            failures[client] = one_line(str(error))
        except KeyError as error:
            failures[client] = one_line(f"the reply lacks {error}")
    return good, failures


def overlong(replies: Sequence[Reply], before: Before, most: float | None) -> dict[int, str]:
    """Return by client the reason against updates longer than `most` median ones of the round.

    None for any length.

    Trained entries and BatchNorm's statistics are measured apart: they have no common scale.
    """
    reasons: dict[int, str] = {}
    if most is None or not replies:
        return reasons
    stack = Stack.of(replies, before)
    for what, where in (("update", stack.trained), ("statistics", ~stack.trained)):
        norms = stack.norms(where)
        median = float(np.median(norms))
        for client, norm in zip(stack.clients, norms, strict=True):
            if norm > most * median > 0:
                reasons.setdefault(
                    client,
                    f"the reply's {what} is {norm / median:.3g} times as long as the round's "
                    f"median one; robust.max_norm = {most:g}",
                )
    return reasons
