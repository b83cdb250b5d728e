"""What sparse strategies share: who is asked, how models travel, how replies add up.

A method subclasses `SparseStrategy` and overrides only what differs: the initial mask
(`prepare`), what is asked of clients (`plan`), and how replies become the next model and
mask (`aggregate`). It is a Flower `Strategy`, so any loop that runs those runs it.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from flwr.app import ArrayRecord, ConfigRecord, Message, MetricRecord, RecordDict
from flwr.common.logger import log
from flwr.serverapp import Grid
from flwr.serverapp.strategy import Strategy

from fedsparse import messages, wire
from fedsparse.config import StrategySettings
from fedsparse.errors import FedSparseError, TooFewRepliesError, WireError
from fedsparse.messages import Plan
from fedsparse.sparsity import Mask, State
from strategies.addressing import Directory, MeteredGrid, cohort
from strategies.task import Task


@dataclass(frozen=True)
class Reply:
    """One client's trained model and what came with it."""

    client: int
    examples: int
    state: State
    message: Message
    extra: Any = None


class SparseStrategy(Strategy):
    """A federated method over one global model and one global mask (or none, if dense)."""

    Settings: type[StrategySettings] = StrategySettings

    def __init__(self, task: Task) -> None:
        self.task = task
        self.settings: Any = self.Settings.model_validate(task.config.strategy)
        self.state: State = {}
        self.mask: Mask | None = None
        self.directory: Directory | None = None
        self.failures: dict[int, str] = {}

    # -- what a method overrides ------------------------------------------------------

    def prepare(self, grid: MeteredGrid) -> None:
        """Make the initial model and mask; may exchange messages with clients."""
        self.state = self.task.pretrain(0, 0.0)

    def plan(self, round_number: int) -> Plan:
        """Return what is asked of the clients in this round."""
        return Plan(round=round_number, values=self.settings.values)

    def aggregate(self, round_number: int, replies: Sequence[Reply]) -> None:
        """Turn replies into the next `self.state` and `self.mask`."""
        self.state = weighted_mean(replies)

    def read_extra(self, message: Message) -> Any:
        """Decode what else a reply carries; an error here drops the reply, not the run."""
        return None

    # -- state of a run ---------------------------------------------------------------

    def state_dict(self) -> dict[str, Any]:
        """Return everything that the next round depends on, as arrays and plain values."""
        mask = None if self.mask is None else dict(self.mask.packed)
        return {"state": dict(self.state), "mask": mask}

    def load_state_dict(self, saved: dict[str, Any]) -> None:
        """Continue from what `state_dict` returned."""
        self.state = saved["state"]
        packed = saved["mask"]
        self.mask = None if packed is None else Mask.from_packed(self.task.shapes, packed)

    @property
    def density(self) -> float:
        """The kept fraction of the prunable weights."""
        return 1.0 if self.mask is None else self.mask.density

    def arrays(self) -> ArrayRecord:
        """Return the model as it is sent to clients."""
        return wire.pack(wire.encode(self.state, mask=self.mask, values=self.settings.values))

    # -- Flower's seams ---------------------------------------------------------------

    def configure_train(
        self, server_round: int, arrays: ArrayRecord, config: ConfigRecord, grid: Grid
    ) -> Iterable[Message]:
        """Ask this round's cohort to train `arrays`."""
        clients = cohort(self.task.config.fleet, self.task.config.run.seed, server_round)
        return self.ask(clients, messages.TRAIN, self.plan(server_round), {messages.ARRAYS: arrays})

    def aggregate_train(
        self, server_round: int, replies: Iterable[Message]
    ) -> tuple[ArrayRecord | None, MetricRecord | None]:
        """Decode the replies that can be trusted and let the method aggregate them.

        Raises TooFewRepliesError when fewer than `fleet.min_replies` of the cohort are
        left; the model and the mask are then as before.
        """
        good = self.read_replies(replies)
        asked = self.task.config.fleet.clients_per_round or self.task.config.fleet.clients
        require_replies(len(good), asked, self.task.config.fleet.min_replies, self.failures)
        self.aggregate(server_round, good)
        loss = sum(_metric(r, "loss") * r.examples for r in good) / sum(r.examples for r in good)
        return self.arrays(), MetricRecord({"loss": loss, "clients": len(good)})

    def configure_evaluate(
        self, server_round: int, arrays: ArrayRecord, config: ConfigRecord, grid: Grid
    ) -> Iterable[Message]:
        """Ask clients to test the model on their own samples."""
        fleet = self.task.config.fleet
        clients = list(range(min(fleet.clients, fleet.evaluate_clients)))
        plan = Plan(round=server_round)
        return self.ask(clients, messages.EVALUATE, plan, {messages.ARRAYS: arrays})

    def aggregate_evaluate(
        self, server_round: int, replies: Iterable[Message]
    ) -> MetricRecord | None:
        """Return the mean accuracy and loss over clients, weighted by their samples."""
        metrics = [r.content.metric_records[messages.METRICS] for r in replies if r.has_content()]
        weights = [float(m[messages.EXAMPLES_KEY]) for m in metrics]  # type: ignore[arg-type]
        if not sum(weights):
            return None
        return MetricRecord(
            {
                key: float(np.average([float(m[key]) for m in metrics], weights=weights))  # type: ignore[arg-type]
                for key in ("accuracy", "loss")
            }
        )

    def summary(self) -> None:
        """Log the settings, as Flower's strategies do."""
        log(20, "%s: %s", type(self).__name__, self.settings)

    # -- for methods ------------------------------------------------------------------

    def ask(
        self, clients: Sequence[int], kind: str, plan: Plan, arrays: dict[str, ArrayRecord]
    ) -> list[Message]:
        """Return one message a client, all with the same content."""
        assert self.directory is not None
        content = RecordDict(
            {**arrays, messages.CONFIG: messages.write_config(self.task.config, plan)}
        )
        node_of = self.directory.node_of
        return [Message(content, node_of[client], kind) for client in clients]

    def read_replies(self, replies: Iterable[Message]) -> list[Reply]:
        """Decode training replies; those that cannot be trusted go to `self.failures`."""
        assert self.directory is not None
        self.failures = {}
        good = []
        for message in replies:
            client = self.directory.client_of[message.metadata.src_node_id]
            if message.has_error():
                self.failures[client] = one_line(message.error.reason)
                continue
            try:
                good.append(self._read(client, message))
            except (FedSparseError, KeyError) as error:
                self.failures[client] = one_line(str(error))
        return good

    def _read(self, client: int, message: Message) -> Reply:
        payload = wire.unpack(message.content.array_records[messages.ARRAYS])
        held = () if self.mask is None else (self.mask,)
        decoded = wire.decode(payload, self.task.schema, masks=held)
        if decoded.mask != self.mask:
            raise WireError("the reply is masked unlike the model that was sent")
        return Reply(client, examples_of(message), decoded.state, message, self.read_extra(message))


