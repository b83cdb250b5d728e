"""How a round's models become one: the seam between methods and rules of aggregation.

A method asks `SparseStrategy.mean` for the mean of its replies. That is the exact masked mean of
`strategies.sums` unless the configuration names another rule, such as a robust or a private one.
"""

from collections.abc import Sequence
from typing import Protocol

from fedsparse.sparsity import State
from strategies.private import Private
from strategies.replies import Before as Before
from strategies.replies import Reply
from strategies.robust import Robust
from strategies.sums import mean_of
from strategies.task import Task


class Rule(Protocol):
    """Turns a round's replies into the tensors of the next model."""

    def __call__(self, replies: Sequence[Reply], before: Before) -> State:
        """Return the next values of `before.shared`, zero where the mask prunes."""


def rule_of(task: Task) -> Rule | None:
    """Return the rule that the configuration names; None for the exact mean.

    Under a rule each reply is wanted; none is added up where it was trained.
    """
    if task.config.privacy.clip is not None:
        return Private(task)
    rule = task.config.robust.rule
    return None if rule == "mean" else Robust(task)


def exact_mean(replies: Sequence[Reply], before: Before) -> State:
    """Return the mean of the models, weighted by their samples."""
    return mean_of(replies, before.shared, before.mask)
