"""Sparse linear regression under local differential privacy: the device adds the noise.

Each sample's message is bounded, gets Gaussian noise of its own, and is private before it leaves
the device; `fedsparse/privacy/regression.py` holds the arithmetic. A client answers once: what it
sent it sends again to the same question, and refuses any other. It tells no loss and tests nothing.
"""

from collections.abc import Mapping
from hashlib import blake2b
from typing import Any

import numpy as np
from flwr.app import Array, ArrayRecord

from clients.memory import ANSWER
from clients.program import Outcome, Program, Tested, Visit
from fedsparse import messages, wire
from fedsparse.errors import ConfigError, DataError
from fedsparse.privacy import regression
from fedsparse.privacy.gaussian import Floats
from fedsparse.sparsity import State
from fedsparse.training.price import Price, price
from fedsparse.training.results import Trained

QUESTION = "ldp-question"


class LocallyPrivate(Program):
    """A client that says one noisy thing of its samples."""

    sensitivity: float
    """Of one sample's message, in units of its bound."""
    work = 2.0
    """FLOPs by sample and entry of the message."""

    def clean(self, visit: Visit) -> Floats:
        """Return the sum of the samples' bounded messages, in units of their bounds."""
        raise NotImplementedError

    def outcome(self, visit: Visit, told: Floats) -> tuple[State, dict[str, ArrayRecord]]:
        """Return what is sent of a noisy mean: tensors like the model's, and records."""
        return as_model(visit, told), {}

    def train(self, visit: Visit) -> Outcome:
        """Return the noisy mean of the samples' messages."""
        found = self.answer(visit)
        kept, records = self.outcome(visit, found)
        job, samples = visit.job, len(visit.job.data.train)
        cost = price(job.cost, job.settings, job.plan, samples)
        paid = Price(self.work * samples * len(found), cost.memory)
        return Outcome(kept, Trained(0.0, 0.0, samples, dict), None, records, paid)

    def test(self, visit: Visit) -> Tested:
        """Refuse: the loss on own samples, in the clear, is covered by no promise."""
        raise ConfigError(
            "clients whose samples are locally private test nothing; set fleet.evaluate_clients = 0"
        )

    def answer(self, visit: Visit) -> Floats:
        """Return the noisy mean that answers a message, the same one where it is repeated.

        Raises ConfigError for a second question, which would spend the samples' budget again.
        """
        question, state = asked(visit), visit.context.state
        if ANSWER in state.array_records:
            record = state.array_records[ANSWER]
            if record[QUESTION].numpy().tobytes() != question:
                raise ConfigError(
                    "this client has told of its samples what strategy.epsilon allows, and answers "
                    "nothing more in this run; start another run"
                )
            kept: Floats = record[ANSWER].numpy()
            return kept
        found = self.noisy(visit)
        stored = np.frombuffer(question, np.uint8)
        state[ANSWER] = ArrayRecord({QUESTION: Array(stored), ANSWER: Array(found)})
        return found

    def noisy(self, visit: Visit) -> Floats:
        """Return the mean of the samples' messages, each with noise of its own."""
        settings, privacy = visit.settings, visit.job.config.privacy
        spread = regression.deviation(self.sensitivity, settings["epsilon"], privacy.delta)
        rng = visit.stream("local privacy") if privacy.entropy == "seed" else None
        samples = len(visit.job.data.train)
        return regression.noisy_mean(self.clean(visit), samples, spread, rng)


class Nldp(LocallyPrivate):
    """Tell the moments x x' and x y; what was received changes nothing."""

    sensitivity = regression.MOMENTS_SENSITIVITY

    def clean(self, visit: Visit) -> Floats:
        """Return the sum of bounded moments."""
        x, y = samples_of(visit)
        return regression.moments(x, y, bound(visit, "longest"), bound(visit, "largest"))

    def outcome(self, visit: Visit, told: Floats) -> tuple[State, dict[str, ArrayRecord]]:
        """Send x y like the model, and x x' in a record."""
        d = features(visit)
        record = wire.encode({messages.MOMENTS: told[:-d].astype(np.float32)})
        return as_model(visit, told[-d:]), {messages.MOMENTS: wire.pack(record)}


class LdpIht(LocallyPrivate):
    """Tell the gradient of the squared loss at the received model, each sample's clipped."""

    sensitivity = regression.GRADIENT_SENSITIVITY
    work = 6.0

    def clean(self, visit: Visit) -> Floats:
        """Return the sum of clipped gradients over the bound."""
        x, y, s = *samples_of(visit), visit.settings
        theta = visit.received.state[weight_name(visit)].reshape(-1).astype(np.float64)
        clip = regression.clip_of(s["clip"], s["clip_decay"], visit.job.plan.round)
        return regression.gradients(x, y, theta, clip)


def asked(visit: Visit) -> bytes:
    """Return a digest of all that an answer depends on, beside samples and noise."""
    found = blake2b(digest_size=16)
    found.update(repr((visit.job.plan, sorted(visit.settings.items()))).encode())
    for name, value in visit.received.state.items():
        found.update(name.encode() + value.tobytes())
    return found.digest()


def bound(visit: Visit, key: str) -> float:
    """Return a bound of the strategy's that is sent with each message; raises ConfigError.

    By one whose square is no number, moments would tell more of samples than their noise covers.
    """
    value = visit.settings.get(key)
    if isinstance(value, bool) or not isinstance(value, int | float) or not 1e-100 <= value <= 1e6:
        raise ConfigError(
            f"strategy.{key} = {value!r}: must be a number from 1e-100 to 1e6; correct it"
        )
    return float(value)


def samples_of(visit: Visit) -> tuple[np.ndarray[Any, Any], np.ndarray[Any, Any]]:
    """Return the client's samples (n, d) and targets (n,); raises DataError for classes."""
    data = visit.job.data.train
    if data.classes != 1:
        raise DataError(
            f"linear regression needs targets that are numbers; these are {data.classes} classes"
        )
    return data.x.reshape(len(data), -1), data.y


def weight_name(visit: Visit) -> str:
    """Return the name of the linear model's weight, the only tensor that masks cover."""
    (name,) = visit.job.shapes
    return name


def features(visit: Visit) -> int:
    """Return the number of coefficients."""
    (shape,) = visit.job.shapes.values()
    return int(np.prod(shape))


def as_model(visit: Visit, coefficients: Floats) -> State:
    """Return coefficients as tensors like the model's, with no intercept."""
    shapes: Mapping[str, tuple[int, ...]] = visit.job.all_shapes
    found = {name: np.zeros(shape, np.float32) for name, shape in shapes.items()}
    name = weight_name(visit)
    found[name] = coefficients.reshape(shapes[name]).astype(np.float32)
    return found
