"""A second strong membership attack: RMIA, which needs few reference models.

Zarifzadeh et al. 2024, "Low-Cost High-Power Membership Inference Attacks", offline: a sample is a
member as far as the model raises its probability more than that of samples of the population.
"""

import numpy as np

from simulations.evidence.measures import Array

OFFLINE = 0.3
"""The paper's a: how far models that saw a sample are between those that did not, and certainty."""
GAMMA = 1.0
"""The likelihood ratio that counts; 1, as more leaves ties where models are nearly certain."""


def scores(target: Array, references: Array, population: Array, known: Array) -> Array:
    """Return each sample's score in 0..1: the share of the population that it surpasses.

    target: probability of the true label (samples,); references: the same (models, samples);
    population and known: the same on the population's samples. LR(x, z) = (p(x|t) / p(x)) /
    (p(z|t) / p(z)) is to be at least gamma (Zarifzadeh et al., eq. 1-3).
    """
    ratio = target / prior(references)
    ordered = np.sort(population / prior(known))
    found: Array = np.searchsorted(ordered, ratio / GAMMA, "right") / len(ordered)
    return found


def prior(references: Array) -> Array:
    """Return p(x) = ((1 + a) p_out(x) + 1 - a) / 2 from models that never saw x (appendix B)."""
    found: Array = ((1 + OFFLINE) * references.mean(0) + 1 - OFFLINE) / 2
    return found
