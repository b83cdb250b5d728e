"""What FedSpa and DisPFL share: clients train sparsely from the start, under masks that move.

Each mask keeps the same number of weights of a layer, by Erdos-Renyi-Kernel, from the first
round to the last. The server says how many move (a cosine), the client which; its next mask
comes with the weights that it trained under the present one.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Literal

import numpy as np
from flwr.app import Message
from pydantic import Field

from fedsparse import messages, seeds, wire
from fedsparse.config import StrategySettings
from fedsparse.errors import WireError
from fedsparse.messages import Plan
from fedsparse.sparsity import Mask, schedules, top_mask
from strategies.own_masks import OwnMaskReader, OwnMasks
from strategies.seats import Demands, Kept, erk_counts
from strategies.task import Task


class SparseToSparseSettings(StrategySettings):
    """Keys of `[strategy]` that FedSpa and DisPFL share."""

    masks: Literal["common", "own"] = Field(
        default="common", description="whether clients start with one random mask or each its own"
    )
    allocation: Literal["erk", "er", "uniform"] = Field(
        default="erk", description="how the density is shared out over layers"
    )
    alpha: float = Field(
        default=0.5, ge=0, lt=1, description="fraction of kept weights that moves at first; 0: none"
    )
    adjust_every: int = Field(default=1, ge=1, description="rounds between moves of the masks")
    growth_samples: int = Field(
        default=0, ge=0, description="local samples of the gradient that grows; 0: one batch"
    )


class SparseToSparse(OwnMasks):
    """Clients with masks of their own, each of one density at all times."""

    Settings: type[StrategySettings] = SparseToSparseSettings
    program = "sparse-to-sparse"

    def __init__(self, task: Task) -> None:
        super().__init__(task)
        self.asked: Mapping[str, int] = {}
        """How many weights of each layer move in this round."""

    def first_mask(self, client: int) -> Mask:
        """Return a random mask, of all clients or of one."""
        whose = client if self.settings.masks == "own" else seeds.SERVER
        rng = seeds.stream(self.task.config.run.seed, 0, whose, "mask")
        scores = {n: rng.random(shape, np.float32) for n, shape in self.task.shapes.items()}
        return top_mask(scores, self.counts(self.settings.density))

    def counts(self, density: float) -> Kept:
        """Return how many weights of each layer a mask of a density keeps."""
        kept = erk_counts(self.task, density, self.settings.allocation)
        return kept or {name: math.prod(shape) for name, shape in self.task.shapes.items()}

    def kept_by_first(self) -> Kept:
        """Return how many weights each client keeps."""
        return self.counts(self.settings.density)

    # -- moves ------------------------------------------------------------------------

    def plan(self, round_number: int) -> Plan:
        """Ask for training and, in rounds that move masks, for the moves."""
        plan = self.asking(round_number, self.settings.density)
        self.asked = plan.grow
        return plan

    def asking(self, round_number: int, density: float) -> Plan:
        """Return what is asked of clients in a round, at a density."""
        s = self.settings
        plan = replace(self.own_plan(round_number), samples=s.growth_samples)
        if round_number % s.adjust_every:
            return plan
        return replace(plan, grow=self.moves(round_number, self.counts(density)))

    def moves(self, round_number: int, kept: Kept) -> dict[str, int]:
        """Return how many weights of each layer move: ceil(f_t n_l), as far as there are any.

        f_t = (alpha / 2) (1 + cos(pi t / T)), t from 0, T the rounds of the run.
        """
        rate = schedules.cosine(self.settings.alpha, self.task.config.run.rounds)(round_number - 1)
        counts = {}
        for name, shape in self.task.shapes.items():
            count = math.ceil(rate * kept[name] - 1e-9)
            counts[name] = min(count, kept[name] - 1, math.prod(shape) - kept[name])
        return {name: count for name, count in counts.items() if count > 0}

    def demands(self, density: float) -> Demands:
        """Return training in the first round that moves masks: later ones move fewer."""
        return [(self.asking(self.settings.adjust_every, density), self.counts(density))]

    def reader(self) -> OwnMaskReader:
        """Return a reader that reads the moves, too."""
        return MovesReader(**self.sent(), moves=self.asked)


@dataclass(frozen=True)
class MovesReader(OwnMaskReader):
    """Reads what was trained, under the mask that was sent, and how that mask moves."""

    moves: Mapping[str, int] = field(default_factory=dict)

    @property
    def extras(self) -> Mapping[str, int]:
        """The moves of a mask."""
        return {messages.GROWTH: self.schema.most_bytes}

    def check(self, mask: Mask | None, sent: Mask) -> None:
        """Raise WireError for weights under another mask than the one that was sent."""
        if mask != sent:
            raise WireError("the reply's mask is not the one that was sent")

    def next_mask(self, message: Message, sent: Mask) -> Mask | None:
        """Return the mask that the client goes on with.

        Raises WireError unless each layer drops and grows as many weights as were asked for.
        """
        if not self.moves:
            return None
        payload = wire.unpack(message.content.array_records[messages.GROWTH])
        flips = wire.decode_mask(payload, sent.shapes)
        for name, bits in (flips & sent).layer_kept().items():
            grown = flips.layer_kept()[name] - bits
            if not bits == grown == self.moves.get(name, 0):
                asked = self.moves.get(name, 0)
                raise WireError(
                    f"the reply drops {bits} weights of '{name}' and grows {grown}; "
                    f"{asked} were asked for"
                )
        return sent ^ flips
