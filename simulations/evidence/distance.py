"""How far a model is from the retrained one: in weights, in what it predicts, in its mask."""

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np

from fedsparse.sparsity import Mask, State
from simulations.evidence.measures import Answers, Array


@dataclass(frozen=True)
class Distance:
    """Distances of a model to the retrained one; None where there is nothing to compare.

    weights: ||w - w_r|| / ||w_r||; divergence: mean Jensen-Shannon divergence of predictions, bits
    in 0..1; disagreement: share of test samples with another likeliest class; overlap of masks:
    weights that both keep, by those that either keeps.
    """

    weights: float | None
    divergence: float | None
    disagreement: float | None
    overlap: float | None


def distance(
    states: tuple[State, State],
    masks: tuple[Mask | None, Mask | None],
    answers: tuple[Answers, Answers],
    parameters: Iterable[str],
) -> Distance:
    """Return the distance of the first model to the second, on their answers to one set."""
    ours, theirs = answers
    told = len(ours) > 0
    return Distance(
        weights(*states, parameters),
        float(divergence(ours.log_p, theirs.log_p).mean()) if told else None,
        disagreement(ours.log_p, theirs.log_p) if told else None,
        overlap(*masks),
    )


def weights(state: State, other: State, parameters: Iterable[str]) -> float | None:
    """Return ||w - w'|| / ||w'|| over the parameters named; None where w' is zero."""
    apart = size = 0.0
    for name in parameters:
        own, reference = state[name].astype(np.float64), other[name].astype(np.float64)
        apart += float(np.sum((own - reference) ** 2))
        size += float(np.sum(reference**2))
    return float(np.sqrt(apart / size)) if size else None


def divergence(log_p: Array, log_q: Array) -> Array:
    """Return the Jensen-Shannon divergence of each sample's predictions, in bits."""
    middle = np.logaddexp(log_p, log_q) - np.log(2)
    halves = (np.sum(np.exp(log) * (log - middle), 1) for log in (log_p, log_q))
    found: Array = np.maximum(sum(halves) / (2 * np.log(2)), 0.0)
    return found


def disagreement(log_p: Array, log_q: Array) -> float:
    """Return the share of samples whose likeliest classes differ."""
    return float(np.mean(log_p.argmax(1) != log_q.argmax(1)))


def overlap(mask: Mask | None, other: Mask | None) -> float | None:
    """Return |m and m'| / |m or m'|; a model without a mask keeps all, None where neither has one.

    Raises MaskError for masks of unlike models.
    """
    if mask is None or other is None:
        sole = other if mask is None else mask
        return None if sole is None else sole.density
    return mask.overlap(other)
