"""What a strategy cannot do with the rest of a configuration, told before anything begins."""

from fedsparse.config import Config
from fedsparse.errors import ConfigError


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
