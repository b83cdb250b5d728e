"""Fixed point: a client's weighted model and figures as whole numbers modulo 2^bits.

The point is placed so that the sum of a round's clients always fits. What is summed is then exact,
and a mean differs from that of floats by half a unit a client over the samples of all, at most.
"""

import math
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from fedsparse.config import Config
from fedsparse.errors import ConfigError, SecureAggregationError, TrainingError
from fedsparse.secure.keys import Words

LEAST_FRACTION = 8
"""Bits after the point below which a configuration is refused: models would be too coarse."""

DIGIT, DIGITS = 12, 5
"""Figures without a bound are summed in so many digits of so many bits."""

HEAD = 4 + DIGITS
"""Words before the values: samples, clipped values, weighted loss and accuracy, FLOPs."""


class Figures(NamedTuple):
    """What is told of one client, or of the sum of several, beside the model.

    `loss` and `accuracy` are times samples; `clipped` counts values beyond the range.
    """

    samples: int
    clipped: int
    loss: float
    accuracy: float
    flops: float


@dataclass(frozen=True)
class FixedPoint:
    """How numbers become words of `bits` bits: `fraction` of them after the point."""

    bits: int
    fraction: int
    clip: float
    most_samples: int

    @classmethod
    def of(cls, config: Config) -> "FixedPoint":
        """Return what a configuration says; raises ConfigError where too few bits are left."""
        secure, fleet = config.secure, config.fleet
        clients = fleet.clients_per_round or fleet.training_clients
        room = 2 ** (secure.bits - 1) - 1 - clients  # each client's rounding is half a unit
        largest = clients * secure.max_examples * secure.clip
        fraction = math.floor(math.log2(room / largest)) if room > 0 else -1
        if fraction < LEAST_FRACTION or clients << DIGIT > room:
            raise ConfigError(
                f"secure.bits = {secure.bits}: the sum of {clients} clients with up to "
                f"secure.max_examples = {secure.max_examples} samples and values up to "
                f"secure.clip = {secure.clip:g} would be too coarse; raise bits or lower the others"
            )
        return cls(secure.bits, min(fraction, 52), secure.clip, secure.max_examples)

    @property
    def unit(self) -> float:
        """What one stands for."""
        return 2.0**-self.fraction

    @property
    def kind(self) -> type[Any]:
        """The words that it is computed in; they wrap as 2^bits divides 2^32 or 2^64."""
        return np.uint32 if self.bits <= 32 else np.uint64

    def encode(self, values: NDArray[np.float32], told: Figures) -> Words:
        """Return n w and the figures of one client as words, (HEAD + values,).

        `told.samples` is n; `told.loss` and `told.accuracy` are its means, not yet times n. Raises
        SecureAggregationError for more samples than fit, TrainingError for values not finite.
        """
        n = told.samples
        if not 1 <= n <= self.most_samples:
            raise SecureAggregationError(
                f"no samples, or more than secure.max_examples = {self.most_samples}; raise it"
            )
        if not (np.isfinite(values).all() and math.isfinite(told.loss + told.accuracy)):
            raise TrainingError("the trained model holds NaN or infinity; lower client.lr")
        units = n * 2.0**self.fraction
        whole = np.rint(np.clip(values.astype(np.float64), -self.clip, self.clip) * units)
        beyond = int(np.count_nonzero(np.abs(values) > self.clip))
        means = np.clip([told.loss, told.accuracy], -self.clip, self.clip)
        head = [n, min(beyond, 2**DIGIT - 1), *np.rint(means * units), *_digits(told.flops)]
        numbers = np.concatenate([np.array(head, np.float64), whole]).astype(np.int64)
        return numbers.astype(self.kind)

    def decode(self, total: Words) -> tuple[NDArray[np.int64], Figures]:
        """Return the sum of clients' values in units, and their figures, of the words' sum."""
        numbers = total.astype(np.uint64) << np.uint64(64 - self.bits)
        signed = numbers.view(np.int64) >> np.int64(64 - self.bits)
        samples, clipped, loss, accuracy, *digits = signed[:HEAD].tolist()
        flops = sum(digit << (DIGIT * place) for place, digit in enumerate(digits))
        told = Figures(samples, clipped, loss * self.unit, accuracy * self.unit, float(flops))
        return signed[HEAD:], told

    def pack(self, words: Words) -> bytes:
        """Return words in bits / 8 bytes each."""
        little = words.astype(words.dtype.newbyteorder("<"), copy=False)
        parts = little.view(np.uint8).reshape(len(words), words.itemsize)
        return parts[:, : self.bits // 8].tobytes()

    def unpack(self, content: bytes, size: int) -> Words:
        """Return the `size` words of `pack`; raises SecureAggregationError for another length."""
        width = self.bits // 8
        if len(content) != size * width:
            raise SecureAggregationError(
                f"masked values have {len(content)} bytes; {size * width} were asked for"
            )
        parts = np.zeros((size, np.dtype(self.kind).itemsize), np.uint8)
        parts[:, :width] = np.frombuffer(content, np.uint8).reshape(size, width)
        words = parts.view(np.dtype(self.kind).newbyteorder("<")).reshape(size)
        return words.astype(self.kind, copy=False)


def _digits(number: float) -> list[int]:
    """Return a number from 0 on as digits of a sum, the lowest first."""
    whole = int(min(max(number, 0.0), 2.0 ** (DIGIT * DIGITS) - 2.0**10))
    return [(whole >> (DIGIT * place)) % 2**DIGIT for place in range(DIGITS)]
