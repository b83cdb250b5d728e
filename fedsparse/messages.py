"""What server and clients say to each other: message types and record layouts.

The layout is Flower's own (`arrays`, `config`, `metrics`), so strategies and clients
of other makers meet ours. What is ours travels in two configuration entries: the
run's configuration, and the plan of this round.
"""

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from functools import lru_cache
from typing import Any

from flwr.app import ArrayRecord, ConfigRecord, Message, MetricRecord

from fedsparse import config as configuration
from fedsparse.errors import ConfigError

TRAIN = "train"
EVALUATE = "evaluate"
IDENTIFY = "query"
SCORE = "query.score"
STATISTICS = "query.statistics"
LOSSES = "query.losses"
SECURE_KEYS = "query.secure_keys"
SECURE_SHARES = "query.secure_shares"
SECURE_UNMASK = "query.secure_unmask"
MASKING = (SECURE_KEYS, SECURE_SHARES, SECURE_UNMASK)
"""What a round of secure aggregation asks beside training."""

ARRAYS = "arrays"
CONFIG = "config"
METRICS = "metrics"
DATA = "data"
GROWTH = "growth"
CANDIDATES = "candidates"
LABELS = "labels"
WISH = "wish"
USED = "used"
MOVABLE = "movable"
GRADIENTS = "gradients"
FORGOTTEN = "forgotten"
ACTIVATIONS = "activations"
TEACHER = "teacher"
MOMENTS = "moments"
SECURE = "secure"

EXPERIMENT_KEY = "experiment"
PLAN_KEY = "plan"
ROUND_KEY = "server-round"
EXAMPLES_KEY = "num-examples"
QUERY_FLOPS_KEY = "query-flops"
NORMS_KEY = "update-norms"
FORGOTTEN_KEY = "num-forgotten"
CLIENT_KEY = "partition-id"
STATE_PATH_KEY = "state-path"
"""In a node's configuration: the folder that keeps its clients' states."""
SESSION_KEY = "session"
THRESHOLD_KEY = "threshold"
MEMBERS_KEY = "members"
MODEL_KEY = "model"
"""Of the configuration's record: a description of the model, for who reads one.

As an array it would be two objects more, each of which Flower's nodes fetch by a request.
"""
READS_MODEL_KEY = "reads-model"
"""In the answer to `IDENTIFY`: 1 where a description of the model does in the place of torch."""
KEEPS_STATE_KEY = "keeps-state"
"""In the answer to `IDENTIFY`: 1 where the client's state outlives a restart of its node."""


@dataclass(frozen=True)
class Plan:
    """What the server asks of a client in one round.

    `grow` maps a layer's name to the number of largest gradients among its pruned
    weights that the client returns; `criterion` names the score of a `SCORE` query;
    `samples` bounds the local samples used by a query; `batch_size`, where it is not 0,
    takes the place of the configuration's for a client with little memory. Random streams
    derive from `draw`, where it is not 0, in the place of the round: an asynchronous client may
    start several times in one.

    `l1` is the weight of the L1 norm of all parameters in the loss.

    `program` names what a client does with the model, plain training if unset, and `part` which
    of its tensors travel, all if unset. Such a client holds `held` numbers beside what training
    the model takes, and computes `work` times what plain training would; `budget` is the fraction
    of the model that it may use at once.
    """

    round: int = 0
    values: str = "f32"
    proximal_mu: float = 0.0
    grow: Mapping[str, int] = field(default_factory=dict)
    criterion: str = ""
    samples: int = 0
    batch_size: int = 0
    draw: int = 0
    program: str = ""
    part: str = ""
    held: int = 0
    work: float = 1.0
    budget: float = 1.0
    l1: float = 0.0

    @property
    def stream(self) -> int:
        """The number that a client's random streams derive from."""
        return self.draw or self.round


def write_config(config: configuration.Config, plan: Plan) -> ConfigRecord:
    """Return the configuration record that carries a run's configuration and a plan."""
    return ConfigRecord(
        {
            EXPERIMENT_KEY: config.to_json(),
            PLAN_KEY: json.dumps(asdict(plan), sort_keys=True),
            ROUND_KEY: plan.round,
        }
    )


def read_config(record: ConfigRecord) -> tuple[configuration.Config, Plan]:
    """Return the configuration and the plan of a message.

    A message without a plan (a strategy of another maker) means plain training in the
    round that Flower's own key names. Raises ConfigError when there is no configuration.
    """
    text = record.get(EXPERIMENT_KEY)
    if not isinstance(text, str):
        raise ConfigError(
            f"the message carries no '{EXPERIMENT_KEY}' entry; start the run with fedsparse, "
            "or put Config.to_json() into the strategy's train_config and evaluate_config"
        )
    round_number = record.get(ROUND_KEY, 0)
    plan = Plan(round=round_number if isinstance(round_number, int) else 0)
    planned = record.get(PLAN_KEY)
    if isinstance(planned, str):
        plan = _read_plan(planned)
    return _parse(text), plan


def arrays_of(message: Message) -> ArrayRecord:
    """Return the arrays of a message; raises KeyError when it has none."""
    record = message.content.get(ARRAYS)
    if not isinstance(record, ArrayRecord):
        raise KeyError(ARRAYS)
    return record


def metrics_of(message: Message) -> MetricRecord:
    """Return the figures of a message; raises KeyError when it has none."""
    record = message.content.get(METRICS)
    if not isinstance(record, MetricRecord):
        raise KeyError(METRICS)
    return record


@lru_cache(maxsize=8)
def _parse(text: str) -> configuration.Config:
    return configuration.from_json(text)


def _read_plan(text: str) -> Plan:
    try:
        entries: dict[str, Any] = json.loads(text)
        return Plan(**entries)
    except (TypeError, ValueError, RecursionError) as error:
        raise ConfigError(f"the round's plan cannot be read: {error}") from None
