"""What unlearning methods share: a trained model to begin with, and what may be forgotten how.

Such a method is a strategy whose rounds begin with another run's model. Its configuration is that
of a run that never had what `[forget]` names, so that rounds ask the retained clients alone. In
its first rounds clients may run the method's program; the rest are plain rounds of recovery.
"""

from collections.abc import Iterable, Sequence
from dataclasses import replace
from typing import Any, ClassVar

from flwr.app import ArrayRecord, Message
from flwr.serverapp import Grid
from pydantic import Field

from fedsparse import messages
from fedsparse.config import Config, Density, StrategySettings
from fedsparse.errors import ConfigError
from fedsparse.messages import Plan
from strategies.addressing import MeteredGrid, least_replies, pool
from strategies.base import SparseStrategy
from strategies.seats import FULL, Demands, Seat
from strategies.task import Task, masked
from strategies.unlearning import choice, parent

KINDS = {"client": "a client", "class": "a class", "samples": "samples"}


class UnlearningSettings(StrategySettings):
    """Keys of `[strategy]` for every method that forgets."""

    density: Density = Field(
        default=1.0, description="kept fraction of the prunable weights; 1: as the parent's"
    )
    parent: str = Field(
        default="", max_length=4096, description="folder of the run whose model is to forget"
    )
    parent_model: str = Field(
        default="", pattern="^([0-9a-f]{64})?$", description="SHA-256 of its model; any if empty"
    )


