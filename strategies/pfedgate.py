"""pFedGate (Chen et al., ICML 2023; arXiv 2305.02776): each client uses the blocks that fit it.

The server holds one shared model, cut into blocks. A client's gate, which never leaves it, picks
blocks within the client's budget. The server sends the blocks that the client wished for with its
last reply (at most its budget and some to spare), and learns from the blocks that came back.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import cached_property
from typing import Any, Literal

import numpy as np
from flwr.serverapp import Grid
from pydantic import Field

from fedsparse import seeds
from fedsparse.config import Density, Finite, StrategySettings
from fedsparse.messages import Plan
from fedsparse.sparsity import Mask
from fedsparse.sparsity.blocks import Blocks
from fedsparse.sparsity.cost import gate_entries, gate_flops
from fedsparse.sparsity.knapsack import check_budget, choose
from strategies.own_masks import OwnMasks, weighted
from strategies.refusals import check_budgets, check_numbers
from strategies.replies import Reply
from strategies.seats import Demands, Kept, Seat
from strategies.sums import own_mask_mean
from strategies.task import Task
from strategies.wishes import WishReader, layer_shares

STEP = 0.05
"""Budgets that devices are offered lie so far apart."""


class PFedGateSettings(StrategySettings):
    """Keys of `[strategy]` for pfedgate."""

    density: Density = Field(default=0.5, description="budget: the part of the model used at once")
    budgets: list[Density] | None = Field(
        default=None,
        min_length=1,
        description="budgets by client, in turn; density for all if unset",
    )
    budget_from: Literal["settings", "devices"] = Field(
        default="settings", description="devices: the largest that a device holds, up to density"
    )
    blocks: int = Field(default=5, ge=1, le=1000, description="most blocks of a tensor")
    solver: Literal["greedy", "exact", "fractional"] = Field(
        default="greedy", description="of the knapsack that picks blocks"
    )
    capacity: Literal["exact", "paper-code"] = Field(
        default="exact", description="paper-code leaves a part of the budget unused"
    )
    sized_values: bool = Field(
        default=False, description="a block's value is the mean of its gate and its relative size"
    )
    gates: Literal["batch", "client"] = Field(
        default="batch", description="blocks are picked for each batch, or for each epoch"
    )
    heads: int = Field(default=1, ge=1, le=2, description="2: one head picks, another weighs")
    optimise: Literal["joint", "alternating"] = Field(
        default="joint", description="of gate and model in each batch"
    )
    gate_lr: Finite = Field(default=1.0, gt=0, description="learning rate of the gates")
    gate_start: Finite = Field(
        default=0.5, gt=0, lt=1, description="what gates are at first, around which they differ"
    )
    spare: Finite = Field(
        default=0.25, ge=0, le=10, description="blocks sent beyond the budget, as a part of it"
    )
    average: Literal["all", "senders"] = Field(
        default="all", description="whether who did not send a block counts as unchanged"
    )
    novel_epochs: int = Field(
        default=1, ge=0, description="epochs in which a client without a gate trains one, for use"
    )
    finetune_epochs: int = Field(
        default=0, ge=0, description="of gate and model on the client's data, before use"
    )


class PFedGate(OwnMasks):
    """Personal gates over the blocks of one shared model."""

    Settings = PFedGateSettings
    program = "pfedgate"

    def __init__(self, task: Task) -> None:
        super().__init__(task)
        self.budgets: dict[int, float | None] = {}
        self._kept_at: dict[float, Kept] = {}
        self.used: dict[int, list[float]] = {}
        """Of layers, what each client's batches used when it last replied."""
        s = self.settings
        check_numbers(task.data.train.x, s.name)
        check_budgets(task.config, s.budget_from, s.budgets)
        if s.solver != "fractional":
            check_budget(self.blocks, min([s.density, *(s.budgets or [])]))

    @cached_property
    def blocks(self) -> Blocks:
        """The blocks of the model's parameters."""
        return Blocks.of(self.task.model, self.settings.blocks)

    @property
    def mask_shapes(self) -> Mapping[str, tuple[int, ...]]:
        """Masks cover every parameter, biases and norms too."""
        return self.blocks.shapes

    # -- budgets ----------------------------------------------------------------------

    def budget_of(self, client: int) -> float:
        """Return s_k, the fraction of the model that a client may use at once."""
        s = self.settings
        if s.budget_from == "devices":
            return self.budgets.get(client) or self.choices[0]
        return float(s.budgets[client % len(s.budgets)] if s.budgets else s.density)

    @cached_property
    def choices(self) -> list[float]:
        """The budgets that devices are offered, ascending: from the least to density."""
        most, least = self.settings.density, self.blocks.least
        return sorted(round(float(step), 6) for step in np.arange(most, least, -STEP)) or [most]

    def with_spare(self, budget: float) -> float:
        """Return the fraction of the model that a client of a budget is sent at most."""
        return min(1.0, budget * (1 + float(self.settings.spare)))

    def kept_at(self, budget: float) -> Kept:
        """Return how many weights by layer a client of a budget holds: its own and the spare."""
        if budget not in self._kept_at:
            held, shapes = self.with_spare(budget), self.task.shapes.items()
            self._kept_at[budget] = {n: int(np.ceil(held * np.prod(s))) for n, s in shapes}
        return self._kept_at[budget]

    def settle(self, grid: Grid | None) -> None:
        """Give every client that has none yet the largest budget that its device holds."""
        ask = getattr(grid, "budget", None)
        if self.settings.budget_from == "devices" and ask is not None and not self.budgets:
            plan, every = self.own_plan(1), range(self.task.config.fleet.clients)
            self.budgets = {c: ask(c, plan, self.kept_at, self.choices) for c in every}

    def choose(self, grid: Grid, round_number: int, plan: Plan) -> dict[int, Seat]:
        """Settle budgets, then draw the round's clients."""
        self.settle(grid)
        return super().choose(grid, round_number, plan)

    def ready_to_test(self, round_number: int, grid: Grid | None) -> None:
        """Settle budgets."""
        self.settle(grid)

    def kept_by(self, client: int) -> Kept:
        """Return how many weights a client holds at most, by layer."""
        return self.kept_at(self.budget_of(client))

    def demands(self, density: float) -> Demands:
        """Return the training of the smallest budget."""
        s = self.settings
        least = (
            self.choices[0] if s.budget_from == "devices" else min([density, *(s.budgets or [])])
        )
        return [(self.own_plan(1), self.kept_at(least))]

    @property
    def held_entries(self) -> int:
        """The gate and its gradients."""
        return 2 * gate_entries(self.task.data.input_shape, len(self.blocks), self.settings.heads)

    @property
    def work(self) -> float:
        """The gate beside the smallest budget's model; twice where they take turns."""
        s = self.settings
        model = self.task.cost.flops_of(None) * min([s.density, *(s.budgets or [])])
        gate = gate_flops(self.task.data.input_shape, len(self.blocks), s.heads)
        return float((1 + gate / model) * (1 + (s.optimise == "alternating")))

    def own_plan(self, round_number: int) -> Plan:
        """Return a plan with the usual budget; each client's own takes its place."""
        return replace(super().own_plan(round_number), budget=self.settings.density)

    # -- rounds -----------------------------------------------------------------------

    def first_mask(self, client: int) -> Mask:
        """Return blocks for a client that has not wished yet: the first ones, others drawn.

        As many as its budget and the spare ones allow.
        """
        more = self.with_spare(self.budget_of(client))
        rng = seeds.stream(self.task.config.run.seed, 0, client, "blocks")
        drawn = rng.random(len(self.blocks))
        return self.blocks.mask(choose(drawn, self.blocks, more, solver=self.settings.solver))

    def reader(self) -> WishReader:
        """Return a reader that knows the blocks that each client was sent."""
        most = {client: self.most_of(client) for client in self.seats}
        layers = len(self.task.shapes)
        return WishReader(**self.sent(), blocks=self.blocks, most=most, layers=layers)

    def most_of(self, client: int) -> int:
        """Return the entries that a client is sent at most: its budget and some to spare."""
        return int(self.with_spare(self.budget_of(client)) * self.blocks.entries + 1e-6)

    def aggregate(self, round_number: int, replies: Sequence[Reply]) -> None:
        """theta_g <- theta_g + sum_k p_k delta_k, where a block that was not sent has delta 0."""
        stay = self.settings.average == "all"
        self.state = own_mask_mean(weighted(replies), self.state, absent_stay=stay)
        self.note_masks(replies)
        for reply in replies:
            self.used[reply.client] = layer_shares(reply.message)

    @property
    def density(self) -> float:
        """The mean over clients of the fraction of prunable weights that their batches used."""
        sizes = {name: math.prod(shape) for name, shape in self.task.shapes.items()}
        layers = self.layer_density
        return math.fsum(layers[name] * n for name, n in sizes.items()) / sum(sizes.values())

    @property
    def layer_density(self) -> dict[str, float]:
        """The same by layer; before round 1, the mean budget."""
        clients = self.task.present
        told = list(self.used.values())
        if not told:
            budget = math.fsum(map(self.budget_of, clients)) / len(clients)
            return dict.fromkeys(self.task.shapes, budget)
        means = [math.fsum(column) / len(told) for column in zip(*told, strict=True)]
        return dict(zip(self.task.shapes, means, strict=True))

    def state_dict(self) -> dict[str, Any]:
        """Add the budgets that devices were given, and what clients used."""
        budgets = {str(client): budget for client, budget in self.budgets.items()}
        used = {str(client): shares for client, shares in self.used.items()}
        return {**super().state_dict(), "budgets": budgets, "used": used}

    def load_state_dict(self, saved: dict[str, Any]) -> None:
        """Take the budgets, too."""
        super().load_state_dict(saved)
        self.budgets = {int(client): budget for client, budget in saved["budgets"].items()}
        self.used = {int(client): shares for client, shares in saved["used"].items()}
