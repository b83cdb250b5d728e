"""Patterns: which weights of a layer are kept or dropped together, as runtimes like them.

A pattern takes one layer's scores and a number of weights to keep, and returns what is kept. It is
named by a text: unstructured, block-2, 2:4, channels, group-8. Combined with a criterion and an
allocation it makes a mask (`compose`). A weight is (outputs, inputs, ...); whatever else it has,
such as a kernel's rows and columns, belongs to its inputs.
"""

import math
import re
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fedsparse.errors import MaskError, UnknownNameError

Bits = NDArray[np.bool_]
Shape = tuple[int, ...]

STEPS = 16
"""Most rounds in which filters change to a pattern that suits them better."""


def top(flat: NDArray[Any], count: int) -> Bits:
    """Flag the `count` highest of a flat array, in linear time; ties go to the lower position.

    Raises MaskError for NaN, which has no rank.
    """
    surplus = flat.size - count
    if count <= 0 or surplus <= 0:
        return np.full(flat.size, count > 0)
    least = flat.dtype.type(_ranked(flat, surplus))
    bits: Bits = flat > least
    ties = np.flatnonzero(flat == least)
    bits[ties[: count - np.count_nonzero(bits)]] = True
    if np.count_nonzero(bits) != count:
        raise MaskError("scores hold NaN, which has no rank")
    return bits


def _ranked(flat: NDArray[Any], place: int) -> float:
    """Return the value that would stand at a place if a flat array were sorted."""
    try:
        import torch
    except ImportError:  # numpy takes twenty times as long where many are equal, as zeros are
        return float(np.partition(flat, place)[place])
    return float(torch.kthvalue(torch.tensor(flat), place + 1).values.item())


@dataclass(frozen=True)
class Pattern(ABC):
    """How the weights of one layer may be kept."""

    spares_outputs = False
    """Whether it removes outputs, so that the last layer, whose outputs are meant, is left out."""

    def keep(self, scores: NDArray[Any], count: int) -> Bits:
        """Return which weights are kept, in the shape of `scores`: about `count` of them.

        As many as `most` says, or a few less where a smaller group at the layer's end is among
        them. Raises MaskError for NaN, and for a count that the layer does not have.
        """
        if not 0 <= count <= scores.size:
            raise MaskError(f"cannot keep {count} of the {scores.size} weights of a layer")
        if np.isnan(scores).any():
            raise MaskError("scores hold NaN, which has no rank")
        return self._keep(scores, count) if scores.size else np.zeros(scores.shape, bool)

    @abstractmethod
    def most(self, shape: Shape, count: int) -> int:
        """Return how many weights of a layer `keep` keeps at most, whatever their scores."""

    @abstractmethod
    def _keep(self, scores: NDArray[Any], count: int) -> Bits: ...


@dataclass(frozen=True)
class Unstructured(Pattern):
    """Each weight by itself: exactly `count` are kept."""

    def most(self, shape: Shape, count: int) -> int:
        """Return the count."""
        return count

    def _keep(self, scores: NDArray[Any], count: int) -> Bits:
        return top(scores.reshape(-1), count).reshape(scores.shape)


