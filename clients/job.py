"""What a client works with in one message: its plan, its model, its own data.

Models and data are kept by the process, not by the client: a worker that serves a
thousand clients builds each of them once. A received model overwrites every entry, so
nothing of one client is left for the next.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
import torch
from flwr.app import Array, ArrayRecord, ConfigRecord, Context, Message
from torch import nn

from fedsparse import data, messages, models, wire
from fedsparse.config import ClientConfig, Config
from fedsparse.data import ClientData
from fedsparse.errors import ConfigError, ModelError
from fedsparse.sparsity import Mask, ModelCost, State
from fedsparse.training.backend import Backend
from fedsparse.training.price import settings_for


@dataclass(frozen=True)
class Job:
    """One message, read: who is asked, what for, with which model and data.

    `shapes` are those of the prunable weights, by name.
    """

    config: Config
    plan: messages.Plan
    client: int
    model: nn.Module
    schema: wire.Schema
    shapes: Mapping[str, tuple[int, ...]]
    cost: ModelCost
    data: ClientData
    backend: Backend

    @property
    def seed(self) -> int:
        """The run's seed."""
        return self.config.run.seed

    @property
    def settings(self) -> ClientConfig:
        """Local training as the plan changes it for this client."""
        return settings_for(self.config.client, self.plan)

    @property
    def lr(self) -> float:
        """This round's learning rate."""
        settings = self.config.client
        return settings.lr * settings.lr_decay ** max(0, self.plan.round - 1)


@dataclass(frozen=True)
class Received:
    """A model that came with a message; `sparse` says whether it was our payload."""

    state: State
    mask: Mask | None
    sparse: bool


def read_job(message: Message, context: Context) -> Job:
    """Read what a message asks of this client; raises ConfigError when it does not say."""
    torch.set_num_threads(1)
    record = message.content.config_records.get(messages.CONFIG, ConfigRecord())
    config, plan = messages.read_config(record)
    client = client_id(context)
    if client >= config.fleet.clients:
        raise ConfigError(
            f"this node is partition {client}, the run has {config.fleet.clients} clients; "
            "set fleet.clients to the number of nodes"
        )
    federated = data.load(config.data, clients=config.fleet.clients, seed=config.run.seed)
    built = _model(config.model.name, config.model.width, federated.input_shape, federated.classes)
    built.reset_counters()
    backend = _backend(built, federated.input_shape, config.client)
    return Job(
        config=config,
        plan=plan,
        client=client,
        model=built.model,
        schema=built.schema,
        shapes=built.shapes,
        cost=built.cost,
        data=federated.client(client),
        backend=backend,
    )


def client_id(context: Context) -> int:
    """Return the partition id that names this client."""
    value = context.node_config.get(messages.CLIENT_KEY)
    if not isinstance(value, int):
        raise ConfigError(
            f"this node has no '{messages.CLIENT_KEY}'; start it with "
            f"--node-config '{messages.CLIENT_KEY}=0 num-partitions=N'"
        )
    return value


@dataclass(frozen=True, eq=False)
class _Built:
    """A model that a worker builds once, and what stays true of it."""

    model: nn.Module
    schema: wire.Schema
    shapes: Mapping[str, tuple[int, ...]]
    cost: ModelCost
    counters: Mapping[str, torch.Tensor]

    def reset_counters(self) -> None:
        """Put back what no payload brings, such as BatchNorm's count of batches."""
        state = self.model.state_dict()
        for name, value in self.counters.items():
            state[name].copy_(value)


@lru_cache(maxsize=4)
def _model(name: str, width: float, input_shape: tuple[int, ...], classes: int) -> _Built:
    model = models.build(name, input_shape=input_shape, classes=classes, width=width)
    if len(input_shape) == 3:
        model = model.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    schema, cost = wire.Schema.of(models.get_state(model)), ModelCost.of(model, input_shape)
    state = model.state_dict()
    counters = {n: t.clone() for n, t in state.items() if not t.is_floating_point()}
    shapes = models.shapes(model, models.prunable(model))
    return _Built(model, schema, shapes, cost, counters)


@lru_cache(maxsize=4)
def _backend(built: _Built, input_shape: tuple[int, ...], settings: ClientConfig) -> Backend:
    return Backend(built.model, input_shape, settings)


def receive(job: Job, message: Message, held: Mask | None) -> Received:
    """Decode the model of a message: our payload, or plain arrays of another strategy.

    `held` is the mask that this client kept; a payload may leave out what it tells. Raises
    ModelError when there is no model or it is another one, WireError for a payload that
    cannot be read.
    """
    arrays = message.content.array_records.get(messages.ARRAYS)
    if arrays is None:
        raise ModelError(
            f"the message carries no model; put it into the record '{messages.ARRAYS}'"
        )
    if wire.is_payload(arrays):
        decoded = _decode(wire.unpack(arrays), job.schema, held)
        return Received(decoded.state, decoded.mask, True)
    state = {name: array.numpy() for name, array in arrays.items()}
    wrong = [name for name in job.schema.names if name not in state]
    if wrong:
        raise ModelError(f"the message's model lacks '{wrong[0]}'; both sides need one [model]")
    return Received({name: state[name] for name in job.schema.names}, None, False)


@lru_cache(maxsize=4)
def _decode(payload: bytes, schema: wire.Schema, held: Mask | None) -> wire.Decoded:
    """Decode a payload once a worker, however many of its clients receive it."""
    return wire.decode(payload, schema, masks=() if held is None else (held,))


def reply_arrays(kept: State, job: Job, received: Received) -> ArrayRecord:
    """Encode a trained model the way the received one came.

    A sparse model goes back as values alone: the server holds the mask it sent.
    """
    if not received.sparse:
        return ArrayRecord({name: Array(np.asarray(value)) for name, value in kept.items()})
    payload = wire.encode_kept(kept, job.schema, received.mask, values=job.plan.values)
    return wire.pack(payload)


def growth_arrays(found: Mapping[str, tuple[np.ndarray, np.ndarray]], mask: Mask) -> ArrayRecord:
    """Encode the largest pruned gradients as a sparse payload over the grown layers.

    The layers stand in the mask's order, whichever order they were asked for in.
    """
    state: State = {}
    bits = {}
    for name in (name for name in mask.names if name in found):
        index, value = found[name]
        dense = np.zeros(mask.shapes[name], np.float32)
        dense.reshape(-1)[index] = value
        chosen = np.zeros(mask.shapes[name], bool)
        chosen.reshape(-1)[index] = True
        state[name], bits[name] = dense, chosen
    return wire.pack(wire.encode(state, mask=Mask.from_arrays(bits)))
