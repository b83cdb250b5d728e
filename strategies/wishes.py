"""What a pFedGate client's reply tells beside values: the blocks it used, and those it wishes for.

All of it is checked here: a reply that tells something else is left out, and ends no round.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field

from flwr.app import Message

from fedsparse import messages, wire
from fedsparse.errors import MaskError, WireError
from fedsparse.sparsity import Mask
from fedsparse.sparsity.blocks import Blocks
from strategies import metrics
from strategies.own_masks import OwnMaskReader
from strategies.replies import Reply


@dataclass(frozen=True)
class WishReader(OwnMaskReader):
    """Reads replies of whole blocks among those that were sent, each with a wish for the next."""

    blocks: Blocks | None = None
    most: Mapping[int, int] = field(default_factory=dict)
    """Entries that a client may wish for."""
    layers: int = 0

    @property
    def extras(self) -> Mapping[str, int]:
        """The blocks that were used, and those that are wished for."""
        return dict.fromkeys((messages.USED, messages.WISH), self.schema.most_bytes)

    def read(self, client: int, message: Message) -> Reply:
        """Return a reply whose wish is within the client's budget and what is to spare of it."""
        reply = super().read(client, message)
        metrics.read(message, "density")
        shares = layer_shares(message)
        if len(shares) != self.layers or not all(0 <= share <= 1 for share in shares):
            raise WireError(f"the reply's layer-density is not {self.layers} numbers from 0 to 1")
        if reply.extra.kept > self.most[client]:
            raise WireError(
                f"the client wishes for {reply.extra.kept} entries; {self.most[client]} are allowed"
            )
        return reply

    def check(self, mask: Mask | None, sent: Mask) -> None:
        """Raise WireError for entries that were not sent, or cut through a block."""
        if mask is None or mask.shapes != sent.shapes:
            raise WireError("the reply's mask is not of the model's blocks")
        if (mask - sent).kept:
            raise WireError("the reply holds blocks that were not sent")
        assert self.blocks is not None
        try:
            self.blocks.counts(mask)
        except MaskError as error:
            raise WireError(str(error)) from None

    def told(self, message: Message, sent: Mask) -> tuple[Mask, ...]:
        """Decode which blocks the client used."""
        return (self._blocks_of(message, messages.USED),)

    def next_mask(self, message: Message, sent: Mask) -> Mask:
        """Decode which blocks the client wishes for."""
        return self._blocks_of(message, messages.WISH)

    def _blocks_of(self, message: Message, record: str) -> Mask:
        assert self.blocks is not None
        try:
            counts = self.blocks.from_bytes(wire.unpack(message.content.array_records[record]))
            if (counts[self.blocks.first] == 0).any():
                raise MaskError("the first block of a tensor is left out")
            return self.blocks.mask(counts)
        except MaskError as error:
            raise WireError(f"the client's '{record}': {error}") from None


def layer_shares(message: Message) -> list[float]:
    """Return the fractions of layers that a reply tells; raises WireError where it does not."""
    found = messages.metrics_of(message).get("layer-density")
    if not isinstance(found, list):
        raise WireError("the reply does not tell its layer-density")
    return [float(share) for share in found]
