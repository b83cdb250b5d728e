"""Influence unlearning by WoodFisher (Koh and Liang 2017; Jia et al. 2023, "IU").

theta <- theta + alpha F^-1 (n_f / N) (g_f - g_r), with g_f and g_r the mean gradients on the
forgotten and the retained data and F the empirical Fisher matrix in the Hessian's place. F is
that of the mean gradients of parts of clients' data, not of samples one by one: so it has no more
rank than there are parts, and the damping decides in all other directions.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
from flwr.app import Message
from numpy.typing import NDArray
from pydantic import Field

from fedsparse import messages, wire
from fedsparse.config import Finite
from fedsparse.errors import WireError
from fedsparse.messages import Plan
from fedsparse.sparsity import Mask, State
from strategies.replies import Reader, Reply
from strategies.unlearning.base import Unlearning, UnlearningSettings

Floats = NDArray[np.float64]


class InfluenceSettings(UnlearningSettings):
    """Keys of `[strategy]` for influence."""

    alpha: Finite = Field(default=0.3, ge=0, le=1e4, description="how far to go")
    damping: Finite = Field(default=0.1, gt=0, le=1e3, description="added to F's diagonal")
    parts: int = Field(
        default=4, ge=1, le=1000, description="of a client's data, each with a gradient in F"
    )


class Influence(Unlearning):
    """One Newton-like step away from the data to be forgotten."""

    Settings = InfluenceSettings
    program = "influence"
    targets: ClassVar[frozenset[str]] = frozenset({"class", "samples"})
    needs_forgotten: ClassVar[bool] = True
    knob: ClassVar[str] = "alpha"
    grid: ClassVar[tuple[float, ...]] = (0.1, 0.3, 1.0, 3.0)
    rounds: ClassVar[int] = 2

    measuring = False

    def works(self, round_number: int) -> bool:
        """Measure in round 1."""
        return round_number == 1

    def plan(self, round_number: int) -> Plan:
        """Ask for gradients, then for plain training."""
        self.measuring = self.works(round_number)
        return self.exactly(round_number) if self.measuring else super().plan(round_number)

    @property
    def held_entries(self) -> int:
        """The gradients of all parts, until they are sent."""
        return int(self.settings.parts) * self.task.schema.entries

    def reader(self) -> Reader:
        """Read the gradients, too, in the round that asks for them."""
        plain = super().reader()
        if not self.measuring:
            return plain
        shapes = {name: tuple(p.shape) for name, p in self.task.model.named_parameters()}
        schema = wire.Schema(tuple(shapes.items()))
        return GradientReader(
            **vars(plain), gradients=schema, mask=self.mask, parts=self.settings.parts
        )

    def aggregate(self, round_number: int, replies: Sequence[Reply]) -> None:
        """Take the step; later take the mean of models."""
        if not self.works(round_number):
            self.state = self.mean(replies)
            return
        step = self.step(replies)
        values = self.flat(self.state).astype(np.float64) + float(self.settings.alpha) * step
        self.state = {**self.state, **self.spread(values.astype(np.float32))}

    def step(self, replies: Sequence[Reply]) -> Floats:
        """F^-1 (n_f / N) (g_f - g_r), by clients' gradients and numbers of samples."""
        told = [(reply.examples, self.flat(reply.state), reply.extra) for reply in replies]
        samples = sum(n for n, _, _ in told)
        gone = [(e.forgotten, self.flat(e.gradient)) for _, _, e in told if e.forgotten]
        forgotten = sum(n for n, _ in gone)
        if not forgotten:
            return np.zeros(len(told[0][1]))
        retained = sum((n / samples) * g.astype(np.float64) for n, g, _ in told)
        away = sum((n / forgotten) * g.astype(np.float64) for n, g in gone)
        parts = [(n / samples / len(e.parts), self.flat(p)) for n, _, e in told for p in e.parts]
        vector = forgotten / (samples + forgotten) * (away - retained)
        rows = np.stack([g.astype(np.float64) for _, g in parts])
        weights = np.array([weight for weight, _ in parts])
        return inverse_product(rows, weights, float(self.settings.damping), np.asarray(vector))

    def flat(self, state: State) -> NDArray[np.float32]:
        """Return a state's parameters as one vector."""
        return np.concatenate([state[n].reshape(-1) for n, _ in self.task.model.named_parameters()])

    def spread(self, values: NDArray[np.float32]) -> State:
        """Return a vector like the parameters as named tensors."""
        found, begin = {}, 0
        for name, parameter in self.task.model.named_parameters():
            end = begin + parameter.numel()
            found[name] = values[begin:end].reshape(tuple(parameter.shape)).copy()
            begin = end
        return found


def inverse_product(rows: Floats, weights: Floats, damping: float, vector: Floats) -> Floats:
    """Return (lambda I + sum_i w_i g_i g_i^T)^-1 v without ever holding that matrix.

    By Woodbury's identity, so what WoodFisher's updates of rank one come to (Singh and Alistarh
    2020): (v - G^T (lambda W^-1 + G G^T)^-1 G v) / lambda.
    """
    inner = np.diag(damping / weights) + rows @ rows.T
    found: Floats = (vector - rows.T @ np.linalg.solve(inner, rows @ vector)) / damping
    return found


@dataclass(frozen=True)
class Gradients:
    """What a client measured: the mean gradients of its parts, and of its forgotten samples."""

    parts: list[State]
    forgotten: int
    gradient: State


NOTHING = wire.Schema(())


@dataclass(frozen=True)
class GradientReader(Reader):
    """Reads replies with gradients under a mask, of at most `parts` parts."""

    gradients: wire.Schema = NOTHING
    mask: Mask | None = None
    parts: int = 1

    @property
    def extras(self) -> Mapping[str, int]:
        """A gradient a part, and that of what is forgotten."""
        return {messages.GRADIENTS: (self.parts + 1) * self.gradients.most_bytes}

    def extra(self, message: Message) -> Gradients:
        """Decode the gradients; raises WireError where there are none, or too many."""
        payloads = wire.unpack_many(message.content.array_records[messages.GRADIENTS])
        told: Any = messages.metrics_of(message)[messages.FORGOTTEN_KEY]
        gone = payloads.pop(messages.FORGOTTEN, None)
        if not isinstance(told, int) or (told > 0) != (gone is not None):
            raise WireError(f"the reply says that {told!r} samples are forgotten, its gradient not")
        if not 1 <= len(payloads) <= self.parts:
            raise WireError(f"the reply holds {len(payloads)} gradients; at most {self.parts} fit")
        decoded = [self._decoded(payload) for payload in payloads.values()]
        return Gradients(decoded, told, {} if gone is None else self._decoded(gone))

    def _decoded(self, payload: bytes) -> State:
        held = () if self.mask is None else (self.mask,)
        return wire.decode(payload, self.gradients, masks=held).state
