"""A strategy with its clients in this process, one round at a time, on a few digits.

Also replies as clients could send them: right ones, and wrong ones in every way.
"""

from collections.abc import Mapping
from typing import Any

import numpy as np
from flwr.app import ArrayRecord, ConfigRecord, Message, MetricRecord, RecordDict

from fedsparse import messages, wire
from fedsparse.sparsity import State
from simulations.experiment import CLIENT_APP
from simulations.grid import CohortGrid
from strategies import foreign
from strategies.addressing import Directory, MeteredGrid
from strategies.task import Task
from tests.tiny_runs import tiny

QUICK = (
    "model.name=mlp",
    "model.width=0.25",
    "data.samples=160",
    "data.public_samples=40",
    "data.test_samples=40",
    "run.rounds=1",
)
"""64-16-16-10 units: 1440 prunable weights and 42 biases; 120 samples on 4 clients."""


def stage(*assignments: str, grid: type[CohortGrid] = CohortGrid) -> tuple[Any, MeteredGrid]:
    """Return the configured strategy and a metered grid of its clients."""
    config = tiny(*QUICK, *assignments)
    strategy = foreign.make(Task.of(config))
    inner = grid(CLIENT_APP, clients=config.fleet.clients)
    directory = Directory.of(inner, config.fleet.clients, 1.0)
    if hasattr(strategy, "directory"):
        strategy.directory = directory
    return strategy, MeteredGrid(inner, directory)


def play(strategy: Any, grid: MeteredGrid, number: int) -> list[Message]:
    """Play one round of training and return the replies."""
    asked = strategy.configure_train(number, strategy.arrays(), ConfigRecord(), grid)
    replies = grid.send_and_receive(asked)
    strategy.aggregate_train(number, replies)
    return replies


def constant(strategy: Any, value: float) -> State:
    """Return the strategy's model with every entry, or every kept one, at one value."""
    state = {
        name: np.full(shape, value, np.float32) for name, shape in strategy.task.schema.tensors
    }
    if strategy.mask is not None:
        strategy.mask.apply_(state)
    return state


def payload(strategy: Any, value: float) -> bytes:
    """Return the payload of `constant`, under the strategy's mask."""
    return wire.encode(constant(strategy, value), mask=strategy.mask)


def reply(
    strategy: Any,
    client: int,
    arrays: ArrayRecord | bytes | None,
    metrics: Mapping[str, Any] | None = None,
) -> Message:
    """Return a client's reply; values that no metric may have travel as configuration."""
    content = RecordDict()
    if arrays is not None:
        content[messages.ARRAYS] = wire.pack(arrays) if isinstance(arrays, bytes) else arrays
    values = {messages.EXAMPLES_KEY: 10, "loss": 0.5} if metrics is None else dict(metrics)
    plain = all(isinstance(v, int | float | list) and v is not True for v in values.values())
    content[messages.METRICS] = MetricRecord(values) if plain else ConfigRecord(values)
    node = strategy.directory.node_of[client]
    return Message(content, reply_to=Message(RecordDict(), node, messages.TRAIN))
