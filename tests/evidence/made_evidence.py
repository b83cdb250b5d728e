"""Evidence made by hand: a model that is like three retrained ones, unless said otherwise."""

from dataclasses import asdict
from typing import Any

from simulations.evidence.costs import Cost, costs
from simulations.evidence.distance import Distance
from simulations.evidence.measures import Confidence
from simulations.evidence.record import Evidence, Measured
from simulations.evidence.roc import Roc
from simulations.evidence.spread import spread


def measured(
    unlearned: float, retrained: tuple[float, ...] = (), original: float = 0.0
) -> Measured:
    """Return a measure; the first retrained value is of the same seed."""
    own = retrained[0] if retrained else None
    gap = None if own is None else abs(unlearned - own)
    return Measured(original, unlearned, own, spread(retrained), gap)


def curve(auc: float, half: float = 0.05) -> Roc:
    """Return a ROC of a given area, with an interval."""
    return Roc(auc, auc - half, auc + half, 0.02, 0.08, 90, 90, (0.0, 0.5, 1.0), (0.0, auc, 1.0))


USUAL = {
    "ua": measured(0.05, (0.05, 0.06, 0.055)),
    "mia": measured(0.11, (0.10, 0.12, 0.11)),
    "ra": measured(0.99, (0.99, 0.995, 0.99), 1.0),
    "ta": measured(0.94, (0.94, 0.945, 0.94), 0.95),
    "lira_auc": measured(0.51, (0.50, 0.51, 0.49), 0.7),
}


def evidence(kind: str = "samples", references: int = 2, **changes: Measured) -> Evidence:
    """Return evidence with other values for some measures."""
    measures = {**USUAL, **changes}
    lira = measures.get("lira_auc")
    attacks = {}
    if lira is not None:
        attacks["lira"] = {"original": curve(0.7), "unlearned": curve(lira.unlearned)}
    return Evidence(
        kind=kind,
        samples={"forgotten": 90, "retained": 900, "test": 300, "members": 90, "unseen": 90},
        measures=measures,
        gaps={"original": 0.04, "unlearned": 0.004},
        attacks=attacks,
        confidence={"unlearned": {"forgotten": Confidence(0.9, 0.95, 0.5, 0.99)}},
        distances={"unlearned": Distance(0.5, 0.01, 0.02, None)},
        references=references,
        identical_to_retrained=None,
        identical_to_original=False,
    )


def record(found: Evidence | None = None, **changes: Any) -> dict[str, Any]:
    """Return what `unlearning.json` holds."""
    cost = costs(Cost(3, 2e6, 1e9, 2.0), [Cost(6, 4e6, 2e9, 4.0)], Cost(20, 16e6, 8e9, 12.0, 700.0))
    tried = [
        {"value": 0.001, "gap": 0.3, "measures": {"ua": 0.1}},
        {"value": 0.01, "gap": 0.004},
        {"value": 9.0, "gap": None, "error": "the loss is nan; lower client.lr"},
    ]
    wanted = {"ua": 0.05, "mia": 0.1, "ra": 0.99, "ta": 0.94}
    search = {"knob": "gamma", "reference": "the run itself", "chosen": 0.01, "wanted": wanted}
    return {
        "parent": {"path": "runs/demo", "model": "ab" * 32},
        "target": {"clients": None, "classes": None, "samples": "3,7-9"},
        "method": {"name": "l1-sparse", "gamma": 0.01},
        "certificate": "approximate",
        "search": {**search, "tried": tried},
        "costs": asdict(cost),
        "notes": ["left out: a method that cannot"],
        "evidence": (evidence() if found is None else found).plain(),
        **changes,
    }
