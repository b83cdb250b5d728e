"""What methods share whose clients have masks of their own, over one model of the server.

A client is sent the weights that its mask keeps; what it sends back may be under a new mask,
which is its own from then on. The server's model is the mean, weight by weight, of what those
sent that keep it (FedDST, Bibikar et al. 2022, masked averaging).
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from flwr.app import Message

from fedsparse import messages, wire
from fedsparse.errors import FedSparseError, WireError
from fedsparse.sparsity import Mask
from strategies import metrics
from strategies.base import SparseStrategy
from strategies.replies import Reader, Reply
from strategies.seats import Kept, KeptOf
from strategies.sums import own_mask_mean
from strategies.task import Task


@dataclass(frozen=True)
class OwnMaskReader(Reader):
    """Reads replies under any mask of the model: the one that was sent, or another."""

    def read(self, client: int, message: Message) -> Reply:
        """Return a reply with the mask that it came with; raises as `open` does."""
        sent = self.masks[self.place(client)]
        try:
            payload = wire.unpack(messages.arrays_of(message))
            masks = () if sent is None else (sent,)
            decoded = wire.decode(payload, self.schema, masks=masks)
            self.check(client, decoded.mask)
            told, extra = metrics.read(message, "examples", "loss"), self.extra(message)
        except (FedSparseError, KeyError, MemoryError):
            raise
        except Exception as error:  # whatever a client has made of its reply, it ends no run
            raise WireError(f"the reply cannot be read: {type(error).__name__}: {error}") from error
        state, mask = decoded.state, decoded.mask
        kept = state if mask is None else mask.take(state)
        return Reply(client, told["examples"], kept, told["loss"], message, extra, mask)

    def check(self, client: int, mask: Mask | None) -> None:
        """Raise WireError for a mask that this client may not reply with."""
        sent = self.masks[self.place(client)]
        if (mask is None) != (sent is None) or (
            mask is not None and sent is not None and mask.shapes != sent.shapes
        ):
            raise WireError("the reply's mask covers other tensors than the one that was sent")


class OwnMasks(SparseStrategy):
    """Masked averaging over clients that each have a mask of their own."""

    fits = frozenset({"batch"})

    def __init__(self, task: Task) -> None:
        super().__init__(task)
        self.masks: dict[int, Mask] = {}
        """The mask of each client that has replied."""

    # -- what a method overrides ------------------------------------------------------

    def first_mask(self, client: int) -> Mask | None:
        """Return the mask under which a client trains that has none yet."""
        raise NotImplementedError

    def aggregate(self, round_number: int, replies: Sequence[Reply]) -> None:
        """Average what each weight's keepers sent; remember each client's mask."""
        self.state = own_mask_mean(replies, self.state)
        self.note_masks(replies)

    # -- masks by client --------------------------------------------------------------

    def mask_of(self, client: int) -> Mask | None:
        """Return the mask under which a client is sent the model: the last it sent, or a first."""
        return self.masks.get(client) or self.first_mask(client)

    def mask_to_test(self, client: int) -> Mask | None:
        """Return a client's own mask."""
        return self.mask_of(client)

    def note_masks(self, replies: Sequence[Reply]) -> None:
        """Remember the masks that replies came with, which their clients hold from now on."""
        for reply in replies:
            if reply.mask is not None:
                self.masks[reply.client] = reply.mask
                self.held.replied(reply.mask, [reply.client], [reply.client])

    def reader(self) -> Reader:
        """Return a reader that knows what each client was sent."""
        clients = list(self.seats)
        masks: dict[Mask | None, int] = {}
        places = {c: masks.setdefault(self.mask_of(c), len(masks)) for c in clients}
        return OwnMaskReader(self.schema, tuple(masks) or (None,), places)

    def kept(self) -> Kept | KeptOf | None:
        """Return how to find the kept weights by layer of a client."""
        return self.kept_by

    def kept_by(self, client: int) -> Kept | None:
        """Return how many weights a client keeps, by layer."""
        mask = self.mask_of(client)
        return None if mask is None else mask.layer_kept()

    # -- figures and state ------------------------------------------------------------

    @property
    def density(self) -> float:
        """The mean over clients of the kept fraction of the prunable weights."""
        entries = {name: math.prod(shape) for name, shape in self.task.shapes.items()}
        kept = sum(self.layer_density[name] * size for name, size in entries.items())
        return kept / sum(entries.values())

    @property
    def layer_density(self) -> dict[str, float]:
        """The mean over clients of the kept fraction by layer; before round 1, of client 0."""
        masks: list[Mask | None] = [*self.masks.values()] or [self.first_mask(0)]
        by_mask = [{} if mask is None else mask.layer_density() for mask in masks]
        return {
            name: math.fsum(found.get(name, 1.0) for found in by_mask) / len(by_mask)
            for name in self.task.prunable
        }

    def state_dict(self) -> dict[str, Any]:
        """Add each client's mask."""
        masks = {str(client): wire.encode_mask(mask) for client, mask in self.masks.items()}
        return {**super().state_dict(), "masks": masks}

    def load_state_dict(self, saved: dict[str, Any]) -> None:
        """Take each client's mask, too."""
        super().load_state_dict(saved)
        self.masks = {
            int(client): wire.decode_mask(content, self.mask_shapes)
            for client, content in saved["masks"].items()
        }