def examples_of(message: Message) -> int:
    """Return a reply's sample count; raises WireError when it is not a positive integer."""
    value = message.content.metric_records[messages.METRICS][messages.EXAMPLES_KEY]
    if not isinstance(value, int) or value <= 0:
        raise WireError(f"the reply counts {value!r} samples; it must be a positive integer")
    return value


def _metric(reply: Reply, key: str) -> float:
    return float(reply.message.content.metric_records[messages.METRICS][key])  # type: ignore[arg-type]


def weighted_mean(replies: Sequence[Reply]) -> State:
    """Return sum_k p_k theta_k with p_k = n_k / sum n (FedAvg, eq. 1 and Algorithm 1).

    Summed in double precision in the order of clients, so that the bits depend on the
    replies alone. Masks are equal, so pruned weights stay exactly zero.
    """
    total = sum(reply.examples for reply in replies)
    mean: State = {}
    for name, first in replies[0].state.items():
        acc = np.zeros(first.shape, np.float64)
        for reply in replies:
            acc += reply.state[name] * np.float64(reply.examples / total)
        mean[name] = acc.astype(np.float32)
    return mean


def require_replies(got: int, asked: int, least: float, failures: dict[int, str]) -> None:
    """Raise TooFewRepliesError when a round has too few replies to go on."""
    if got and got >= least * asked:
        return
    example = next((f"; client {c}: {reason}" for c, reason in sorted(failures.items())), "")
    raise TooFewRepliesError(
        f"{got} of {asked} clients replied, fleet.min_replies = {least:g} asks for "
        f"{max(1, int(np.ceil(least * asked)))}{example}"
    )


def one_line(text: str | None) -> str:
    """Return the last line of a reason, bounded, for tables and messages."""
    lines = [line.strip() for line in (text or "no reason given").splitlines() if line.strip()]
    return (lines[-1] if lines else "no reason given")[:300]
