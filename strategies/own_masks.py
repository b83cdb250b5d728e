"""What methods share whose clients have masks of their own, over one model of the server.

A client is sent the weights that its mask keeps. It replies under a mask of its own, or with
a new one for the next round; the server sends by the last that it heard of. Its model is the
mean, weight by weight, of what those sent that keep it (FedDST, Bibikar et al. 2022).
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from flwr.app import Message

from fedsparse import messages, wire
from fedsparse.errors import FedSparseError, WireError
from fedsparse.sparsity import Mask
from strategies import metrics
from strategies.base import SparseStrategy
from strategies.held import encoded
from strategies.replies import Reader, Reply
from strategies.seats import Kept, KeptOf
from strategies.sums import Weighted, own_mask_mean
from strategies.task import Task


@dataclass(frozen=True)
class OwnMaskReader(Reader):
    """Reads replies under any mask that keeps no more of a layer than the one that was sent."""

    def read(self, client: int, message: Message) -> Reply:
        """Return a reply with the mask that it came with; raises as `open` does."""
        sent = self.masks[self.place(client)]
        assert sent is not None
        try:
            self.inspect(message)
            payload = wire.unpack(messages.arrays_of(message))
            masks = (sent, *self.told(message, sent))
            decoded = wire.decode(payload, self.schema, masks=masks)
            mask = decoded.mask
            self.check(mask, sent)
            told, extra = metrics.read(message, "examples", "loss"), self.next_mask(message, sent)
        except (FedSparseError, KeyError, MemoryError):
            raise
        except Exception as error:  # whatever a client has made of its reply, it ends no run
            raise WireError(f"the reply cannot be read: {type(error).__name__}: {error}") from error
        assert mask is not None
        kept = mask.take(decoded.state)
        return Reply(client, told["examples"], kept, told["loss"], message, extra, mask)

    def check(self, mask: Mask | None, sent: Mask) -> None:
        """Raise WireError for a mask of other tensors, or one that keeps more of a layer."""
        if mask is None or mask.shapes != sent.shapes:
            raise WireError("the reply's mask covers other tensors than the one that was sent")
        allowed = sent.layer_kept()
        for name, count in mask.layer_kept().items():
            if count > allowed[name]:
                raise WireError(
                    f"the reply's mask keeps {count} weights of '{name}'; "
                    f"the one that was sent keeps {allowed[name]}"
                )

    def told(self, message: Message, sent: Mask) -> tuple[Mask, ...]:
        """Return the mask that a record of the reply tells, where its payload does not."""
        return ()

    def next_mask(self, message: Message, sent: Mask) -> Mask | None:
        """Return the mask that the client goes on with, where that is not the reply's."""
        return None


class OwnMasks(SparseStrategy):
    """Masked averaging over clients that each have a mask of their own."""

    fits = frozenset({"batch"})

    def __init__(self, task: Task) -> None:
        super().__init__(task)
        self.masks: dict[int, Mask] = {}
        """The mask of each client that has replied."""
        self._first: dict[int, Mask] = {}

    # -- what a method overrides ------------------------------------------------------

    def first_mask(self, client: int) -> Mask:
        """Return the mask under which a client trains that has none yet."""
        raise NotImplementedError

    def aggregate(self, round_number: int, replies: Sequence[Reply]) -> None:
        """Average what each weight's keepers sent; remember each client's mask."""
        self.state = own_mask_mean(weighted(replies), self.state)
        self.note_masks(replies)

    # -- masks by client --------------------------------------------------------------

    def mask_of(self, client: int) -> Mask:
        """Return the mask under which a client is sent the model: the last it told, or a first."""
        if client in self.masks:
            return self.masks[client]
        if client not in self._first:
            self._first[client] = self.first_mask(client)
        return self._first[client]

    def mask_to_test(self, client: int) -> Mask:
        """Return a client's own mask."""
        return self.mask_of(client)

    def note_masks(self, replies: Sequence[Reply]) -> None:
        """Remember the masks that clients told of, which they hold from now on."""
        for reply in replies:
            mask = reply.mask if reply.extra is None else reply.extra
            assert mask is not None
            self.masks[reply.client] = mask
            self._first.pop(reply.client, None)
            self.held.replied(mask, [reply.client], [reply.client])

    def reader(self) -> OwnMaskReader:
        """Return a reader that knows what each client was sent."""
        return OwnMaskReader(**self.sent())

    def sent(self) -> dict[str, Any]:
        """Return what every reader of the round's replies must know."""
        masks: dict[Mask | None, int] = {}
        places = {c: masks.setdefault(self.mask_of(c), len(masks)) for c in self.seats}
        return {"schema": self.schema, "masks": tuple(masks) or (None,), "places": places}

    def kept(self) -> Kept | KeptOf | None:
        """Return how to find the kept weights by layer of a client."""
        return self.kept_by

    def kept_by(self, client: int) -> Kept:
        """Return how many weights a client keeps, by layer."""
        mask = self.masks.get(client)
        return self._kept_first if mask is None else mask.layer_kept()

    @cached_property
    def _kept_first(self) -> Kept:
        return self.kept_by_first()

    # -- figures and state ------------------------------------------------------------

    @property
    def density(self) -> float:
        """The mean over clients of the kept fraction of the prunable weights."""
        kept, clients = self._all_kept()
        sizes = (math.prod(shape) for shape in self.task.shapes.values())
        return sum(kept.values()) / (clients * sum(sizes))

    @property
    def layer_density(self) -> dict[str, float]:
        """The mean over clients of the kept fraction by layer."""
        kept, clients = self._all_kept()
        return {
            name: kept[name] / (clients * math.prod(shape))
            for name, shape in self.task.shapes.items()
        }

    def _all_kept(self) -> tuple[dict[str, int], int]:
        """Return the kept weights by layer of all clients, and how many clients these are.

        Those that have not trained yet count with the first mask of client 0.
        """
        clients = max(len(self.task.present), len(self.masks))
        unheard = clients - len(self.masks)
        first = self._kept_first if unheard else dict.fromkeys(self.task.shapes, 0)
        told = [mask.layer_kept() for mask in self.masks.values()]
        return {n: unheard * first[n] + sum(k[n] for k in told) for n in first}, clients

    def kept_by_first(self) -> Kept:
        """Return how many weights a client keeps at first, by layer: as many for each."""
        return self.first_mask(0).layer_kept()

    def state_dict(self) -> dict[str, Any]:
        """Add each client's mask."""
        masks = {str(client): encoded(mask) for client, mask in self.masks.items()}
        return {**super().state_dict(), "masks": masks}

    def load_state_dict(self, saved: dict[str, Any]) -> None:
        """Take each client's mask, too."""
        super().load_state_dict(saved)
        self.masks = {
            int(client): wire.decode_mask(content, self.mask_shapes)
            for client, content in saved["masks"].items()
        }


def weighted(replies: Sequence[Reply]) -> list[Weighted]:
    """Return the models of replies, each with its number of samples."""
    return [Weighted(reply.kept, reply.mask, reply.examples) for reply in replies]
