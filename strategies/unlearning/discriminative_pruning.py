"""Class-discriminative channel pruning (Wang et al., WWW 2022): forget a class by its channels.

In round 1 clients tell the mean activation of each convolution's channels by class, and train
plainly. By TF-IDF the server finds the channels that see the forgotten class and few others; they
are pruned, and the model recovers on the retained data in the other rounds.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
from flwr.app import Message
from numpy.typing import NDArray
from pydantic import Field

from fedsparse import messages, wire
from fedsparse.config import Config, Finite
from fedsparse.errors import ConfigError
from fedsparse.messages import Plan
from fedsparse.sparsity import Mask, State, top
from fedsparse.training import channels
from strategies.replies import Reader, Reply
from strategies.sums import adds_up
from strategies.task import masked
from strategies.unlearning.base import Unlearning, UnlearningSettings


class DiscriminativePruningSettings(UnlearningSettings):
    """Keys of `[strategy]` for discriminative-pruning."""

    ratio: Finite = Field(
        default=0.2, gt=0, lt=1, description="of each convolution's channels, those pruned"
    )


class DiscriminativePruning(Unlearning):
    """Prune the channels that see the forgotten class most and others least, then fine-tune."""

    Settings = DiscriminativePruningSettings
    program = "discriminative-pruning"
    targets: ClassVar[frozenset[str]] = frozenset({"class"})
    needs_forgotten: ClassVar[bool] = True
    needs_classes: ClassVar[bool] = True
    knob: ClassVar[str] = "ratio"
    grid: ClassVar[tuple[float, ...]] = (0.1, 0.2, 0.4, 0.7)
    rounds: ClassVar[int] = 6

    measuring = False

    def check(self, config: Config) -> None:
        """Refuse a model without convolutions."""
        super().check(config)
        if not channels.convolutions(self.task.model):
            raise ConfigError(
                f"strategy.name = '{self.settings.name}' prunes channels, and model "
                f"'{config.model.name}' has no convolution; choose another, such as l1-sparse"
            )

    def works(self, round_number: int) -> bool:
        """Measure in round 1."""
        return round_number == 1

    @property
    def work(self) -> float:
        """One more forward pass, in round 1."""
        return 1 + 1 / (3 * self.task.config.client.local_epochs)

    def plan(self, round_number: int) -> Plan:
        """Ask for activations beside the training, then for training alone."""
        self.measuring = self.works(round_number)
        return super().plan(round_number)

    def reader(self) -> Reader:
        """Read the activations, too, in the round that asks for them."""
        plain = super().reader()
        if not self.measuring:
            return plain
        found = channels.shapes(self.task.model, self.task.data.classes)
        return ActivationReader(**vars(plain), activations=wire.Schema(tuple(found.items())))

    @adds_up
    def aggregate(self, round_number: int, replies: Sequence[Reply]) -> None:
        """Take the mean of models; in round 1 prune the class's channels."""
        self.state = self.mean(replies)
        if self.works(round_number):
            self.prune(pooled([reply.extra for reply in replies]))

    def prune(self, activations: Mapping[str, NDArray[np.float64]]) -> None:
        """Prune of each convolution the channels of highest TF-IDF for the forgotten classes."""
        mask = self.mask or Mask.full(self.task.shapes)
        bits = {name: np.array(part) for name, part in mask.items()}
        behind = channels.norms_behind(self.task.model)
        state = masked(self.state, None)
        for name, found in activations.items():
            gone = self.chosen(found)
            bits[name][gone] = False
            for entry in ("weight", "bias", "running_mean"):
                if name in behind and f"{behind[name]}.{entry}" in state:
                    state[f"{behind[name]}.{entry}"][gone] = 0
        self.mask = Mask.from_arrays(bits)
        self.state = masked(state, self.mask)

    def chosen(self, activations: NDArray[np.float64]) -> NDArray[np.int64]:
        """Return the channels to prune: as many as the ratio says, one at least, but not all."""
        count = activations.shape[1]
        most = min(count - 1, max(1, math.floor(float(self.settings.ratio) * count)))
        labels = sorted(self.task.config.forget.class_set)
        scores = tf_idf(activations)[labels].sum(0)
        return np.flatnonzero(top(scores, most))


def pooled(told: Sequence[State]) -> dict[str, NDArray[np.float64]]:
    """Return the mean activations by class over all clients' samples, layer by layer."""
    counts = [state[channels.SAMPLES].astype(np.float64)[:, None] for state in told]
    total = np.maximum(sum(counts, np.zeros_like(counts[0])), 1.0)
    layers = [name for name in told[0] if name != channels.SAMPLES]
    return {
        name: sum(
            (n * s[name].astype(np.float64) for n, s in zip(counts, told, strict=True)),
            np.zeros(told[0][name].shape),
        )
        / total
        for name in layers
    }


def tf_idf(activations: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return TF-IDF of channels as words of classes as texts: (classes, channels).

    TF is a channel's share of a class's activation; IDF is log((1 + C) / (1 + c)), where c of C
    classes have the channel above their mean over channels.
    """
    sums = activations.sum(1, keepdims=True)
    shares = np.divide(activations, sums, out=np.zeros_like(activations), where=sums > 0)
    strong = activations > activations.mean(1, keepdims=True)
    rarity = np.log((1 + len(activations)) / (1 + strong.sum(0)))
    return np.asarray(shares * rarity)


NOTHING = wire.Schema(())


@dataclass(frozen=True)
class ActivationReader(Reader):
    """Reads replies with activations of channels by class."""

    activations: wire.Schema = NOTHING

    @property
    def extras(self) -> Mapping[str, int]:
        """The activations."""
        return {messages.ACTIVATIONS: self.activations.most_bytes}

    def extra(self, message: Message) -> State:
        """Decode the activations of a reply."""
        payload = wire.unpack(message.content.array_records[messages.ACTIVATIONS])
        return wire.decode(payload, self.activations).state
