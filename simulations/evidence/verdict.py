"""The verdict on an unlearned model in plain words; it claims no more than certificate and tests.

A measure is held against retrained models: where several were made, against the interval in which
one more of them would lie; else against a stated margin. Both are never below the least margin.
"""

from collections.abc import Callable
from dataclasses import dataclass

from simulations.evidence.examine import MEASURES
from simulations.evidence.membership import TELLING
from simulations.evidence.record import Evidence, Measured

EXACT, UNUSED, APPROXIMATE = "exact-rerun", "no-op-unused", "approximate"

ENOUGH = 3
"""Retrained models from which on their own spread says what is usual: Student's t knows what few
models are worth, and its quantile for two is 12.7."""


@dataclass(frozen=True)
class Margin:
    """How far a measure may be from retraining: at least `least`, `alone` without a spread.

    Where retrained models vary by more than `most`, the test is too coarse to tell anything.
    """

    least: float
    alone: float
    most: float


MARGINS: dict[str, tuple[Margin, str]] = {
    "ua": (
        Margin(0.02, 0.05, 0.15),
        "published methods lie 1 to 5 points from retraining; two are below what seeds change",
    ),
    "mia": (Margin(0.05, 0.10, 0.20), "the attacker's share moves by several points between seeds"),
    "ra": (Margin(0.03, 0.05, 0.10), "retraining itself gives and takes a few points here"),
    "ta": (Margin(0.02, 0.03, 0.10), "what a user would notice of new data"),
    "ua_test": (Margin(0.05, 0.10, 0.20), "as UA, on the fewer test samples"),
    "backdoor": (Margin(0.10, 0.10, 0.30), "a trigger that works once in ten is still a trigger"),
    "lira_auc": (
        Margin(0.02, 0.05, 0.15),
        "5 points above a coin is little even for an attacker with perfect references",
    ),
    "rmia_auc": (Margin(0.02, 0.05, 0.15), "as LiRA"),
}
"""Margins as shares of one, and why."""

FORGETTING = ("ua", "mia", "ua_test")
"""Measures that are low where the target is remembered, and high where it is over-forgotten."""
KNOWING = ("backdoor", "lira_auc", "rmia_auc")
"""Measures that are high where the target is remembered."""
NAMELESS = ("ua", "ua_test")
"""Measures that are known without a retrained model where a class is forgotten: nearly 100 %."""
USEFUL = ("ra", "ta")
"""Measures that must not fall."""
OVER = {"over-forgets": "over-forgets", "damaged": "over-forgets"}
"""What was to stay and is lost has been forgotten too much."""


@dataclass(frozen=True)
class Finding:
    """What one test says: `remembers`, `over-forgets`, `damaged`, `alike` or `coarse`."""

    measure: str
    says: str
    text: str


@dataclass(frozen=True)
class Verdict:
    """An outcome, a sentence that says it, all findings, and what they rest on.

    outcome: `exact`, `unused`, `alike`, `remembers`, `over-forgets`, `undecided`, `not-compared` or
    `contradicted`. Of an approximate model the first of its flags, if it has any.
    """

    outcome: str
    headline: str
    flags: tuple[str, ...]
    findings: tuple[Finding, ...]
    rests_on: str


def verdict(evidence: Evidence | None, certificate: str) -> Verdict:
    """Return the verdict on an audit's evidence, given what the unlearning run certifies.

    Without evidence nothing but the certificate is said.
    """
    if evidence is None:
        outcome = {EXACT: "exact", UNUSED: "unused"}.get(certificate, "not-compared")
        return Verdict(outcome, UNEXAMINED[outcome], (), (), "The model was not examined.")
    findings = tuple(
        finding
        for key, measured in evidence.measures.items()
        if key in MARGINS and (finding := _finding(key, measured, evidence)) is not None
    )
    said = {OVER.get(finding.says, finding.says) for finding in findings}
    flags = tuple(flag for flag in ("remembers", "over-forgets") if flag in said)
    certified = _certified(evidence, certificate)
    outcome = certified or _judged(evidence, findings, flags)
    rests_on = CERTIFIED if certified else _rests(evidence)
    headline = _headline(outcome, evidence, findings)
    return Verdict(outcome, headline, flags, findings, rests_on)


