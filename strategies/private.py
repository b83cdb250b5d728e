"""Differential privacy by client: DP-FedAvg on sparse updates (McMahan et al. 2018, algorithm 1).

Each client's update, on the entries that the mask keeps, is clipped to length C; the sum gets
Gaussian noise of deviation sigma C on those entries alone and is divided by the number of clients
that a round expects, whoever replied. The server is trusted: it sees each update.
"""

import random
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from fedsparse import seeds, wire
from fedsparse.config import Config
from fedsparse.errors import ConfigError
from fedsparse.privacy.gaussian import system_normals, system_uniforms
from fedsparse.sparsity import State
from strategies import accounting, addressing
from strategies.replies import Before, Reply, split, spread
from strategies.stack import kept_entries
from strategies.task import Task

Floats = NDArray[np.float64]


class Private:
    """The rule of `[privacy]`: turns a round's replies into the next model, and keeps account."""

    def __init__(self, task: Task) -> None:
        self.task = task
        self.settings = task.config.privacy
        self.clip = self.settings.clip or 0.0
        self.expected = addressing.round_size(task.config.fleet)
        """Clients in a round, on the average: the denominator, which no data changes."""

    def __call__(self, replies: Sequence[Reply], before: Before) -> State:
        """Return w + (sum_k clip(w_k - w) + N(0, (sigma C)^2)) / m, zero where the mask prunes.

        BatchNorm's statistics are a part of the update like all that travels; a variance that
        noise made negative is zero.
        """
        schema = wire.Schema.of(before.shared)
        kept = kept_entries(schema, before.mask)
        old = np.concatenate([before.shared[name].reshape(-1) for name in schema.names])
        old = old[kept].astype(np.float64)
        total = np.zeros(len(old))
        for reply in sorted(replies, key=lambda reply: reply.client):
            total += clipped(reply.flat - old, self.clip)
        total += self.noise(before.round_number, len(old))
        flat = (old + total / self.expected).astype(np.float32)
        state = spread(split(flat, schema, before.mask), before.mask)
        for name in state:
            if name.endswith("running_var"):
                np.maximum(state[name], 0, out=state[name])
        return state

    def noise(self, round_number: int, size: int) -> Floats:
        """Return the noise of a round's sum, (size,), of standard deviation sigma C."""
        if self.settings.entropy == "system":
            found = system_normals(size)
        else:
            found = self.task.rng(round_number, "privacy noise").standard_normal(size)
        return self.settings.noise * self.clip * found

    @property
    def pool(self) -> Sequence[int]:
        """The clients that a round draws from."""
        config = self.task.config
        drawn, absent = addressing.pool(config.fleet, config.run.seed), self.task.absent
        return [client for client in drawn if client not in absent]

    @property
    def rate(self) -> float:
        """The chance of a client to be in a round."""
        return min(1.0, self.expected / max(1, len(self.pool)))

    def cohort(self, round_number: int) -> list[int]:
        """Return the clients of a round, ascending; of Poisson sampling it may be nobody."""
        config, pool = self.task.config, self.pool
        system = self.settings.entropy == "system"
        if self.settings.sampling == "fixed":
            if system:
                return sorted(random.SystemRandom().sample(pool, min(self.expected, len(pool))))
            fleet = config.fleet
            return addressing.cohort(fleet, config.run.seed, round_number, self.task.absent)
        if system:
            coins = system_uniforms(len(pool))
        else:
            rng = seeds.stream(config.run.seed, round_number, seeds.SERVER, "privacy sampling")
            coins = rng.random(config.fleet.training_clients)[pool]
        return [pool[place] for place in np.flatnonzero(coins < self.rate).tolist()]

    def epsilon(self, rounds: int) -> float | None:
        """Return what so many rounds have cost; None where there is no noise."""
        s = self.settings
        return accounting.spent(rounds, s.noise, self.rate, s.delta, s.sampling) if rounds else 0.0


def clipped(update: Floats, clip: float) -> Floats:
    """Return an update times min(1, C / |update|); nothing of one that is not finite."""
    length = float(np.linalg.norm(update))
    if not np.isfinite(length):
        return np.zeros_like(update)
    return update * min(1.0, clip / length) if length else update


def check_private(config: Config, name: str, vouched: bool) -> None:
    """Raise ConfigError where more than clipped and noised updates would shape the model.

    `vouched`: the strategy says of itself that its mask and model depend on clients by the mean
    of their replies alone.
    """
    if config.privacy.clip is None:
        return
    if not vouched:
        raise ConfigError(
            f"privacy.clip: '{name}' learns from clients beside their clipped updates (votes, "
            "scores, losses, statistics or parts of their own), which nothing accounts for; set "
            "strategy.name to static (its mask from public data or at random) or fedavg"
        )
    if config.robust.rule != "mean" or config.robust.max_norm is not None:
        raise ConfigError(
            "privacy.clip and robust.rule or robust.max_norm: a client would move the sum through "
            "others' replies by more than its clip; leave out the keys of [robust]"
        )
    if config.fleet.profile is not None:
        raise ConfigError(
            f"privacy.clip: with fleet.profile = '{config.fleet.profile}' devices decide who takes "
            "part, and sampling is not what is accounted for; leave fleet.profile out"
        )
