"""NegGrad+ (Kurmanji et al., NeurIPS 2023): down on the retained data, up on the rest, in one loss.

Clients minimise alpha L(D_r) - (1 - alpha) L(D_f); `forget_weight` is 1 - alpha. A batch whose
loss is beyond a bound, by default twice chance's, is climbed no further.
"""

from typing import ClassVar

from pydantic import Field

from fedsparse.config import Finite
from strategies.unlearning.base import Unlearning, UnlearningSettings


class NegGradSettings(UnlearningSettings):
    """Keys of `[strategy]` for neggrad."""

    forget_weight: Finite = Field(
        default=0.05, ge=0, lt=1, description="of the forgotten data's loss; the rest's has 1 less"
    )
    bound: Finite = Field(
        default=2.0, gt=0, le=100, description="loss that is climbed no further, in log C"
    )


class NegGrad(Unlearning):
    """Train on retained data less the gradients of the data to be forgotten."""

    Settings = NegGradSettings
    program = "neggrad"
    targets: ClassVar[frozenset[str]] = frozenset({"class", "samples"})
    needs_forgotten: ClassVar[bool] = True
    needs_classes: ClassVar[bool] = True
    knob: ClassVar[str] = "forget_weight"
    grid: ClassVar[tuple[float, ...]] = (0.01, 0.03, 0.1, 0.3)
    rounds: ClassVar[int] = 4
