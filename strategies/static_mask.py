"""Static masks: prune once before training, then train only what is kept.

One criterion (random, magnitude, SNIP, GraSP, SynFlow, Fisher) times one allocation
(uniform, ER, ERK, global) times one pattern (blocks, N:M, channels, ...), scored on the
server's own data or by the clients on one batch each, as SSFL does.
"""

from typing import Literal

import numpy as np
import torch
from flwr.app import Message
from pydantic import Field
from torch import Tensor

from fedsparse import messages, wire
from fedsparse.config import Finite
from fedsparse.errors import ConfigError
from fedsparse.messages import Plan
from fedsparse.sparsity import Mask, State, static_mask
from fedsparse.sparsity.criteria import NEEDS_DATA
from fedsparse.training import local
from strategies import votes
from strategies.addressing import MeteredGrid
from strategies.base import SparseStrategy
from strategies.pruned import Pruned, PrunedSettings
from strategies.seats import Demands
from strategies.task import Task, masked


class StaticMaskSettings(PrunedSettings):
    """Keys of `[strategy]` for static."""

    criterion: Literal["random", "magnitude", "snip", "grasp", "synflow", "fisher", "saliency"] = (
        "magnitude"
    )
    allocation: Literal["uniform", "er", "erk", "global"] = "erk"
    scored_by: Literal["server", "clients"] = "server"
    score_samples: int = Field(default=64, ge=1, description="samples of one batch of scoring")
    pretrain_epochs: int = Field(default=0, ge=0, description="epochs on the server's own data")
    pretrain_lr: Finite = Field(default=0.05, gt=0)


class StaticMask(SparseStrategy):
    """Federated averaging under one mask that is made before the first round."""

    Settings = StaticMaskSettings
    private = True
    fits = frozenset({"batch", "density"})

    def __init__(self, task: Task) -> None:
        super().__init__(task)
        s = self.settings
        self.pruned = Pruned.of(task, s, s.allocation)
        if s.scored_by == "clients" and task.config.privacy.clip is not None:
            raise ConfigError(
                "strategy.scored_by = 'clients': their scores make the mask, which privacy.clip "
                "does not cover; set it to 'server', which scores on its own data"
            )
        if s.scored_by == "clients" and task.config.secure.aggregation:
            raise ConfigError(
                "strategy.scored_by = 'clients': the server sees each client's scores, which "
                "secure.aggregation does not cover; set it to 'server'"
            )
        if s.scored_by == "clients" and s.criterion not in NEEDS_DATA:
            raise ConfigError(
                f"strategy.criterion = '{s.criterion}' looks at no data; score it by the server, "
                f"or choose one of: {', '.join(NEEDS_DATA)}"
            )
        if s.pretrain_epochs or (s.scored_by == "server" and s.criterion in NEEDS_DATA):
            _ = task.public

    def prepare(self, grid: MeteredGrid) -> None:
        """Make the model, score its weights, and keep the best."""
        s = self.settings
        self.state = self.task.pretrain(s.pretrain_epochs, s.pretrain_lr)
        if s.scored_by == "clients":
            self.mask = self.ask_clients_to_score(grid)
        else:
            made = static_mask(
                self.task.model,
                self.pruned.names,
                s.density,
                criterion=s.criterion,
                allocation=s.allocation,
                batches=self.public_batches(),
                rng=self.task.rng(0, "mask"),
                pattern=self.pruned.pattern,
            )
            self.mask = self.pruned.whole(made)
        self.state = masked(self.state, self.mask)

    def demands(self, density: float) -> Demands:
        """Return training under the mask; scoring by clients is a step of the dense model."""
        s = self.settings
        kept = None if density >= 1 else self.pruned.counts(density, s.allocation)
        trained = (Plan(), kept)
        if s.scored_by == "server":
            return [trained]
        return [(self.scoring_plan, None), trained]

    @property
    def scoring_plan(self) -> Plan:
        """What clients are asked that score the weights of the dense model."""
        s = self.settings
        return Plan(criterion=s.criterion, samples=s.score_samples, batch_size=s.score_samples)

    def public_batches(self) -> list[tuple[Tensor, Tensor]]:
        """Return the server's data in batches; SynFlow looks only at a sample's shape."""
        if self.settings.criterion not in NEEDS_DATA:
            shape = (1, *self.task.data.input_shape)
            return [(torch.zeros(shape), torch.zeros(1))]
        x, y = local.tensors(self.task.public)
        size = self.settings.score_samples
        return list(zip(torch.split(x, size), torch.split(y, size), strict=True))

    def ask_clients_to_score(self, grid: MeteredGrid) -> Mask:
        """Let each client score one batch; keep the top of the weighted mean (SSFL)."""
        s = self.settings
        plan = self.scoring_plan
        clients = list(self.choose(grid, 0, plan))
        model = {messages.ARRAYS: self.arrays()}
        scored = self.query(grid, messages.SCORE, clients, plan, model, self.read_scores)
        weights = np.array([answer.examples for answer in scored], np.float64)
        told = [answer.value for answer in scored]
        bounded = votes.bounded(self.task.config.robust)
        scores = votes.median_scores(told) if bounded else self.mean_scores(told, weights)
        return self.pruned.from_scores(scores, s.density, s.allocation)

    def read_scores(self, reply: Message) -> State:
        """Decode one client's scores."""
        schema = wire.Schema(tuple(self.task.shapes.items()))
        payload = wire.unpack(reply.content.array_records[messages.ARRAYS])
        return wire.decode(payload, schema).state

    @staticmethod
    def mean_scores(scores: list[State], weights: np.ndarray) -> State:
        """Return sum_k p_k s_k, weighted by samples (SSFL, saliency aggregation)."""
        share = weights / weights.sum()
        return {
            name: sum(
                (p * s[name].astype(np.float64) for p, s in zip(share, scores, strict=True)),
                np.zeros(scores[0][name].shape),
            ).astype(np.float32)
            for name in scores[0]
        }
