"""Partial sums of replies, and what stands in a reply whose model is in one.

Where a strategy only adds its replies up, a worker does so with those of its clients: it sends
one sum, and each client's reply with the length of the payload that the sum has taken in.
"""

from dataclasses import dataclass

from flwr.app import ArrayRecord, Message

from fedsparse import messages
from fedsparse.sparsity.exact_sum import ExactSum


@dataclass
class PartialSum:
    """The sum of some clients' models under one mask, each times its samples."""

    place: int
    """The mask's number in the round."""
    total: ExactSum
    examples: int = 0
    clients: int = 0


class AddedUp(ArrayRecord):
    """Stands for the arrays of a reply that were added to a sum: how long they were."""

    def __init__(self, length: int, part: PartialSum) -> None:
        super().__init__()
        self.length = length
        self.part = part


def is_added(message: Message) -> bool:
    """Tell whether a reply's model is in a sum already."""
    return isinstance(message.content.get(messages.ARRAYS), AddedUp)