def _certified(evidence: Evidence, certificate: str) -> str | None:
    """Return the outcome that follows from the certificate; None for an approximate one."""
    if certificate == EXACT:
        return "contradicted" if evidence.identical_to_retrained is False else "exact"
    if certificate == UNUSED:
        return "unused" if evidence.identical_to_original else "contradicted"
    return None


def _judged(evidence: Evidence, findings: tuple[Finding, ...], flags: tuple[str, ...]) -> str:
    """Return the outcome of the tests alone."""
    if flags:
        return flags[0]
    if all(measured.spread is None for measured in evidence.measures.values()):
        return "not-compared"
    telling = {finding.measure for finding in findings if finding.says == "alike"}
    return "alike" if telling & {*FORGETTING, *KNOWING} else "undecided"


def tolerance(key: str, measured: Measured) -> tuple[float, bool]:
    """Return how far a measure may be from retraining, and whether seeds say so."""
    margin, spread = MARGINS[key][0], measured.spread
    if spread is None or spread.models < ENOUGH or spread.next95 is None:
        return margin.alone, False
    return max(margin.least, spread.next95), True


def base(key: str, measured: Measured) -> float | None:
    """Return what a measure is held against: the retrained models' mean, a coin for attacks.

    None where there is nothing.
    """
    if measured.spread is not None:
        return measured.spread.mean
    return 0.5 if key.endswith("_auc") else measured.retrained


def _finding(key: str, measured: Measured, evidence: Evidence) -> Finding | None:
    wanted, ours = base(key, measured), measured.unlearned
    if wanted is None and evidence.kind == "class" and key in NAMELESS:
        wanted = 1.0  # a model that never saw a class hardly ever names it
    if wanted is None or ours is None:
        return None
    allowed, from_seeds = tolerance(key, measured)
    name = MEASURES[key][0]
    against = "retrained"
    if measured.spread is None:
        against = "a coin" if key.endswith("_auc") else "a model that never saw the class"
    said = f"{name}: {_percent(ours)}, {against} {_percent(wanted)}"
    if allowed > MARGINS[key][0].most:
        text = f"{said}; retrained models vary by {_points(allowed)}, too much to tell"
        return Finding(key, "coarse", text)
    if key == "mia" and (right := _attacker(evidence)) < TELLING:
        text = f"{said}; the attacker is right about {_percent(right)} of what it knows: a coin"
        return Finding(key, "coarse", text)
    rule = "where one more retrained model would lie" if from_seeds else "the stated margin"
    if from_seeds and allowed <= MARGINS[key][0].least:
        rule = "the least margin"
    text = f"{said}; allowed {_points(allowed)}: {rule}"
    return Finding(key, _says(key, ours - wanted, allowed, evidence), text)


def _attacker(evidence: Evidence) -> float:
    """Return how often the membership attack on the unlearned model is right on its own samples."""
    measured = evidence.measures.get("mia_success")
    return 1.0 if measured is None or measured.unlearned is None else measured.unlearned


def _says(key: str, apart: float, allowed: float, evidence: Evidence) -> str:
    """Return what a difference to retraining means."""
    if abs(apart) <= allowed or not _certain(key, evidence):
        return "alike"
    if key in USEFUL:
        return "damaged" if apart < 0 else "alike"
    remembered = apart > 0 if key in KNOWING else apart < 0
    return "remembers" if remembered else _beyond(key)


def _beyond(key: str) -> str:
    """Return what it means to be further from the target than retraining."""
    return "alike" if key == "backdoor" else "over-forgets"


def _certain(key: str, evidence: Evidence) -> bool:
    """Return whether an attack's own interval leaves a coin out; other measures have none."""
    name = key.removesuffix("_auc")
    curve = evidence.attacks.get(name, {}).get("unlearned")
    return name == key or curve is None or not curve.low <= 0.5 <= curve.high


