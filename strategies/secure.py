"""Secure aggregation on any grid: the strategy gets the sum of a round, and nobody's model.

`SecureGrid` stands in the place of the grid that counts bytes. It plays the round's four exchanges
(`secure_round.py`) where a strategy asks for training, and hands on replies whose models are in one
sum already, as workers' partial sums are. What a reply tells of its client is the round's mean.
"""

from collections.abc import Iterable
from functools import partial
from typing import Any

import numpy as np
from flwr.app import Error, Message, MetricRecord, RecordDict
from flwr.serverapp import Grid
from numpy.typing import NDArray

from fedsparse import messages
from fedsparse.config import Config
from fedsparse.errors import ConfigError, SecureAggregationError
from fedsparse.secure import keys
from fedsparse.secure.fixed_point import FixedPoint
from fedsparse.sparsity.exact_sum import ExactSum
from strategies.added import AddedUp, PartialSum
from strategies.addressing import (
    Directory,
    MeteredGrid,
    least_replies,
    payload_bytes,
    round_size,
)
from strategies.replies import Reader
from strategies.seats import Kept, KeptOf
from strategies.secure_round import SecureRound, Summed
from strategies.task import Task

LEFT_OUT = 2
"""Code of the error that stands for the reply of a client that is in no sum."""

LEAST_CLIENTS = 3
"""Clients of a round below which one could tell the other's model from the sum."""

DIGIT = 20
"""Bits of a sum that are added at once: whole float32."""


class SecureGrid(MeteredGrid):
    """A grid that counts bytes, over which models come as a sum alone."""

    def __init__(self, inner: Grid, directory: Directory, *, config: Config) -> None:
        super().__init__(inner, directory)
        self.config = config
        self.fixed = FixedPoint.of(config)
        self._told: dict[str, Any] = {}

    def send_and_receive(
        self,
        messages: Iterable[Message],
        *,
        timeout: float | None = None,
        reader: Reader | None = None,
    ) -> list[Message]:
        """Send messages and return the replies; of training, with the sum of the models alone."""
        sent = list(messages)
        self.lost = False
        if reader is None or not sent:
            return super().send_and_receive(sent, timeout=timeout)
        return self.train_securely(sent, timeout, reader)

    def train_securely(
        self, sent: list[Message], timeout: float | None, reader: Reader
    ) -> list[Message]:
        """Return a reply a client: with the sum that it is in, or the reason why it is in none.

        `lost` tells that the round has no sum, though enough have replied for a usual one.
        """
        client_of = self.directory.client_of
        asked = {client_of[message.metadata.dst_node_id]: message for message in sent}
        exchange = partial(super().send_and_receive, timeout=timeout)
        played = SecureRound(
            *(self.config.secure, self.fixed, reader, exchange),
            *(self.directory.node_of, client_of),
        )
        try:
            summed = played.play(asked)
        except SecureAggregationError as error:
            least = least_replies(len(sent), self.config.fleet.min_replies)
            self.lost = len(played.there) >= least
            reasons = dict.fromkeys(asked, f"secure aggregation: {error}") | played.dropped
            self._tell(len(asked), 0, None)
            return [_left_out(asked[client], reasons[client]) for client in sorted(asked)]
        self._tell(len(asked), len(summed.replies), summed.figures.clipped)
        part = partial_sum(summed, self.fixed)
        for reply in summed.replies.values():
            stand_in(reply, summed, part)
        return [
            summed.replies[client]
            if client in summed.replies
            else _left_out(asked[client], played.dropped[client])
            for client in sorted(asked)
        ]

    def _tell(self, asked: int, summed: int, clipped: int | None) -> None:
        self._told = {
            "secure_summed": summed,
            "secure_dropped": asked - summed,
            "secure_clipped": clipped,
        }

    def figures(self, kept: Kept | KeptOf | None, fits: frozenset[str]) -> dict[str, Any]:
        """Add how many clients are in the sum, who is not, and how many values were cut."""
        told, self._told = self._told, {}
        return {**super().figures(kept, fits), **told}