@dataclass(frozen=True)
class Blocks(Pattern):
    """The same input for `rows` neighbouring outputs at once (Elsen et al. 2020, section 3.2).

    Kept are the round(count / rows) blocks of largest summed score. Outputs are cut from the first
    on; the last blocks are smaller where `rows` does not divide their number.
    """

    rows: int

    def most(self, shape: Shape, count: int) -> int:
        """Return the weights of as many whole blocks as are kept."""
        return min(math.prod(shape), self.rows * _rounded(count, self.rows))

    def fold(self, values: NDArray[Any]) -> NDArray[np.float64]:
        """Return the sum over each block: (blocks of outputs, inputs)."""
        rows = _matrix(values)
        padded = np.zeros((-(-len(rows) // self.rows) * self.rows, rows.shape[1]))
        padded[: len(rows)] = rows
        sums: NDArray[np.float64] = padded.reshape(-1, self.rows, rows.shape[1]).sum(axis=1)
        return sums

    def unfold(self, bits: Bits, shape: Shape) -> Bits:
        """Return what is kept of a layer's weights where `bits` says which blocks are."""
        return np.repeat(bits, self.rows, axis=0)[: shape[0]].reshape(shape)

    def _keep(self, scores: NDArray[Any], count: int) -> Bits:
        sums = self.fold(scores)
        bits = top(sums.reshape(-1), _rounded(count, self.rows)).reshape(sums.shape)
        return self.unfold(bits, scores.shape)


@dataclass(frozen=True)
class Ratio(Pattern):
    """At most `kept` of each `among` neighbouring inputs of an output (N:M, Zhou et al. 2021).

    Of those, the `count` largest scores: all of them where `count` is kept / among of the layer, or
    more. A remainder of fewer than `among` inputs keeps at most `kept`, too.
    """

    kept: int
    among: int

    def most(self, shape: Shape, count: int) -> int:
        """Return the count, or what the ratio leaves of the layer."""
        inputs = shape[1] if len(shape) > 1 else 1
        whole, rest = divmod(inputs, self.among)
        of_inputs = whole * self.kept + min(rest, self.kept)
        return min(count, math.prod(shape) // max(1, inputs) * of_inputs)

    def _keep(self, scores: NDArray[Any], count: int) -> Bits:
        eligible = self._largest_of_each(scores)
        chosen = np.where(eligible, scores, -np.inf).reshape(-1)
        count = min(count, int(np.count_nonzero(eligible)))
        return top(chosen, count).reshape(scores.shape) & eligible

    def _largest_of_each(self, scores: NDArray[Any]) -> Bits:
        outputs, inputs = len(scores), scores.shape[1] if scores.ndim > 1 else 1
        last = scores.reshape(outputs, inputs, -1).swapaxes(1, 2)
        padded = np.full((*last.shape[:2], -(-inputs // self.among) * self.among), -np.inf)
        padded[..., :inputs] = last
        bits = _largest(padded.reshape(-1, self.among), self.kept)
        return bits.reshape(padded.shape)[..., :inputs].swapaxes(1, 2).reshape(scores.shape)


@dataclass(frozen=True)
class Channels(Pattern):
    """Whole outputs: the round(count / weights of one) of largest summed score, at least one."""

    spares_outputs = True

    def most(self, shape: Shape, count: int) -> int:
        """Return the weights of as many outputs as are kept."""
        size = math.prod(shape[1:])
        return min(math.prod(shape), size * _rounded(count, size))

    def _keep(self, scores: NDArray[Any], count: int) -> Bits:
        rows = _matrix(scores)
        outputs = top(rows.sum(axis=1, dtype=np.float64), _rounded(count, rows.shape[1]))
        return np.repeat(outputs, rows.shape[1]).reshape(scores.shape)


@dataclass(frozen=True)
class Shared(Pattern):
    """Groups of outputs that share a pattern, of which a layer has at most `patterns`.

    A pattern says which inputs an output keeps: all keep as many, round(count / outputs), at least
    one. The first pattern is that of all outputs together, each next one that of the output which
    loses most by the patterns so far. Then, by turns, each output takes the pattern that keeps most
    of its own scores, and each pattern keeps the inputs of largest summed score over its outputs,
    until none changes or after `STEPS` turns. Where there is a pattern for each, each has its own.

    In the manner of SparseByteNN (Xu et al. 2023, arXiv 2310.19509), which prunes at a granularity
    between weights and channels, with several patterns, and rearranges channels to bring like ones
    together. Its repository holds no code, and this is not claimed to be its exact scheme.
    """

    patterns: int

    def most(self, shape: Shape, count: int) -> int:
        """Return the outputs times the inputs that each keeps."""
        return shape[0] * _rounded(count, shape[0])

    def _keep(self, scores: NDArray[Any], count: int) -> Bits:
        rows = _matrix(scores).astype(np.float64)
        kept = _rounded(count, len(rows))
        patterns = self._first(rows, kept)
        group = np.argmax(rows @ patterns.T, axis=1)
        for _ in range(STEPS):
            patterns = _largest(_summed(rows, group, len(patterns)), kept)
            better = np.argmax(rows @ patterns.T, axis=1)
            if (better == group).all():
                break
            group = better
        bits: Bits = patterns[group].reshape(scores.shape)
        return bits

    def _first(self, rows: NDArray[Any], kept: int) -> Bits:
        """Return the patterns with which the turns begin: (patterns, inputs)."""
        own = _largest(rows, kept)
        if self.patterns >= len(rows):
            return own
        best = np.where(own, rows, 0.0).sum(axis=1)
        patterns = _largest(rows.sum(axis=0, keepdims=True), kept)
        reached = rows @ patterns[0]
        while len(patterns) < self.patterns:
            worst = int(np.argmax(best - reached))
            patterns = np.concatenate([patterns, own[worst : worst + 1]])
            reached = np.maximum(reached, rows @ patterns[-1])
        return patterns


def _summed(rows: NDArray[Any], group: NDArray[Any], number: int) -> NDArray[np.float64]:
    """Return the sum of the rows of each group."""
    sums = np.zeros((number, rows.shape[1]))
    np.add.at(sums, group, rows)
    return sums


def _largest(rows: NDArray[Any], count: int) -> Bits:
    """Flag the `count` largest of each row; ties go to the lower position."""
    bits = np.zeros(rows.shape, bool)
    order = np.argsort(-rows, axis=1, kind="stable")[:, :count]
    np.put_along_axis(bits, order, True, axis=1)
    return bits


def _matrix(values: NDArray[Any]) -> NDArray[Any]:
    """Return a layer's weights as (outputs, all that each output reads)."""
    return values.reshape(len(values), -1)


def _rounded(count: int, size: int) -> int:
    """Return how many groups of a size stand for a count of weights: one at least, if any."""
    return max(1, (2 * count + size) // (2 * size)) if count and size else 0


UNSTRUCTURED = Unstructured()

PATTERNS: Mapping[str, Callable[..., Pattern]] = {
    r"unstructured": Unstructured,
    r"block-([1-9]\d{0,3})": Blocks,
    r"([1-9]\d{0,3}):([1-9]\d{0,3})": Ratio,
    r"channels": Channels,
    r"group-([1-9]\d{0,3})": Shared,
}
"""What makes a pattern of the numbers in a text of this form."""

EXAMPLES = ("unstructured", "block-2", "block-4", "2:4", "channels", "group-8")


def named(text: str) -> Pattern:
    """Return the pattern that a text names, such as block-2 or 2:4.

    Raises UnknownNameError for another text, MaskError for a ratio that keeps more than there is.
    """
    for form, make in PATTERNS.items():
        found = re.fullmatch(form, text, re.ASCII)
        if found is None:
            continue
        numbers = [int(number) for number in found.groups()]
        if make is Ratio and numbers[0] > numbers[1]:
            raise MaskError(
                f"pattern '{text}' keeps {numbers[0]} of {numbers[1]}; swap them, as in 2:4"
            )
        return make(*numbers)
    raise UnknownNameError("pattern", text, EXAMPLES)
