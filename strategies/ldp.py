"""Sparse linear regression of which no device tells anything but under noise of its own.

What `nldp` and `ldp-iht` share: one linear model, clients that are each asked once, in as many
groups as there are rounds, and replies held to the bounds that honest ones keep to. The server
needs no trust: local differential privacy, by sample (`docs/ldp.md`).
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from flwr.app import Message
from flwr.serverapp import Grid
from pydantic import Field

from fedsparse import messages, wire
from fedsparse.config import Config, Finite, StrategySettings
from fedsparse.errors import ConfigError, WireError
from fedsparse.messages import Plan
from fedsparse.privacy import regression
from fedsparse.privacy.gaussian import Floats
from fedsparse.sparsity import Mask
from strategies import addressing
from strategies.base import SparseStrategy
from strategies.replies import Reader, Reply
from strategies.seats import FULL, Seat
from strategies.task import Task

BEYOND = 10.0
"""Deviations of its noise that no honest entry is away from its bound: a chance of 1e-23."""


class LdpSettings(StrategySettings):
    """Keys of `[strategy]` of both."""

    epsilon: Finite = Field(
        default=1.0, gt=0, le=64, description="what each sample is promised, with privacy.delta"
    )


@dataclass(frozen=True)
class BoundedReader(Reader):
    """Reads replies whose entries are within what samples and noise can make of them."""

    deviation: float = 0.0
    """Of the noise on one sample's message, in units of its bound."""

    def read(self, client: int, message: Message) -> Reply:
        """Return a reply; raises WireError for entries that no honest client sends."""
        reply = super().read(client, message)
        tensors = {**reply.kept, **(reply.extra or {})}
        most = 1 + BEYOND * self.deviation / reply.examples**0.5
        for name, values in tensors.items():
            largest = float(np.abs(values).max(initial=0.0))
            if not largest <= most:
                raise WireError(
                    f"the reply's {name} has an entry of {largest:.3g}; {reply.examples} samples "
                    f"and their noise make none above {most:.3g}"
                )
        return reply


@dataclass(frozen=True)
class MomentsReader(BoundedReader):
    """Reads replies with the moments x x' in a record of their own."""

    moments: wire.Schema = field(default_factory=lambda: wire.Schema(()))

    @property
    def extras(self) -> Mapping[str, int]:
        """The moments, with their largest bytes."""
        return {messages.MOMENTS: self.moments.most_bytes}

    def extra(self, message: Message) -> Any:
        """Decode the moments."""
        record = message.content.array_records[messages.MOMENTS]
        return wire.decode(wire.unpack(record), self.moments).state


class LocallyPrivate(SparseStrategy):
    """A linear model made of replies that are private before they are sent."""

    Settings = LdpSettings
    takes_rules = False
    tells_once = True
    sensitivity: float

    def __init__(self, task: Task) -> None:
        check_ldp(task)
        super().__init__(task)
        (self.weight,) = task.prunable
        self.features = int(np.prod(task.shapes[self.weight]))
        self.deviation = regression.deviation(
            self.sensitivity, self.settings.epsilon, task.config.privacy.delta
        )
        """Of the noise on one sample's message, in units of its bound."""
        self.groups = groups(task)

    def prepare(self, grid: Any) -> None:
        """Start from no coefficients at all, and no intercept.

        Raises ConfigError where no client of a round has data that fit.
        """
        groups(self.task)
        self.state = {
            name: np.zeros(shape, np.float32) for name, shape in self.schema.shapes.items()
        }

    def choose(self, grid: Grid, round_number: int, plan: Plan) -> dict[int, Seat]:
        """Return the round's group of clients: each is in one round of the run.

        Groups are dealt before it is known whose data do not fit.
        """
        absent = self.task.left_out
        return {client: FULL for client in self.groups[round_number - 1] if client not in absent}

    def mask_of(self, client: int) -> Mask | None:
        """Return no mask: clients tell of every coefficient."""
        return None

    def reader(self) -> BoundedReader:
        """Return a reader that knows what samples and noise can come to."""
        return BoundedReader(self.schema, deviation=self.deviation)

    def spent(self, round_number: int) -> dict[str, float | None]:
        """Return what a sample has spent at most: epsilon, once the first were asked."""
        return {"epsilon": float(self.settings.epsilon) if round_number else 0.0}

    def told(self, reply: Reply) -> Floats:
        """Return what a reply says in the place of the model's coefficients, (d,)."""
        return reply.kept[self.weight].reshape(-1).astype(np.float64)

    def take(self, theta: Floats) -> None:
        """Make coefficients the model, and those that are not zero its mask."""
        shape = self.task.shapes[self.weight]
        weight = theta.astype(np.float32).reshape(shape)
        self.state = {**self.state, self.weight: weight}
        self.mask = Mask.from_arrays({self.weight: weight != 0})


def groups(task: Task) -> list[list[int]]:
    """Return who is asked in each round: all clients, in equal groups by the run's seed."""
    config, absent = task.config, task.absent
    pool = addressing.pool(config.fleet, config.run.seed)
    order = task.rng(0, "groups of clients").permutation(len(pool)).tolist()
    dealt = np.array_split(order, config.run.rounds)
    found = [sorted(pool[int(place)] for place in group) for group in dealt]
    found = [[client for client in group if client not in absent] for group in found]
    if not all(found):
        raise ConfigError(
            f"run.rounds = {config.run.rounds}: {sum(map(len, found))} clients take part, and each "
            "is asked in one round alone; lower run.rounds, or raise fleet.clients"
        )
    return found


def check_ldp(task: Task) -> None:
    """Raise ConfigError for what is no linear regression, or would tell of samples in the clear."""
    config, name = task.config, task.config.strategy["name"]
    if task.data.classes != 1:
        raise ConfigError(
            f"data.name = '{config.data.name}': '{name}' is linear regression, and this has "
            f"{task.data.classes} classes; choose data with targets that are numbers, for example "
            "synthetic-regression"
        )
    if config.model.name != "linear":
        raise ConfigError(
            f"model.name = '{config.model.name}': '{name}' makes a linear model; set it to 'linear'"
        )
    for told, what, remedy in _refused(config):
        if told:
            raise ConfigError(f"{what}; {remedy}")


def _refused(config: Config) -> list[tuple[bool, str, str]]:
    """Return what does not go together with local privacy, why, and what to do instead."""
    fleet, name = config.fleet, config.strategy["name"]
    return [
        (
            bool(fleet.evaluate_clients and config.data.client_test_fraction),
            f"fleet.evaluate_clients = {fleet.evaluate_clients}: a client's test tells of its "
            f"samples in the clear, which the epsilon of '{name}' does not cover",
            "set fleet.evaluate_clients = 0",
        ),
        (
            fleet.clients_per_round is not None,
            f"fleet.clients_per_round: each client of '{name}' is asked once, in one of run.rounds "
            "groups",
            "leave it out",
        ),
        (
            fleet.profile is not None,
            f"fleet.profile = '{fleet.profile}': devices would decide who is asked, and '{name}' "
            "asks each client once",
            "leave fleet.profile out",
        ),
        (
            config.privacy.clip is not None,
            f"privacy.clip: clients of '{name}' add noise themselves, by strategy.epsilon",
            "leave it out",
        ),
    ]
