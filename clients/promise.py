"""What a node promises its samples, whatever a server asks: local privacy with a largest epsilon.

A node started with `max-epsilon` in its node configuration answers programs that add noise on the
device, and nothing else: no plain training, scores or tests, which tell of samples in the clear.
`max-delta` bounds the chance that epsilon does not hold; it is 1e-5 unless given. What is wrong
with its data such a node logs, and tells nobody: a reason quotes labels, and a server could ask for
one after the other.
"""

import logging

from flwr.app import ConfigRecord, Context, Message
from flwr.clientapp.typing import ClientAppCallable

from fedsparse import messages
from fedsparse.config import Config
from fedsparse.data import node, schema
from fedsparse.errors import ConfigError, DataError, FedSparseError
from fedsparse.messages import Plan
from fedsparse.privacy import promised
from fedsparse.privacy.promised import EPSILON_KEY

UNFIT = (
    "this node promises its samples local privacy, and its data are no targets that are numbers in "
    "the shape that the run's model takes, or cannot be read; its own log says more"
)
"""All that a promising node says of data that do not fit."""

LOCAL = ("nldp", "ldp-iht")
"""Programs whose replies are private sample by sample."""


def hold(context: Context, kind: str, config: Config, plan: Plan) -> None:
    """Raise ConfigError for a message whose answer would break the node's promise, if any."""
    if not promises(context):
        return
    most, most_delta = (
        promised.bound(context.node_config, key) for key in (EPSILON_KEY, promised.DELTA_KEY)
    )
    if messages.STATE_PATH_KEY not in context.node_config:
        raise ConfigError(
            f"this node promises its samples '{EPSILON_KEY}' = {most:g}, and would forget what it "
            f"has told when it restarts; start it with --node-config '{messages.STATE_PATH_KEY}="
            '"FOLDER"\', too'
        )
    if kind != messages.TRAIN or plan.program not in LOCAL:
        raise ConfigError(
            f"this node promises its samples '{EPSILON_KEY}' = {most:g} and takes part in training "
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
    if config.attack.clients is not None:
        raise ConfigError(
            f"attack.clients = {config.attack.clients}: this node's samples are for no experiment "
            "with attacks, which change them; leave it out"
        )
    place = node.place_of(context.node_config)
    if place is not None and (classes := node.wanted_of(config, place).classes) != 1:
        raise ConfigError(
            f"the run has {classes} classes: this node's targets are numbers, and it tells nobody "
            "whether they could be classes; set data.classes = 1"
        )
    if config.privacy.entropy != "system":
        raise ConfigError(
            f"privacy.entropy = '{config.privacy.entropy}': this node's noise must be its own; set "
            "it to 'system'"
        )


def promises(context: Context) -> bool:
    """Tell whether a node promises its samples anything."""
    return EPSILON_KEY in context.node_config


def keep_quiet(message: Message, context: Context, answer: ClientAppCallable) -> Message:
    """Answer; of samples that a node makes a promise to, an error says nothing. A Flower mod.

    Raises DataError in the place of one that may quote them, what answering raises else.
    """
    try:
        return answer(message, context)
    except Exception as error:
        plain = isinstance(error, FedSparseError) and not isinstance(error, DataError)
        if plain or not promises(context):
            raise
        logging.getLogger(__name__).error("%s", error)
        raise DataError(UNFIT) from None


def told(context: Context, found: ConfigRecord) -> ConfigRecord:
    """Return what a node tells of its own data; one that promises no labels, and no reasons."""
    if not promises(context):
        return found
    read = schema.read(found)
    if isinstance(read, schema.Schema) and read.highest < 0:
        return found
    logging.getLogger(__name__).error("%s", read)
    return schema.problem_record(UNFIT)
