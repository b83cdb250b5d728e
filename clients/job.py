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

from clients import promise
from fedsparse import messages, models, seeds, wire
from fedsparse.config import ClientConfig, Config
from fedsparse.data import ClientData, Dataset, FederatedData, node
from fedsparse.errors import ConfigError, ModelError
from fedsparse.sparsity import Mask, ModelCost, State
from fedsparse.training.backend import Backend
from fedsparse.training.price import settings_for


@dataclass(frozen=True)
class Job:
    """One message, read: who is asked, what for, with which model and data.

    `schema` is that of the tensors that travel.
    """

    config: Config
    plan: messages.Plan
    client: int
    built: "Built"
    schema: wire.Schema
    federated: FederatedData
    backend: Backend
    data: ClientData

    @property
    def model(self) -> nn.Module:
        """The worker's module of this model; whoever uses it overwrites all of its state."""
        return self.built.model

    @property
    def shapes(self) -> Mapping[str, tuple[int, ...]]:
        """Shapes of the prunable weights, by name."""
        return self.built.shapes

    @property
    def cost(self) -> ModelCost:
        """Arithmetic and memory of the model, layer by layer."""
        return self.built.cost

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

    @property
    def initial(self) -> State:
        """The run's initial model, which every client knows by the seed; not to be changed."""
        return _initial(*self.built.key, self.seed)

    @property
    def all_shapes(self) -> Mapping[str, tuple[int, ...]]:
        """Shapes of everything in the model's state, by name."""
        return self.built.schema.shapes

    @property
    def forgotten(self) -> Dataset:
        """The client's own samples that are to be forgotten, which `data` lacks."""
        return self.federated.forgotten(self.client)

    def draw(self, samples: int, purpose: str) -> Dataset:
        """Return a random part of the local training data; all of it for 0 samples."""
        own = self.data.train
        rng = seeds.stream(self.seed, self.plan.stream, self.client, purpose)
        return own.take(rng.permutation(len(own))[: samples or len(own)])


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
    promise.hold(context, message.metadata.message_type, config, plan)
    client = client_id(context)
    if client >= config.fleet.clients:
        raise ConfigError(
            f"this node is partition {client}, the run has {config.fleet.clients} clients; "
            "set fleet.clients to the number of nodes"
        )
    federated = node.federated(config, context.node_config, client)
    built = _model(config.model.name, config.model.width, federated.input_shape, federated.classes)
    built.reset_counters()
    backend = _backend(built, federated.input_shape, config.client)
    return Job(
        config=config,
        plan=plan,
        client=client,
        built=built,
        schema=built.part(plan.part),
        federated=federated,
        backend=backend,
        data=federated.client(client),
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


Key = tuple[str, float, tuple[int, ...], int]
"""Name and width of a model, shape of its input, and its classes."""


@dataclass(frozen=True, eq=False)
class Built:
    """A model that a worker builds once, and what stays true of it."""

    key: "Key"
    model: nn.Module
    schema: wire.Schema
    shapes: Mapping[str, tuple[int, ...]]
    cost: ModelCost
    counters: Mapping[str, torch.Tensor]

    @lru_cache(maxsize=8)  # noqa: B019 - at most four models live
    def part(self, rule: str) -> wire.Schema:
        """Return the schema of a part of the model; raises ConfigError for an unknown one."""
        return wire.Schema(tuple(models.part_shapes(self.model, rule).items()))

    def reset_counters(self) -> None:
        """Put back what no payload brings, such as BatchNorm's count of batches."""
        state = self.model.state_dict()
        for name, value in self.counters.items():
            state[name].copy_(value)


@lru_cache(maxsize=4)
def _model(name: str, width: float, input_shape: tuple[int, ...], classes: int) -> Built:
    model = models.build(name, input_shape=input_shape, classes=classes, width=width)
    if len(input_shape) == 3:
        model = model.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    schema, cost = wire.Schema.of(models.get_state(model)), ModelCost.of(model, input_shape)
    state = model.state_dict()
    counters = {n: t.clone() for n, t in state.items() if not t.is_floating_point()}
    shapes = models.shapes(model, models.prunable(model))
    key = (name, width, input_shape, classes)
    return Built(key, model, schema, shapes, cost, counters)


@lru_cache(maxsize=2)
def _initial(
    name: str, width: float, input_shape: tuple[int, ...], classes: int, seed: int
) -> State:
    model = models.build_seeded(
        name, input_shape=input_shape, classes=classes, width=width, seed=seed
    )
    return models.get_state(model)


@lru_cache(maxsize=4)
def _backend(built: Built, input_shape: tuple[int, ...], settings: ClientConfig) -> Backend:
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


def reply_arrays(
    kept: State, mask: Mask | None, job: Job, received: Received, *, told: bool = False
) -> ArrayRecord:
    """Encode a trained model the way the received one came.

    A sparse model goes back as values alone where it has the mask that the server sent, or one
    that it is told by other means, else with what differs.
    """
    if not received.sparse:
        return ArrayRecord({name: Array(np.asarray(value)) for name, value in kept.items()})
    values = job.plan.values
    if told or mask == received.mask:
        return wire.pack(wire.encode_kept(kept, job.schema, mask, values=values))
    assert mask is not None
    state, base = mask.spread(kept), received.mask
    return wire.pack(wire.encode(state, mask=mask, mode="auto", base=base, values=values))
