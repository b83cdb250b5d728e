"""What a strategy cannot do with the rest of a configuration, told before anything begins."""

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fedsparse.config import Config
from fedsparse.errors import ConfigError
from strategies.robust import needed_replies


def check_fit(config: Config, name: str, fits: frozenset[str]) -> None:
    """Raise ConfigError where clients may get a smaller part of a mask that is one for all."""
    fit = config.fleet.fit
    if fit in ("density", "both") and "density" not in fits:
        raise ConfigError(
            f"fleet.fit = '{fit}': strategy '{name}' needs one mask for all clients, or one that "
            "each chooses itself; set fleet.fit to 'batch' or 'refuse'"
        )


def check_plain(config: Config, name: str) -> None:
    """Raise ConfigError for what only plain training knows, of clients with another program."""
    if config.client.keep_optimizer:
        raise ConfigError(
            f"client.keep_optimizer: clients of '{name}' begin each round with a fresh "
            "optimizer; leave it out"
        )
    if config.engine.device != "cpu":
        raise ConfigError(
            f"engine.device = '{config.engine.device}': clients of '{name}' train on the CPU; "
            "leave it out"
        )


def check_target(config: Config, name: str) -> None:
    """Raise ConfigError for an accuracy that there is no global model to reach."""
    if config.run.target_accuracy is not None:
        raise ConfigError(
            f"run.target_accuracy: '{name}' has no global model that could reach it; leave it out"
        )


def check_rule(config: Config, name: str, takes_rules: bool, own: str) -> None:
    """Raise ConfigError for a rule of `[robust]` that a strategy would ignore, or cannot meet.

    `own` names what a strategy's clients do, or send, otherwise than plain training.
    """
    robust, fleet = config.robust, config.fleet
    if robust.rule == "mean":
        if robust.bucket_size > 1:
            raise ConfigError(
                f"robust.bucket_size = {robust.bucket_size}: the mean of means is the mean; set "
                "robust.rule, too, such as median, or leave it out"
            )
        return
    if not takes_rules:
        raise ConfigError(
            f"robust.rule = '{robust.rule}': '{name}' combines its clients' models in a way of its "
            "own; leave it out, or choose another strategy, such as static, fedtiny or fedavg"
        )
    if robust.rule == "trust" and own:
        raise ConfigError(
            f"robust.rule = 'trust': the server trains as its clients do, which it cannot for "
            f"'{name}' ({own}); choose another rule, such as median"
        )
    asked = fleet.clients_per_round or fleet.training_clients
    size = robust.bucket_size
    needed = needed_replies(robust, asked, size)
    if asked < needed:
        with_these = f"robust.hostile = {robust.hostile:g}"
        if size > 1:
            with_these += f" in buckets of robust.bucket_size = {size}"
        raise ConfigError(
            f"robust.rule = '{robust.rule}' with {with_these} needs {needed} clients a round, "
            f"there are {asked}; lower robust.hostile{' or the buckets' * (size > 1)}, or ask more"
        )


def check_numbers(samples: NDArray[Any], name: str) -> None:
    """Raise ConfigError for samples that are tokens, of which a gate makes nothing."""
    if np.issubdtype(samples.dtype, np.integer):
        raise ConfigError(
            f"strategy '{name}': its gates take numbers, and the samples are integers, which "
            "stand for tokens; choose other data or another strategy"
        )


def check_budgets(config: Config, budget_from: str, budgets: Sequence[float] | None) -> None:
    """Raise ConfigError for budgets from devices without any, or beside others by client."""
    if budget_from != "devices":
        return
    if config.fleet.profile is None:
        raise ConfigError(
            "strategy.budget_from = 'devices' needs devices; set fleet.profile, for example "
            "--set fleet.profile=phones"
        )
    if budgets:
        raise ConfigError(
            "strategy.budgets are by client; leave them out, or set strategy.budget_from to "
            "'settings'"
        )