def _left_out(message: Message, reason: str) -> Message:
    return Message(Error(LEFT_OUT, " ".join(reason.split())), reply_to=message)


def stand_in(reply: Message, summed: Summed, part: PartialSum) -> None:
    """Put the sum in the place of a reply's masked model, and its means in that of figures."""
    figures, clients = summed.figures, len(summed.replies)
    own = messages.metrics_of(reply)
    told = {
        messages.ROUND_KEY: own[messages.ROUND_KEY],
        "memory-bytes": own["memory-bytes"],
        messages.EXAMPLES_KEY: max(1, round(figures.samples / clients)),
        "loss": figures.loss / figures.samples,
        "accuracy": figures.accuracy / figures.samples,
        "train-flops": figures.flops / clients,
    }
    added = AddedUp(payload_bytes(reply), part)
    reply.content = RecordDict({messages.ARRAYS: added, messages.METRICS: MetricRecord(told)})


def partial_sum(summed: Summed, fixed: FixedPoint) -> PartialSum:
    """Return the sum of a round as the strategies' tally takes it."""
    total = exact(summed.values, fixed)
    return PartialSum(0, total, summed.figures.samples, len(summed.replies))


def exact(units: NDArray[np.int64], fixed: FixedPoint) -> ExactSum:
    """Return whole numbers of units as an exact sum of what they stand for."""
    total = ExactSum(len(units))
    places = range(0, fixed.bits, DIGIT)
    for place in places:
        digit = units >> np.int64(place)
        if place != places[-1]:
            digit &= 2**DIGIT - 1
        total.add(digit.astype(np.float32), 2.0**place * fixed.unit)
    return total


# -- what it does not go together with ----------------------------------------------------


def check_secure(task: Task, vouched: bool) -> None:
    """Raise ConfigError where a sum of models is not all that a run needs of its clients.

    `vouched`: the strategy's model and mask depend on clients by the mean of their models alone,
    and that mean is a sum. Raises MissingExtraError without the package for keys.
    """
    config = task.config
    if not config.secure.aggregation:
        return
    keys.require()
    if reason := _against(config):
        raise ConfigError(f"secure.aggregation = true: {reason}")
    if not vouched:
        raise ConfigError(
            f"secure.aggregation = true: '{config.strategy['name']}' needs more of each client "
            "than the mean of their models; set strategy.name to static (its mask made by the "
            "server) or fedavg"
        )
    clients = round_size(config.fleet)
    if clients < LEAST_CLIENTS:
        raise ConfigError(
            f"secure.aggregation = true: with {clients} clients a round each could tell the "
            f"other's model from the sum; ask {LEAST_CLIENTS} or more"
        )
    FixedPoint.of(config)
    if (most := int(task.data.train_sizes.max())) > config.secure.max_examples:
        raise ConfigError(
            f"secure.max_examples = {config.secure.max_examples}: a client has {most} samples; "
            "raise it, and secure.bits where sums become too coarse"
        )


def _against(config: Config) -> str:
    """Return which other key it does not go with, and why; '' for none."""
    robust = config.robust
    if robust.rule != "mean" or robust.max_norm is not None or robust.max_examples is not None:
        return (
            "the keys of [robust] judge each client's reply, which nobody sees; leave them out "
            "(secure.max_examples bounds samples, at the client)"
        )
    if config.privacy.clip is not None:
        return (
            "privacy.clip is cut and noised by the server, which sees no update; leave out one of "
            "the two"
        )
    if config.attack.updates is not None:
        return "attack.updates is for rules that look at replies, and no one can; leave it out"
    if config.run.keep_norms:
        return "with run.keep_norms each client tells how far it moved; leave it out"
    if config.fleet.profile is not None:
        return "its four exchanges are not on the simulated clock; leave fleet.profile out"
    if config.engine.device != "cpu":
        return "clients that train at once on a GPU mask nothing; set engine.device to cpu"
    return ""