def _headline(outcome: str, evidence: Evidence, findings: tuple[Finding, ...]) -> str:
    return HEADLINES[outcome](evidence, findings)


CERTIFIED = (
    "This follows from how the model was made and from its bits. The measures below are shown "
    "beside it, and decide nothing."
)
BY_CONSTRUCTION = (
    "Exact by the way it was made: what was there before the target's first influence was kept, "
    "and the rest was run again without it."
)
UNEXAMINED = {
    "exact": BY_CONSTRUCTION,
    "unused": "Nothing to forget: the target never had an influence on this model.",
    "not-compared": (
        "Not examined: an approximate method was used, and nothing says whether the target is "
        "forgotten."
    ),
}


def _exact(evidence: Evidence, findings: tuple[Finding, ...]) -> str:
    if evidence.identical_to_retrained:
        return (
            "Exact: model and mask are bit for bit those of a run that never had the target, which "
            "was made to compare."
        )
    return f"{BY_CONSTRUCTION} There was no fresh run to compare the bits with."


def _unused(evidence: Evidence, findings: tuple[Finding, ...]) -> str:
    return f"{UNEXAMINED['unused']} It is unchanged, bit for bit."


def _contradicted(evidence: Evidence, findings: tuple[Finding, ...]) -> str:
    return (
        "The certificate does not hold: the model's bits differ from what it promises. Do not rely "
        "on this model."
    )


def _names(findings: tuple[Finding, ...], *says: str) -> str:
    return ", ".join(MEASURES[each.measure][0] for each in findings if each.says in says)


def _alike(evidence: Evidence, findings: tuple[Finding, ...]) -> str:
    blind = _names(findings, "coarse")
    text = "It cannot be told from retraining by these tests, which is no proof that it is alike."
    return text + (f" Too coarse to tell here: {blind}." if blind else "")


def _remembers(evidence: Evidence, findings: tuple[Finding, ...]) -> str:
    text = f"It still remembers the target, as these tests show: {_names(findings, 'remembers')}."
    if not any(finding.says in OVER for finding in findings):
        return text
    return f"{text} {_over(evidence, findings)}"


def _over(evidence: Evidence, findings: tuple[Finding, ...]) -> str:
    text = "It over-forgets."
    if marked := _names(findings, "over-forgets"):
        text += (
            " It knows less of the target than a model that never had it, which marks the target "
            f"and is no privacy: {marked}."
        )
    if lost := _names(findings, "damaged"):
        text += f" What was to stay is lost: {lost} fell below retraining."
    return text


def _undecided(evidence: Evidence, findings: tuple[Finding, ...]) -> str:
    return (
        "Undecided: the tests that could show what is remembered are too coarse here, as retrained "
        "models vary too much. Make more reference runs."
    )


def _not_compared(evidence: Evidence, findings: tuple[Finding, ...]) -> str:
    return (
        "Not compared: without a retrained model no test can say whether the target is forgotten. "
        "Make reference runs, or forget exactly."
    )


HEADLINES: dict[str, Callable[[Evidence, tuple[Finding, ...]], str]] = {
    "exact": _exact,
    "unused": _unused,
    "contradicted": _contradicted,
    "alike": _alike,
    "remembers": _remembers,
    "over-forgets": _over,
    "undecided": _undecided,
    "not-compared": _not_compared,
}


def _rests(evidence: Evidence) -> str:
    """Return a sentence on how many retrained models the verdict rests on."""
    own = any(measured.retrained is not None for measured in evidence.measures.values())
    others = evidence.references
    if not own and not others:
        return "No retrained model was there to compare with."
    parts = ["the retrained model of this seed"] if own else []
    parts += [f"{others} of other seeds"] if others else []
    count = own + others
    text = f"It is held against {' and '.join(parts)}"
    if count < ENOUGH:
        return f"{text}: too few to know how much they vary, so that stated margins stand for it."
    return f"{text}, and against how much they vary."


def _percent(value: float) -> str:
    return f"{100 * value:.1f} %"


def _points(value: float) -> str:
    return f"{100 * value:.1f} points"