class Unlearning(SparseStrategy):
    """Rounds over the retained data that begin with a model that is to forget."""

    Settings = UnlearningSettings
    clients_keep = False
    takes_rules = False
    sparser = "--set strategy.name=prune-finetune --set strategy.density={}"

    targets: ClassVar[frozenset[str]] = frozenset(KINDS)
    """What it can forget."""

    needs_forgotten: ClassVar[bool] = False
    """Whether it works on the data to be forgotten: of classes and samples, never a client's."""

    needs_classes: ClassVar[bool] = False
    """Whether it makes no sense where targets are numbers."""

    knob: ClassVar[str] = ""
    """The key of `[strategy]` that is its strength, '' where it has none."""

    grid: ClassVar[tuple[float, ...]] = ()
    """Strengths to try, the weakest first."""

    rounds: ClassVar[int] = 8
    """How many rounds it usually takes."""

    least_rounds: ClassVar[int] = 1
    """How many it takes at least."""

    prunes: ClassVar[bool] = False
    """Whether `density` says how much it keeps."""

    def __init__(self, task: Task) -> None:
        super().__init__(task)
        if task.config.forget.kind is None:
            raise ConfigError(
                f"strategy.name = '{self.settings.name}' forgets what [forget] names, which is "
                "nothing; set forget.clients, forget.classes or forget.samples"
            )
        self.parent = parent.load(self.settings.parent, self.settings.parent_model, task)
        self.check(task.config)

    @classmethod
    def usual_rounds(cls, parent_rounds: int, strength: float | None = None) -> int:
        """Return how many rounds it usually takes after a run of some rounds, at a strength."""
        return cls.rounds

    @classmethod
    def strengths(cls, density: float) -> tuple[float, ...]:
        """Return the strengths to try on a parent of some density, the weakest first."""
        return cls.grid

    def check(self, config: Config) -> None:
        """Raise ConfigError for what this method cannot forget, or cannot do with the settings."""
        before = self.parent.folder.config.forget
        kind = str(config.forget.since(before).kind or config.forget.kind)
        name, rounds = self.settings.name, config.run.rounds
        if self.needs_forgotten and (before.classes or before.samples):
            raise ConfigError(
                f"strategy.name = '{name}' works on the data to be forgotten, and what the run was "
                "made without is among it; choose a method on retained data, such as l1-sparse"
            )
        if not choice.fits(type(self), kind):
            why = (
                "works on the data to be forgotten, and a forgotten client is not contacted"
                if kind == "client" and self.needs_forgotten
                else f"cannot forget {KINDS[kind]}"
            )
            others = ", ".join(choice.fitting(kind))
            raise ConfigError(f"strategy.name = '{name}' {why}; choose one of: {others}")
        if self.needs_classes and self.task.data.classes == 1:
            raise ConfigError(
                f"strategy.name = '{name}' needs classes, and these targets are numbers; choose "
                "another, such as l1-sparse"
            )
        if rounds < self.least_rounds:
            raise ConfigError(
                f"run.rounds = {rounds}: '{name}' takes {self.least_rounds} rounds at least"
            )
        if not self.prunes and self.settings.density != 1.0:
            raise ConfigError(
                f"strategy.density = {self.settings.density:g}: '{name}' leaves the mask as it is; "
                "leave density out, or choose prune-finetune"
            )

    # -- what a method overrides ------------------------------------------------------

    def alter(self, grid: MeteredGrid) -> None:
        """Change the parent's model and mask before the first round."""

    def works(self, round_number: int) -> bool:
        """Tell whether clients run this method's program in a round, or train plainly."""
        return bool(self.program)

    def asks_holders(self, round_number: int) -> bool:
        """Tell whether a round asks the clients that hold data to be forgotten, and no others."""
        return False

    def beside(self, round_number: int) -> dict[str, ArrayRecord]:
        """Return what clients are sent beside the model in a round with the method's program."""
        return {}

    # -- rounds -----------------------------------------------------------------------

    def prepare(self, grid: MeteredGrid) -> None:
        """Take the parent's model and mask, and change them as the method says."""
        self.state, self.mask = masked(self.parent.state, self.parent.mask), self.parent.mask
        self.alter(grid)

    def plan(self, round_number: int) -> Plan:
        """Ask for the method's program, or for plain training on the retained data."""
        if self.works(round_number):
            return self.own_plan(round_number)
        return Plan(round_number, self.settings.values)

    def ask_with_model(self, clients: Iterable[int], kind: str, plan: Plan) -> list[Message]:
        """Ask as ever, with what the method sends beside the model."""
        asked = super().ask_with_model(clients, kind, plan)
        if kind == messages.TRAIN and plan.program:
            records = self.beside(plan.round)
            for content in {id(message.content): message.content for message in asked}.values():
                content.update(records)
        return asked

    def exactly(self, round_number: int) -> Plan:
        """Return a plan of a round in which clients send what they measured, never rounded."""
        return replace(self.own_plan(round_number), values="f32")

    def choose(self, grid: Grid, round_number: int, plan: Plan) -> dict[int, Seat]:
        """Return the round's clients; where there are none that hold what is wanted, any."""
        holders = self.holders() if self.asks_holders(round_number) else []
        if not holders:
            return super().choose(grid, round_number, plan)
        return self.seated(grid, holders, plan)

    def seated(self, grid: Any, clients: Sequence[int], plan: Plan) -> dict[int, Seat]:
        """Return some clients with their seats, on a grid that knows devices those that are there.

        Such a grid waits until as many are there as must reply, and raises GridError where it waits
        for long.
        """
        if not hasattr(grid, "seat"):
            return dict.fromkeys(clients, FULL)
        began, enough = grid.now, least_replies(len(clients), self.task.config.fleet.min_replies)
        while True:
            seats = {c: grid.seat(c, plan, self.kept(), self.fits) for c in clients}
            there = {client: seat for client, seat in seats.items() if seat is not None}
            if len(there) >= enough:
                return there
            grid.wait(began)

    def holders(self) -> list[int]:
        """Return the clients that hold data to be forgotten and take part, ascending."""
        data, config = self.task.data, self.task.config
        drawn = pool(config.fleet, config.run.seed)
        there = sorted(client for client in drawn if client not in self.task.absent)
        return [client for client in there if data.gone(client).any()]

    def demands(self, density: float) -> Demands:
        """Return the method's training under the parent's mask."""
        mask = self.parent.mask
        return [(self.own_plan(1), None if mask is None else mask.layer_kept())]
