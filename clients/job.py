"""What a client works with in one message: its plan, its model, its own data.

Models and data are kept by the process, not by the client: a worker that serves a
thousand clients builds each of them once. A received model overwrites every entry, so
nothing of one client is left for the next.
"""

import sys
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property, lru_cache
from typing import TYPE_CHECKING

import numpy as np
from flwr.app import Array, ArrayRecord, ConfigRecord, Context, Message

from clients import promise
from fedsparse import description, messages, seeds, wire
from fedsparse.config import ClientConfig, Config
from fedsparse.data import ClientData, Dataset, FederatedData, node
from fedsparse.description import Description
from fedsparse.errors import ConfigError, ModelError
from fedsparse.sparsity import Mask, ModelCost, State
from fedsparse.training.backend import Backend, Unbuilt
from fedsparse.training.price import settings_for

if TYPE_CHECKING:
    from torch import Tensor, nn


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
    def model(self) -> "nn.Module":
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
    key = (config.model.name, config.model.width, federated.input_shape, federated.classes)
    told = record.get(messages.MODEL_KEY)
    built = _described(told, key) if isinstance(told, bytes) else _model(*key)
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


class Built:
    """A model that a worker knows once, and what stays true of it.

    Of one that the server describes the module is made where somebody asks for it, which takes
    torch; of others at once.
    """

    def __init__(self, key: Key, described: Description | None = None) -> None:
        self.key = key
        self.described = described

    @cached_property
    def _made(self) -> tuple["nn.Module", dict[str, "Tensor"]]:
        """The module, and those of its tensors that no payload brings."""
        import torch

        from fedsparse import models

        torch.set_num_threads(1)
        name, width, input_shape, classes = self.key
        model = models.build(name, input_shape=input_shape, classes=classes, width=width)
        if len(input_shape) == 3:
            model = model.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        state = model.state_dict()
        return model, {n: t.clone() for n, t in state.items() if not t.is_floating_point()}

    @property
    def model(self) -> "nn.Module":
        """The module."""
        return self._made[0]

    @cached_property
    def schema(self) -> wire.Schema:
        """Names and shapes of everything in the model's state."""
        if self.described is not None:
            return self.described.schema
        from fedsparse import models

        return wire.Schema.of(models.get_state(self.model))

    @cached_property
    def shapes(self) -> Mapping[str, tuple[int, ...]]:
        """Shapes of the prunable weights, by name."""
        if self.described is not None:
            return self.described.shapes
        from fedsparse import models

        return models.shapes(self.model, models.prunable(self.model))

    @cached_property
    def parameters(self) -> Mapping[str, tuple[int, ...]]:
        """Shapes of all that is trained, by name."""
        if self.described is not None:
            return self.described.parameters
        return {name: tuple(value.shape) for name, value in self.model.named_parameters()}

    @cached_property
    def cost(self) -> ModelCost:
        """Arithmetic and memory, layer by layer."""
        return self.described.cost if self.described else ModelCost.of(self.model, self.key[2])

    @lru_cache(maxsize=8)  # noqa: B019 - at most four models live
    def part(self, rule: str) -> wire.Schema:
        """Return the schema of a part of the model; raises ConfigError for an unknown one."""
        if self.described is not None:
            return self.described.part(rule)
        from fedsparse import models

        return wire.Schema(tuple(models.part_shapes(self.model, rule).items()))

    def reset_counters(self) -> None:
        """Put back what no payload brings, such as BatchNorm's count of batches."""
        if "_made" not in vars(self):
            return
        sys.modules["torch"].set_num_threads(1)  # the server's may have more, in one process
        model, counters = self._made
        state = model.state_dict()
        for name, value in counters.items():
            state[name].copy_(value)


@lru_cache(maxsize=4)
def _model(name: str, width: float, input_shape: tuple[int, ...], classes: int) -> Built:
    built = Built((name, width, input_shape, classes))
    _ = built.model
    return built


@lru_cache(maxsize=4)
def _described(content: bytes, key: Key) -> Built:
    """Read what the server says of the model; raises ModelError where it fits no such samples."""
    found = description.read(content)
    first = found.graph.values[0]
    if (first.channels, first.height, first.width) != (*key[2], 1, 1)[:3]:
        raise ModelError(
            f"the server's model takes samples of shape {first}, this node's have shape {key[2]}; "
            "both sides need one [data]"
        )
    return Built(key, found)


@lru_cache(maxsize=2)
def _initial(
    name: str, width: float, input_shape: tuple[int, ...], classes: int, seed: int
) -> State:
    from fedsparse import models

    model = models.build_seeded(
        name, input_shape=input_shape, classes=classes, width=width, seed=seed
    )
    return models.get_state(model)


@lru_cache(maxsize=4)
def _backend(built: Built, input_shape: tuple[int, ...], settings: ClientConfig) -> Backend:
    if built.described is None:
        return Backend(built.model, input_shape, settings)
    unbuilt = Unbuilt(built.described.graph, lambda: built.model)
    return Backend(unbuilt, input_shape, settings)


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
