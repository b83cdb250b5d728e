"""FedTiny (Huang et al., ICDCS 2023; arXiv 2212.01977): sparse from the first round on.

Before round 1: the server trains on its one-shot data, prunes it into a pool of coarse
candidates, and clients choose one by its loss under BatchNorm statistics of their own
data (adaptive BatchNorm selection). Then, every few rounds, one block of layers has its
mask adjusted by the largest gradients that clients find among its pruned weights
(progressive pruning). No client is sent a dense model or asked for a dense gradient.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any, Literal

import numpy as np
from flwr.app import Message
from numpy.typing import NDArray
from pydantic import Field

from fedsparse import messages, models, wire
from fedsparse.config import Finite
from fedsparse.errors import ConfigError, WireError
from fedsparse.messages import Plan
from fedsparse.sparsity import (
    UNSTRUCTURED,
    Mask,
    Pattern,
    State,
    allocation,
    cosine,
    grow_and_prune,
    layer_counts,
)
from fedsparse.sparsity.patterns import Blocks
from fedsparse.training import batchnorm, local
from strategies import metrics, votes
from strategies.addressing import MeteredGrid
from strategies.base import Answer, SparseStrategy
from strategies.pruned import Pruned, PrunedSettings
from strategies.replies import Reader, Reply
from strategies.seats import Demands
from strategies.sums import adds_up
from strategies.task import Task, masked

LARGEST_POOL = 32


class FedTinySettings(PrunedSettings):
    """Keys of `[strategy]` for fedtiny."""

    pretrain_epochs: int = Field(default=10, ge=0, description="epochs on the server's own data")
    pretrain_lr: Finite = Field(default=0.05, gt=0)
    selection: Literal["adaptive", "vanilla", "none"] = "adaptive"
    candidates: int | None = Field(default=None, ge=1, le=256, description="C* = 0.1/d if unset")
    base: Literal["uniform", "er", "erk"] = "erk"
    noise: Finite = Field(default=0.5, ge=0, lt=1, description="relative noise of layer rates")
    development_samples: int = Field(default=128, ge=2, description="of a client, for selection")
    variance_rule: Literal["average", "total"] = "average"
    loss_weights: Literal["samples", "uniform"] = "samples"
    adjust_every: int = Field(default=10, ge=1, description="rounds between adjustments")
    stop_round: int = Field(default=100, ge=0, description="no adjustment after this round")
    alpha: Finite = Field(default=0.3, gt=0, le=1, description="adjusted fraction at the start")
    granularity: Literal["block", "layer", "model"] = "block"
    order: Literal["backward", "forward"] = "backward"
    blocks: int = Field(default=5, ge=1)
    growth_samples: int | None = Field(
        default=None, ge=1, description="batch of the pruned gradients; client.batch_size if unset"
    )
    reestimate: Literal["public", "none"] = "public"


class FedTiny(SparseStrategy):
    """Adaptive BatchNorm selection, then progressive pruning."""

    Settings = FedTinySettings

    asked: Mapping[str, int]
    """Layers adjusted in the round under way, with the gradients asked for in each."""

    def __init__(self, task: Task) -> None:
        super().__init__(task)
        self.pruned = Pruned.of(task, self.settings, self.settings.base)
        self.blocks = moved_blocks(self.pruned.pattern, self.settings.pattern)
        if self.settings.pretrain_epochs or self.settings.reestimate == "public":
            _ = task.public
        self.asked = {}

    def demands(self, density: float) -> Demands:
        """Return plain training, and the adjustment that asks for most gradients."""
        kept = None if density >= 1 else self.pruned.counts(density, self.settings.base)
        if kept is None or not self.settings.stop_round:
            return [(Plan(), kept)]
        grow = {
            n: self.adjusted_count(self.settings.adjust_every, kept[n]) for n in self.pruned.names
        }
        blocks = [{n: grow[n] for n in block if n in grow} for block in self.schedule()]
        plans = [Plan(grow=block, samples=self.settings.growth_samples or 0) for block in blocks]
        largest = max(plans, key=lambda plan: sum(plan.grow.values()))
        adjusts = self.settings.adjust_every <= self.settings.stop_round
        return [(Plan(), kept), *([(largest, kept)] if adjusts else [])]

    # -- before round 1: adaptive BatchNorm selection ---------------------------------

    def prepare(self, grid: MeteredGrid) -> None:
        """Pre-train, make the pool of candidates, let clients choose one."""
        dense = self.task.pretrain(self.settings.pretrain_epochs, self.settings.pretrain_lr)
        pool = self.candidate_pool(dense)
        chosen, statistics = self.select(grid, dense, pool) if len(pool) > 1 else (0, {})
        self.mask = pool[chosen]
        self.state = masked({**dense, **statistics}, self.mask)
        if not statistics:
            self.reestimate_batchnorm()

    def candidate_pool(self, dense: State) -> list[Mask]:
        """Return C masks of the pre-trained weights, each with its own noisy layer rates."""
        magnitude = {name: np.abs(dense[name]) for name in self.pruned.names}
        shapes = self.pruned.shapes
        return [
            self.pruned.top(magnitude, layer_counts(shapes, self.noisy_rates(index)))
            for index in range(self.pool_size())
        ]

    def pool_size(self) -> int:
        """C* = 0.1 / d: sending C* sparse models costs about a tenth of the dense one."""
        if self.settings.selection == "none":
            return 1
        guided = min(LARGEST_POOL, max(2, round(0.1 / self.settings.density)))
        return int(self.settings.candidates or guided)

    def noisy_rates(self, index: int) -> dict[str, float]:
        """Layer densities d_l (1 + e_l), e_l ~ U(-noise, noise), rescaled to d overall.

        Candidate 0 is the base allocation without noise.
        """
        s = self.settings
        base = allocation.ALLOCATIONS[s.base](self.pruned.shapes, s.density)
        if index == 0:
            return dict(base)
        e = self.task.rng(0, f"candidate {index}").uniform(-s.noise, s.noise, len(base))
        raw = {name: d * (1 + x) for (name, d), x in zip(base.items(), e, strict=True)}
        return allocation.rescale(self.pruned.shapes, raw, s.density)

    def select(self, grid: MeteredGrid, dense: State, pool: list[Mask]) -> tuple[int, State]:
        """Return the chosen candidate and its adapted BatchNorm statistics."""
        plan = Plan(samples=self.settings.development_samples)
        clients = list(self.choose(grid, 0, plan))
        payloads = wire.pack_many(
            {
                str(i): wire.encode(masked(dense, mask), mask=mask, values=self.settings.values)
                for i, mask in enumerate(pool)
            }
        )
        pooled = {messages.CANDIDATES: payloads}
        losses = partial(candidate_losses, count=len(pool))
        statistics = partial(self.candidate_statistics, count=len(pool))
        if self.settings.selection == "vanilla":
            tested = self.query(grid, messages.LOSSES, clients, plan, pooled, losses)
            return self.cheapest(tested), {}
        measured = self.query(grid, messages.STATISTICS, clients, plan, pooled, statistics)
        merged = self.merge_statistics(measured)
        adapted = {
            messages.ARRAYS: wire.pack_many({str(i): wire.encode(s) for i, s in enumerate(merged)})
        }
        replied = [answer.client for answer in measured]
        tested = self.query(grid, messages.LOSSES, replied, plan, adapted, losses)
        chosen = self.cheapest(tested)
        return chosen, merged[chosen]

    def candidate_statistics(self, reply: Message, count: int) -> list[State]:
        """Decode one client's BatchNorm statistics of each candidate."""
        schema = wire.Schema.of(batchnorm.statistics(self.task.model))
        payloads = wire.unpack_many(reply.content.array_records[messages.ARRAYS])
        return [wire.decode(payloads[str(i)], schema).state for i in range(count)]

    def merge_statistics(self, answers: Sequence[Answer[list[State]]]) -> list[State]:
        """mu_c = sum_k p_k mu_ck and sigma^2_c likewise, for each candidate c."""
        if votes.bounded(self.task.config.robust):
            return [votes.median_state(p) for p in zip(*(a.value for a in answers), strict=True)]
        weights = [answer.examples for answer in answers]
        rule = self.settings.variance_rule
        by_candidate = zip(*(answer.value for answer in answers), strict=True)
        return [batchnorm.merge(parts, weights, rule) for parts in by_candidate]

    def cheapest(self, answers: Sequence[Answer[list[float]]]) -> int:
        """argmin_c sum_k p_k loss_ck; p_k by samples, or uniform as the public code does.

        A candidate with a loss that is not finite loses to all others; where each has one,
        the least weight of those decides.
        """
        losses = np.array([answer.value for answer in answers], np.float64)
        if votes.bounded(self.task.config.robust):
            return votes.least_median(losses)
        weights = np.array([answer.examples for answer in answers], np.float64)
        if self.settings.loss_weights == "uniform":
            weights[:] = 1.0
        finite = np.isfinite(losses)
        share = weights / weights.sum()
        order = np.lexsort((share @ np.where(finite, losses, 0.0), share @ ~finite))
        return int(order[0])

    # -- every round: progressive pruning ---------------------------------------------

    def plan(self, round_number: int) -> Plan:
        """Ask for training and, on adjustment rounds, for the top pruned gradients."""
        self.asked = self.adjustments(round_number)
        return Plan(
            round_number,
            self.settings.values,
            grow=self.asked,
            samples=self.settings.growth_samples or 0,
        )

    def adjustments(self, round_number: int) -> dict[str, int]:
        """Return a_t^l for the layers of the block scheduled in this round, if any."""
        s = self.settings
        assert self.mask is not None
        if round_number % s.adjust_every or round_number > s.stop_round:
            return {}
        kept = self.mask.layer_kept()
        counts = {}
        for name in self.scheduled_block(round_number // s.adjust_every - 1):
            pruned = int(np.prod(self.mask.shapes[name])) - kept[name]
            count = self.adjusted_count(round_number, kept[name])
            counts[name] = min(count, pruned, kept[name] - 1)
        return {name: count for name, count in counts.items() if count > 0}

    def adjusted_count(self, round_number: int, kept: int) -> int:
        """a_t^l = (alpha / 2) (1 + cos(pi t / R_stop)) n_l; 0.15 (1 + cos) n_l by default."""
        return int(cosine(self.settings.alpha, self.settings.stop_round)(round_number) * kept)

    def scheduled_block(self, adjustment: int) -> list[str]:
        """Return the layers of the adjustment's block."""
        blocks = self.schedule()
        return blocks[adjustment % len(blocks)]

    def schedule(self) -> list[list[str]]:
        """Return the blocks of layers in their order; backward is output to input."""
        s, names = self.settings, self.task.prunable
        if s.granularity == "model":
            return [list(names)]
        if s.granularity == "layer":
            blocks = [[name] for name in names]
        else:
            blocks = models.blocks(self.task.model, names, s.blocks)
        return blocks[::-1] if s.order == "backward" else blocks

    @adds_up
    def aggregate(self, round_number: int, replies: Sequence[Reply]) -> None:
        """Average the weights; on adjustment rounds, grow and prune the scheduled block."""
        assert self.mask is not None
        self.state = self.mean(replies)
        counts = self.asked
        if not counts:
            return
        before = self.mask
        self.mask = self.adjust(counts, self.mean_gradients(counts, replies))
        self.state = masked(self.state, self.mask)
        if self.mask != before:
            self.reestimate_batchnorm()

    def reader(self) -> Reader:
        """Read the top pruned gradients, too, in rounds that ask for them."""
        plain = super().reader()
        if not self.asked:
            return plain
        layers = [(name, shape) for name, shape in self.task.shapes.items() if name in self.asked]
        schema = wire.Schema(tuple(layers))
        return GradientReader(**vars(plain), asked=self.asked, gradients=schema, mask=self.mask)

    def mean_gradients(
        self, counts: Mapping[str, int], replies: Sequence[Reply]
    ) -> dict[str, NDArray[np.float64]]:
        """g~^l = sum_k p_k g_k^l, where a weight that a client did not send counts as 0."""
        robust = self.task.config.robust
        if votes.bounded(robust):
            return votes.grow_votes([reply.extra for reply in replies], len(self.seats), robust)
        total = sum(reply.examples for reply in replies)
        mean = {name: np.zeros(self.task.shapes[name]) for name in counts}
        for reply in replies:
            for name, gradient in reply.extra.items():
                mean[name] += gradient.astype(np.float64) * (reply.examples / total)
        return mean

    def adjust(self, counts: Mapping[str, int], gradients: Mapping[str, NDArray[Any]]) -> Mask:
        """Grow the a_t^l largest |g~|, then drop the a_t^l smallest |w| of those kept before.

        Under a pattern of blocks: of their sums, in as many blocks as a_t^l weights are, one at
        least.
        """
        assert self.mask is not None
        bits = dict(self.mask.items())
        for name, count in counts.items():
            sums = self.blocks.fold(np.abs(gradients[name]))
            candidates = np.flatnonzero(sums)
            moved = grow_and_prune(
                self.blocks.fold(np.abs(self.state[name])),
                self.blocks.fold(bits[name]) > 0,
                candidates,
                sums.reshape(-1)[candidates],
                max(1, count // self.blocks.rows),
            )
            bits[name] = self.blocks.unfold(moved, bits[name].shape)
        return Mask.from_arrays(bits)

    def reestimate_batchnorm(self) -> None:
        """Measure BatchNorm statistics of the pruned model on the server's own data."""
        if self.settings.reestimate == "none" or not batchnorm.norms(self.task.model):
            return
        models.load_state(self.task.model, self.state)
        x, _ = local.tensors(self.task.public)
        self.state.update(batchnorm.measure(self.task.model, x[:1024]))


def moved_blocks(pattern: Pattern, name: str) -> Blocks:
    """Return the blocks of weights that an adjustment moves; raises ConfigError for no blocks."""
    if pattern == UNSTRUCTURED:
        return Blocks(1)
    if not isinstance(pattern, Blocks):
        raise ConfigError(
            f"strategy.pattern = '{name}': fedtiny moves single weights or blocks; choose "
            "unstructured or block-2, or strategy.name = 'static'"
        )
    return pattern


NOTHING = wire.Schema(())


@dataclass(frozen=True)
class GradientReader(Reader):
    """Reads replies with the `asked` largest gradients of weights that `mask` prunes."""

    asked: Mapping[str, int] = field(default_factory=dict)
    gradients: wire.Schema = NOTHING
    mask: Mask | None = None

    @property
    def extras(self) -> Mapping[str, int]:
        """The gradients."""
        return {messages.GROWTH: self.gradients.most_bytes}

    def extra(self, message: Message) -> State:
        """Decode the top pruned gradients of a reply.

        Raises WireError for more of a layer than were asked for, or any of a kept weight.
        """
        assert self.mask is not None
        payload = wire.unpack(message.content.array_records[messages.GROWTH])
        gradients = wire.decode(payload, self.gradients).state
        for name, gradient in gradients.items():
            found = np.count_nonzero(gradient)
            if found > self.asked[name]:
                asked = f"{self.asked[name]} were asked for"
                raise WireError(f"the reply holds {found} gradients of '{name}'; {asked}")
            if gradient[self.mask[name]].any():
                raise WireError(f"the reply holds gradients of weights that '{name}' keeps")
        return gradients


def candidate_losses(reply: Message, count: int) -> list[float]:
    """Return one client's losses, infinite where they are no finite numbers.

    Raises WireError unless there is one a candidate, and a finite one among them.
    """
    losses = reply.content.metric_records[messages.METRICS]["losses"]
    if not isinstance(losses, list) or len(losses) != count:
        told = len(losses) if isinstance(losses, list) else "no list of"
        raise WireError(f"the reply holds {told} losses; there are {count} candidates")
    fits = metrics.FIGURES["loss"].fits
    if not any(fits(loss) for loss in losses):
        raise WireError("the reply holds no finite loss of any candidate")
    return [float(loss) if fits(loss) else math.inf for loss in losses]
