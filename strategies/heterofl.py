"""HeteroFL (Diao et al., ICLR 2021; arXiv 2010.01264): the first channels, as many as fit.

Each client trains the first ceil(r C) channels of every hidden layer, r being its width. The
scaler, which divides activations by r in training, is left out: ahead of BatchNorm it does
nothing. Static BatchNorm is measured by the server on its own data, not by clients on theirs.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from flwr.app import Message
from numpy.typing import NDArray
from pydantic import Field

from fedsparse import messages, models, wire
from fedsparse.errors import ConfigError, WireError
from fedsparse.sparsity import Mask
from strategies import sums
from strategies.replies import Reply
from strategies.sums import Weighted, own_mask_mean
from strategies.task import Task
from strategies.width import SliceReader, WidthSettings, WidthStrategy


class HeteroFlSettings(WidthSettings):
    """Keys of `[strategy]` for heterofl and fedrolex."""

    own_labels: bool = Field(
        default=False,
        description="clients learn and name only labels that they have, and tell which (masked "
        "cross-entropy)",
    )


class HeteroFl(WidthStrategy):
    """Averaging over nested slices: narrow clients share the first channels."""

    Settings = HeteroFlSettings
    clients_keep = False

    def __init__(self, task: Task) -> None:
        if task.config.strategy["own_labels"]:
            self.program = "heterofl"
        super().__init__(task)
        labelled = task.data.classes > 1 and len(models.part(task.model, "head")) == 2
        if self.settings.own_labels and not labelled:
            raise ConfigError(
                "strategy.own_labels = true needs classes, and a last layer with a bias; set "
                "it to false"
            )

    @property
    def adds_up(self) -> bool:
        """Not where each client has labels of its own."""
        return super().adds_up and not self.settings.own_labels

    def reader(self) -> SliceReader:
        """Return a reader that also reads which labels a client has, where they are asked for."""
        plain = super().reader()
        if not self.settings.own_labels:
            return plain
        classes = self.task.data.classes
        return LabelReader(
            plain.schema, plain.masks, plain.places, even=plain.even, classes=classes
        )

    @sums.adds_up
    def aggregate(self, round_number: int, replies: Sequence[Reply]) -> None:
        """Take the mean over the clients that hold each entry, and have its label."""
        if not self.settings.own_labels:
            super().aggregate(round_number, replies)
            return
        trained = [(reply, self.trained(reply)) for reply in replies]
        own = [Weighted(m.take(reply.state), m, reply.examples) for reply, m in trained]
        self.state = own_mask_mean(own, self.state)
        self.state = self.measured(None)

    def trained(self, reply: Reply) -> Mask:
        """Return all entries of the model that a client trained: of its slice and its labels."""
        held = self.held_by.get(reply.mask) or Mask.full(self.task.schema.shapes)
        entries = {name: bits.copy() for name, bits in held.items()}
        for name in models.part(self.task.model, "head"):
            entries[name][~reply.extra] = False
        return Mask.from_arrays(entries)


@dataclass(frozen=True)
class LabelReader(SliceReader):
    """Reads replies that tell which labels their clients have."""

    classes: int = 0

    @property
    def extras(self) -> Mapping[str, int]:
        """A bit a label, and as much again for one whose length `extra` finds wrong."""
        return {messages.LABELS: 2 * ((self.classes + 7) // 8)}

    def extra(self, message: Message) -> NDArray[np.bool_]:
        """Return which labels a client has; raises WireError for what is no such list."""
        told = wire.unpack(message.content.array_records[messages.LABELS])
        if len(told) != (self.classes + 7) // 8:
            raise WireError(f"the reply's list of labels has {len(told)} bytes")
        bits = np.unpackbits(np.frombuffer(told, np.uint8), count=self.classes)
        return bits.astype(np.bool_)
