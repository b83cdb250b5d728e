"""What an audit found, as values that go to JSON and come back from it."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any, Self

from pydantic import TypeAdapter, ValidationError

from fedsparse.errors import RunFolderError
from fedsparse.runs.tables import plain
from simulations.evidence.distance import Distance
from simulations.evidence.measures import Confidence
from simulations.evidence.roc import Roc
from simulations.evidence.spread import Spread

PAPER = ("ua", "mia", "ra", "ta")
"""The measures whose gaps are averaged (Jia et al. 2023, table 2)."""


@dataclass(frozen=True)
class Measured:
    """A measure of the original, the unlearned and the retrained model; None where there is none.

    `spread` is over all retrained models, of this seed and of others. `gap` is the unlearned
    model's distance from the retrained one, or from their mean where this seed has none.
    """

    original: float | None
    unlearned: float | None
    retrained: float | None
    spread: Spread | None
    gap: float | None


@dataclass(frozen=True)
class Evidence:
    """All that an audit found; no key is there for what was not measured.

    measures: by name, see `examine.MEASURES`; gaps: mean gap over PAPER of the original and the
    unlearned model; attacks: ROC of lira and rmia on the original, unlearned and retrained one;
    confidence: by model and set; distances: to the retrained model, of the original, the
    unlearned and, as a yardstick, another retrained one. `references` counts retrained models of
    other seeds. Bits are identical where every value of model and mask is; None where no
    retrained run did the same work, as an approximate method does not.
    """

    kind: str
    samples: dict[str, int]
    measures: dict[str, Measured]
    gaps: dict[str, float]
    attacks: dict[str, dict[str, Roc]]
    confidence: dict[str, dict[str, Confidence]]
    distances: dict[str, Distance]
    references: int
    identical_to_retrained: bool | None
    identical_to_original: bool

    def plain(self) -> dict[str, Any]:
        """Return the evidence as strict JSON holds it."""
        found = plain(asdict(self))
        return dict(found)

    @classmethod
    def read(cls, found: Mapping[str, Any]) -> Self:
        """Return evidence from its plain form; raises RunFolderError for anything else."""
        try:
            return TypeAdapter(cls).validate_python(dict(found))
        except (ValidationError, TypeError, ValueError) as error:
            raise RunFolderError(
                "the evidence is damaged or of another version; unlearn again into another --out"
            ) from error
