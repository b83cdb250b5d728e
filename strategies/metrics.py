"""The figures that come with a reply: what each must be to be used, or to be written down.

A strategy of ours leaves out a reply with one wrong figure (`read`). Strategies of other
makers judge for themselves; of their replies the run folder gets what fits (`fitting`).
"""

from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

from flwr.app import Message, MetricRecord

from fedsparse import messages
from fedsparse.errors import WireError

LARGEST = 1e300
"""Of a figure that is no integer: sums over any number of clients stay finite."""


@dataclass(frozen=True)
class Figure:
    """A reply's key and the numbers that it may hold."""

    key: str
    kind: type[int] | type[float]
    least: float
    most: float

    def fits(self, value: Any) -> bool:
        """Tell whether a value is such a number; NaN and lists are not."""
        numbers = int if self.kind is int else (int, float)
        return (
            isinstance(value, numbers)
            and not isinstance(value, bool)
            and self.least <= value <= self.most
        )

    def checked(self, value: Any) -> int | float:
        """Return a value that fits; raises WireError for any other."""
        if self.fits(value):
            return self.kind(value)
        what = "an integer" if self.kind is int else "a number"
        limits = f"from {self.least:.4g} to {self.most:.4g}"
        raise WireError(f"the reply's {self.key} is {named(value)}; it must be {what} {limits}")


FIGURES = {
    "examples": Figure(messages.EXAMPLES_KEY, int, 1, 2**53),
    "loss": Figure("loss", float, -LARGEST, LARGEST),
    "accuracy": Figure("accuracy", float, -LARGEST, LARGEST),
    "train_flops": Figure("train-flops", float, 0, LARGEST),
    "query_flops": Figure(messages.QUERY_FLOPS_KEY, float, 0, LARGEST),
    "density": Figure("density", float, 0, 1),
    "memory_bytes": Figure("memory-bytes", int, 0, 2**63 - 1),
}
"""Figures by their column in the rows of clients; R^2, a regression's accuracy, may be negative."""

MOVED = Figure(messages.NORMS_KEY, float, 0, LARGEST)
"""How far a tensor moved in a client's training."""


def read(message: Message, *needed: str) -> dict[str, Any]:
    """Return a reply's figures by column.

    Raises WireError for a figure that is not what it must be, KeyError when the record of
    metrics or one of the `needed` columns is missing.
    """
    record = dict(messages.metrics_of(message).items())
    for column in needed:
        if (key := FIGURES[column].key) not in record:
            raise KeyError(key)
    return {
        column: figure.checked(record[figure.key])
        for column, figure in FIGURES.items()
        if figure.key in record
    }


def fitting(message: Message) -> dict[str, Any]:
    """Return what fits of a reply's figures by column, from any record of metrics."""
    told: dict[str, Any] = {}
    for name, record in message.content.items():
        if isinstance(record, MetricRecord) and name != messages.METRICS:
            told.update(record)
    with suppress(KeyError):
        told.update(messages.metrics_of(message))
    return {
        column: figure.kind(told[figure.key])
        for column, figure in FIGURES.items()
        if figure.fits(told.get(figure.key))
    }


def norms(message: Message) -> list[float]:
    """Return how far a client says that each tensor moved; nothing where it does not, or cannot."""
    with suppress(KeyError):
        told: Any = dict(messages.metrics_of(message).items()).get(messages.NORMS_KEY, [])
        if isinstance(told, list) and all(MOVED.fits(norm) for norm in told):
            return [float(norm) for norm in told]
    return []


def average(values: Sequence[float], weights: Sequence[int]) -> float:
    """Return sum_k p_k v_k with p_k = w_k / sum w; finite values have a finite mean."""
    total = sum(weights)
    return sum(value * (weight / total) for value, weight in zip(values, weights, strict=True))


def over_clients(told: Sequence[Mapping[str, Any]]) -> MetricRecord:
    """Return the accuracy and the loss over some clients, weighted by their samples."""
    samples = [one["examples"] for one in told]
    return MetricRecord(
        {k: average([one[k] for one in told], samples) for k in ("accuracy", "loss")}
    )


def named(value: Any) -> str:
    """Return a value in a few characters, whatever it is."""
    if isinstance(value, list):
        return "a list"
    if isinstance(value, int) and value.bit_length() > 128:
        return f"an integer of {value.bit_length()} bits"
    return repr(value)
