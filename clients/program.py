"""What a client does with the model that it receives: a program, by the plan's name for it.

A program is asked for three things: to train, which makes the reply; for the personal model,
which the client would use; and to test that on the client's own held-out samples. All are pure
functions of what a `Visit` holds. The plain program trains the model and sends it back.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from functools import cache
from typing import Any

import numpy as np
from flwr.app import ArrayRecord, Context

from clients import memory
from clients.growth import largest_pruned_gradients
from clients.job import Job, Received
from fedsparse import messages, registry, seeds
from fedsparse.errors import ConfigError
from fedsparse.sparsity import Mask, State
from fedsparse.training.backend import LocalModel
from fedsparse.training.price import Price
from fedsparse.training.results import Evaluated, Trained


@dataclass(frozen=True)
class Personal:
    """A client's own model, zero where its mask prunes, and the FLOPs that making it took."""

    state: State
    mask: Mask | None = None
    flops: float = 0.0


@dataclass(frozen=True)
class Tested:
    """What a test found, and the FLOPs that making the tested model took."""

    result: Evaluated
    flops: float = 0.0


@dataclass(frozen=True)
class Outcome:
    """What training made: the values to send, under which mask, and its figures.

    `kept` holds the tensors that travel, of masked ones the kept values alone. `price` takes the
    place of what plain training costs by the plan. The client holds `held` from now on, where that
    is another mask. `figures` go into the record of metrics. With `told`, a record says which mask
    it is, and values alone are sent.
    """

    kept: State
    trained: Trained
    mask: Mask | None = None
    records: Mapping[str, ArrayRecord] = field(default_factory=dict)
    price: Price | None = None
    held: Mask | None = None
    figures: Mapping[str, float | list[float]] = field(default_factory=dict)
    told: bool = False


@dataclass(frozen=True)
class Visit:
    """A message to a client, read, with the client's own state.

    `sent` holds what else the message brings in records of arrays.
    """

    job: Job
    received: Received
    context: Context
    sent: Mapping[str, ArrayRecord] = field(default_factory=dict)

    @property
    def settings(self) -> Mapping[str, Any]:
        """The strategy's settings."""
        return self.job.config.strategy

    def stream(self, purpose: str) -> np.random.Generator:
        """Return the client's random stream for one purpose in this round."""
        return seeds.stream(self.job.seed, self.job.plan.stream, self.job.client, purpose)

    def constant_stream(self, purpose: str) -> np.random.Generator:
        """Return the client's random stream for one purpose, the same in every round."""
        return seeds.stream(self.job.seed, 0, self.job.client, purpose)

    def whole(self, own: Iterable[str] = ()) -> State:
        """Return the received model; what did not travel is the client's own, or initial.

        `own` names kept states of the client (`keep`) that hold the rest.
        """
        state = dict(self.job.initial) if self.job.plan.part else {}
        for key in own:
            state |= self.recall(key) or {}
        return {**state, **self.received.state}

    def keep(self, key: str, state: State, mask: Mask | None = None) -> None:
        """Keep some of the model's tensors until the next message, sparse-coded."""
        memory.remember_state(self.context, key, state, mask)

    def recall(self, key: str, shapes: Mapping[str, tuple[int, ...]] | None = None) -> State | None:
        """Return what was kept under a key, as whole tensors; None if nothing was.

        `shapes` are those of what was kept, where they are not the model's.
        """
        found = memory.recall_state(self.context, key, shapes or self.job.all_shapes)
        return None if found is None else found.state

    def recall_mask(self, key: str) -> Mask | None:
        """Return the mask of what was kept of the model under a key."""
        found = memory.recall_state(self.context, key, self.job.all_shapes)
        return None if found is None else found.mask

    def fit(
        self,
        state: State,
        mask: Mask | None = None,
        *,
        purpose: str = "batches",
        epochs: int | None = None,
        proximal_mu: float | None = None,
    ) -> tuple[LocalModel, Trained]:
        """Train a model on the client's data by the run's settings, and return it.

        `purpose` names the random stream of the batches; `epochs` and `proximal_mu` are the
        configuration's and the plan's unless given.
        """
        job = self.job
        model = job.backend.load(state, mask)
        trained = model.train(
            job.data.train,
            job.settings,
            rng=self.stream(purpose),
            lr=job.lr,
            epochs=epochs,
            proximal_mu=job.plan.proximal_mu if proximal_mu is None else proximal_mu,
            l1=job.plan.l1,
        )
        return model, trained

    def shared(self, state: State) -> State:
        """Return those tensors of a state that travel."""
        return {name: state[name] for name in self.job.schema.names}


class Program:
    """The plain program: train what was received, send it back, use the global model."""

    def mask_shapes(self, job: Job) -> Mapping[str, tuple[int, ...]]:
        """Return the tensors that this program's masks cover, with their shapes."""
        return job.shapes

    def train(self, visit: Visit) -> Outcome:
        """Train, and return what is sent back."""
        job, mask = visit.job, visit.received.mask
        kept = job.config.client.keep_optimizer
        model = job.backend.load(visit.received.state, mask)
        trained = model.train(
            job.data.train,
            job.settings,
            rng=visit.stream("batches"),
            lr=job.lr,
            proximal_mu=job.plan.proximal_mu,
            l1=job.plan.l1,
            optimizer_state=memory.recall_optimizer(visit.context, job, mask) if kept else None,
        )
        if kept:
            memory.remember_optimizer(visit.context, trained.slots(), mask)
        records = {}
        if job.plan.grow and mask is not None:
            records[messages.GROWTH] = largest_pruned_gradients(job, mask, model)
        return Outcome(model.kept(), trained, mask, records)

    def personal(self, visit: Visit) -> Personal:
        """Return the model that this client would use."""
        return Personal(visit.whole(), visit.received.mask)

    def test(self, visit: Visit) -> Tested:
        """Test the personal model on the client's own held-out samples."""
        own = self.personal(visit)
        model = visit.job.backend.load(own.state, own.mask)
        return Tested(model.evaluate(visit.job.data.test), own.flops)


def program_of(name: str) -> Program:
    """Return the program of a name or dotted path; the plain one for ''.

    Raises UnknownNameError, or ConfigError for what is no program.
    """
    return _made(name) if name else PLAIN


PLAIN = Program()


@cache
def _made(name: str) -> Program:
    found = registry.load("programs", name)
    if not (isinstance(found, type) and issubclass(found, Program)):
        raise ConfigError(f"'{name}' is no Program of a client; subclass clients.program.Program")
    return found()
