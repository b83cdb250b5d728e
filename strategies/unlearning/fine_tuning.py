"""Fine-tuning: plain rounds on the retained data alone, the baseline that others must beat.

What is not trained on is slowly overwritten (catastrophic forgetting; Golatkar et al. 2020 and Jia
et al. 2023 compare with it). Masked as the parent.
"""

from typing import ClassVar

from strategies.unlearning.base import Unlearning


class FineTuning(Unlearning):
    """Plain rounds on the retained data: what is not trained on is slowly overwritten."""

    fits = frozenset({"batch", "density"})
    rounds: ClassVar[int] = 8
