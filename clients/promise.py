"""What a node promises its samples, whatever a server asks: local privacy with a largest epsilon.

A node started with `max-epsilon` in its node configuration answers programs that add noise on the
device, and nothing else: no plain training, scores or tests, which tell of samples in the clear.
`max-delta` bounds the chance that epsilon does not hold; it is 1e-5 unless given.
"""

from flwr.app import Context

from fedsparse import messages
from fedsparse.config import Config
from fedsparse.errors import ConfigError
from fedsparse.messages import Plan

PROMISE_KEY = "max-epsilon"
DELTA_KEY = "max-delta"
LOCAL = ("nldp", "ldp-iht")
"""Programs whose replies are private sample by sample."""


def hold(context: Context, kind: str, config: Config, plan: Plan) -> None:
    """Raise ConfigError for a message whose answer would break the node's promise, if any."""
    if PROMISE_KEY not in context.node_config:
        return
    most, most_delta = _bound(context, PROMISE_KEY, 1.0), _bound(context, DELTA_KEY, 1e-5)
    if kind != messages.TRAIN or plan.program not in LOCAL:
        raise ConfigError(
            f"this node promises its samples '{PROMISE_KEY}' = {most:g} and takes part in training "
            f"by {' or '.join(LOCAL)} alone; choose one of them, or start it without the promise"
        )
    asked = config.strategy.get("epsilon")
    if not isinstance(asked, int | float) or not 0 < asked <= most:
        raise ConfigError(
            f"strategy.epsilon = {asked}: this node promises its samples {most:g} at most; lower it"
        )
    if config.privacy.delta > most_delta:
        raise ConfigError(
            f"privacy.delta = {config.privacy.delta:g}: this node promises its samples "
            f"{most_delta:g} at most; lower it"
        )
    if config.privacy.entropy != "system":
        raise ConfigError(
            f"privacy.entropy = '{config.privacy.entropy}': this node's noise must be its own; set "
            "it to 'system'"
        )


def _bound(context: Context, key: str, usual: float) -> float:
    """Return a number of the node's configuration; raises ConfigError for what is none above 0."""
    value = context.node_config.get(key, usual)
    if isinstance(value, bool) or not isinstance(value, int | float) or not value > 0:
        raise ConfigError(
            f"this node's '{key}' is {value!r}; start it with a number above 0, for example "
            f"--node-config '{key}={usual}'"
        )
    return float(value)
