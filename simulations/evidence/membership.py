"""The paper's membership attack: a support vector machine on the confidence of the true label.

Jia et al. 2023, section 3 and appendix: the attacker learns to tell retained samples from test
samples, and unlearning works as well as it calls the forgotten ones never seen.
"""

from dataclasses import dataclass

import numpy as np

from simulations.evidence.measures import Answers, true_confidence

TELLING = 0.55
"""What the attacker must get right of the samples it learnt from to be listened to."""

MOST = 2_000
"""Samples of each kind that the attacker learns from: its cost grows with their square."""


@dataclass(frozen=True)
class Attack:
    """What the attacker says, and what that is worth.

    efficacy: the share of forgotten samples that it calls non-members; success: the share of what
    it learnt from that it gets right, where a coin gets a half.
    """

    efficacy: float
    success: float


def attack(
    retained: Answers, test: Answers, forgotten: Answers, rng: np.random.Generator
) -> Attack | None:
    """Return the attack on a model: an SVC with C = 3, an RBF kernel and gamma 'auto'.

    It learns from as many members as non-members. None where one of the three sets is empty.
    """
    from sklearn.svm import SVC

    count = min(len(retained), len(test), MOST)
    if not count or not len(forgotten):
        return None
    members = retained.take(np.sort(rng.permutation(len(retained))[:count]))
    others = test.take(np.sort(rng.permutation(len(test))[:count]))
    feature = np.concatenate([true_confidence(members), true_confidence(others)])[:, None]
    attacker = SVC(C=3, kernel="rbf", gamma="auto")
    truth = np.repeat([1, 0], count)
    attacker.fit(feature, truth)
    called = attacker.predict(true_confidence(forgotten)[:, None])
    return Attack(float(np.mean(called == 0)), float(np.mean(attacker.predict(feature) == truth)))
