"""The page about an unlearned model: what was asked, the verdict, and all that it rests on.

It is made from `unlearning.json` alone, in the style of a run's report, and works offline. All
that comes from files is escaped.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from fedsparse import number_set
from fedsparse.errors import RunFolderError
from fedsparse.runs import RunFolder
from fedsparse.runs.atomic import write_file, writing
from simulations import pages, units
from simulations.evidence import charts
from simulations.evidence.examine import MEASURES
from simulations.evidence.record import PAPER, Evidence, Measured
from simulations.evidence.verdict import MARGINS, verdict
from simulations.figures import shortened
from simulations.results import number

RECORD, PAGE = "unlearning.json", "unlearning_report.html"

TITLES = {
    "exact": "Forgotten exactly",
    "unused": "Nothing to change",
    "alike": "Not told apart from retraining",
    "remembers": "Still remembers",
    "over-forgets": "Over-forgets",
    "undecided": "Undecided",
    "not-compared": "Not compared",
    "contradicted": "Certificate contradicted",
}
SAYS = {
    "alike": "like retraining",
    "coarse": "too coarse to tell",
    "remembers": "still remembers",
    "over-forgets": "over-forgets",
    "damaged": "lost too much",
}
GOOD = {"exact", "unused", "alike"}

CERTIFICATES = {
    "exact-rerun": "the run was rewound to before the target's first influence, and rerun without "
    "it: the result is that of a run that never had the target.",
    "no-op-unused": "the target never had an influence on this model, so that nothing was changed.",
    "approximate": "the model was changed to be like a retrained one. How like is what the tests "
    "below measure; there is no proof.",
}

LIMITS = (
    "No test proves forgetting. They show what these attackers found; others may find more.",
    "A model may be like a retrained one on average and still hold single samples.",
    "What the target changed elsewhere, in models that were already handed out, in personal models "
    "kept on devices, in logs and backups, is outside of this model and of this page.",
    "Forgetting itself may tell: who holds both the original and the unlearned model can compare "
    "them, and see what was asked to be forgotten.",
    "Intervals over samples say nothing of other seeds, and intervals over few seeds are wide.",
)

_COSTS = (
    ("rounds", "Rounds"),
    ("bytes", "Bytes, both ways"),
    ("flops", "Work of training"),
    ("seconds", "Time here"),
    ("simulated_seconds", "Time on the devices' clock"),
    ("joules", "Energy of the devices"),
)
_WHOSE = {
    "original": "Original",
    "unlearned": "Unlearned",
    "retrained": "Retrained",
    "reference": "Retrained with another seed, mean",
}
_SETS = {
    "forgotten": "Forgotten",
    "retained": "Retained",
    "test": "Test",
    "test_forgotten": "Test, forgotten classes",
    "triggered": "With the trigger",
}


def write_page(folder: Path) -> Path:
    """Write the page of an unlearned run beside its record, and return its path.

    Raises RunFolderError for a folder without a whole record, MissingExtraError without the extra
    `report`.
    """
    run = RunFolder.open(folder)
    record = run.read_json(RECORD, "only runs of `fedsparse unlearn` have one")
    if not isinstance(record, dict):
        raise RunFolderError(f"'{folder / RECORD}' is no JSON object; unlearn into another --out")
    page = render(record)
    with writing(folder):
        write_file(folder / PAGE, page.encode())
    return folder / PAGE


def render(record: Mapping[str, Any]) -> str:
    """Return the page about a record as HTML.

    Its keys: `parent`, `target`, `method`, `certificate`, and `search`, `costs`, `evidence` and
    `notes`, which may be None. Raises RunFolderError for evidence that cannot be read, and
    MissingExtraError without the extra `report`.
    """
    found = record.get("evidence")
    evidence = Evidence.read(found) if isinstance(found, Mapping) else None
    certificate = str(record.get("certificate"))
    search = record.get("search")
    search = search if isinstance(search, Mapping) else None
    tried = _tried(search)
    drawn = {} if evidence is None else charts.all_charts(evidence, search)
    judged = verdict(evidence, certificate)
    return pages.render(
        "unlearning.html.jinja",
        {chart.id: chart.figure for chart in drawn.values()},
        what="the page about an unlearned model",
        title=f"Forgetting {target_text(record.get('target'))}",
        asked=_asked(record),
        certificate=certificate,
        certified=CERTIFICATES.get(certificate, "this certificate is not known."),
        verdict=judged,
        verdict_title=TITLES[judged.outcome],
        says=SAYS,
        good=judged.outcome in GOOD,
        table=[] if evidence is None else _table(evidence),
        gaps={} if evidence is None else _gaps(evidence),
        seeds=_seeds(evidence),
        charts={name: drawn.get(name) for name in ("measures", "lira", "rmia", "search")},
        costs=_cost_table(record.get("costs")),
        estimated=_estimated(record.get("costs")),
        notes=[str(note) for note in record.get("notes") or ()],
        search=search,
        tried=tried,
        methods=len({row["method"] for row in tried if row["method"]}) > 1,
        distances=[] if evidence is None else _distances(evidence),
        confidence=[] if evidence is None else _confidence(evidence),
        sizes=[] if evidence is None else _sizes(evidence),
        margins=[
            (MEASURES[key][0], _points(m.least), _points(m.alone), _points(m.most), why)
            for key, (m, why) in MARGINS.items()
            if evidence is not None and key in evidence.measures
        ],
        limits=LIMITS,
    )


def target_text(target: Any) -> str:
    """Return what was to be forgotten in words: `client 3`, `classes 0, 2-4`, `120 samples`."""
    if not isinstance(target, Mapping):
        return str(target)
    if isinstance(words := target.get("words"), str):
        return words
    parts = []
    for key, one, many in (("clients", "client", "clients"), ("classes", "class", "classes")):
        if text := target.get(key):
            shown = shortened(str(text).replace(",", ", "), 60)
            parts.append(f"{one if str(text).isdecimal() else many} {shown}")
    if text := target.get("samples"):
        count = _count(text)
        parts.append("1 sample" if count == 1 else f"{count:,} samples")
    return " and ".join(parts) or "nothing"


def _count(numbers: Any) -> int:
    """Return how many numbers a set holds, as text, as a list, or counted already."""
    if isinstance(numbers, list | int):
        return numbers if isinstance(numbers, int) else len(numbers)
    try:
        return len(number_set.parse(str(numbers)))
    except ValueError:
        return 0


def _asked(record: Mapping[str, Any]) -> list[tuple[str, str]]:
    """Return what was asked for, as pairs of a name and a text."""
    parent, method = record.get("parent"), record.get("method")
    told = dict(parent) if isinstance(parent, Mapping) else {"path": parent}
    named = method.get("name") if isinstance(method, Mapping) else method
    rows = [
        ("Original run", str(told.get("path"))),
        ("Its model", str(told["model"]) if told.get("model") else ""),
        ("To forget", target_text(record.get("target"))),
        ("Method", str(named)),
    ]
    if isinstance(method, Mapping):
        settings = {k: v for k, v in method.items() if k not in ("name", "reason")}
        told_settings = [f"{key} = {value}" for key, value in settings.items() if value is not None]
        rows += [
            ("Its settings", ", ".join(told_settings)),
            ("Why so", str(method.get("reason", ""))),
        ]
    return [(name, text) for name, text in rows if text]


def _table(evidence: Evidence) -> list[dict[str, str]]:
    """Return the measures in words and numbers."""
    return [
        {
            "name": MEASURES[key][0],
            "why": MEASURES[key][1],
            "original": _shown(key, measured.original),
            "unlearned": _shown(key, measured.unlearned),
            "retrained": _shown(key, measured.retrained),
            "spread": _spread(key, measured),
            "gap": _gap(key, measured.gap),
        }
        for key, measured in evidence.measures.items()
        if key in MEASURES
    ]


def _shown(key: str, value: float | None) -> str:
    if value is None:
        return units.NONE
    return f"{value:g}" if key == "relearn" else f"{100 * value:.1f} %"


def _spread(key: str, measured: Measured) -> str:
    spread = measured.spread
    if spread is None:
        return units.NONE
    factor, unit = (1, "") if key == "relearn" else (100, " %")
    text = f"{factor * spread.mean:.1f}"
    return f"{text}{unit}" if spread.ci95 is None else f"{text} ± {factor * spread.ci95:.1f}{unit}"


def _gap(key: str, gap: float | None) -> str:
    if gap is None:
        return units.NONE
    return f"{gap:.3g}" if key == "relearn" else f"{100 * gap:.1f}"


def _gaps(evidence: Evidence) -> dict[str, str]:
    return {name: f"{100 * gap:.2f}" for name, gap in evidence.gaps.items()}


def _seeds(evidence: Evidence | None) -> int:
    """Return over how many retrained models the intervals are, at most."""
    measures = {} if evidence is None else evidence.measures
    spreads = [m.spread.models for m in measures.values() if m.spread is not None]
    return max(spreads, default=0)


def _cost_table(costs: Any) -> list[list[str]]:
    """Return costs as lines: name, unlearning, search, retraining, ratio."""
    if not isinstance(costs, Mapping):
        return []
    columns = [costs.get(name) for name in ("unlearning", "search", "retraining")]
    ratios = costs.get("ratio")
    ratios = ratios if isinstance(ratios, Mapping) else {}
    lines = []
    for key, name in _COSTS:
        values = [number(each.get(key)) if isinstance(each, Mapping) else None for each in columns]
        if all(value is None for value in values):
            continue
        ratio = number(ratios.get(key))
        said = units.NONE if ratio is None else f"{units.digits(ratio)} ×"
        lines.append([name, *(_cost(key, value) for value in values), said])
    return lines


def _estimated(costs: Any) -> bool:
    """Tell whether the original's training stands for retraining, which was not done."""
    return isinstance(costs, Mapping) and costs.get("retraining_of") == "the original"


def _cost(key: str, value: float | None) -> str:
    if value is None:
        return units.NONE
    if key == "rounds":
        return f"{value:.0f}"
    if key.endswith("seconds"):
        return units.duration(value)
    return units.in_units(
        value, {"flops": units.FLOPS, "joules": units.JOULES}.get(key, units.BYTES)
    )


def _tried(search: Mapping[str, Any] | None) -> list[dict[str, str]]:
    """Return the strengths that were tried, each with its gap and measures, and what was wanted."""
    chosen = None if search is None else search.get("chosen")
    lines = []
    for row in charts.rows_of(search):
        remark = "chosen" if row.get("value") == chosen else ""
        if error := row.get("error"):
            remark = f"failed: {error}"
        method = str(row.get("method") or "")
        lines.append(_try(str(row.get("value")), method, row, remark))
    wanted = None if search is None else search.get("wanted")
    if lines and isinstance(wanted, Mapping):
        lines.append(_try("wanted", "", {"measures": wanted}, ""))
    return lines


def _try(value: str, method: str, row: Mapping[str, Any], remark: str) -> dict[str, str]:
    measures = row.get("measures")
    measures = measures if isinstance(measures, Mapping) else {}
    shown = {key: _shown(key, number(measures.get(key))) for key in PAPER}
    gap = _gap("", number(row.get("gap")))
    return {"value": value, "method": method, "gap": gap, "remark": remark, **shown}


def _distances(evidence: Evidence) -> list[list[str]]:
    return [
        [
            _WHOSE.get(name, name),
            units.NONE if each.weights is None else units.digits(each.weights),
            units.NONE if each.divergence is None else f"{units.digits(each.divergence)} bit",
            units.percent(each.disagreement),
            units.percent(each.overlap),
        ]
        for name, each in evidence.distances.items()
    ]


def _confidence(evidence: Evidence) -> list[list[str]]:
    return [
        [
            _WHOSE.get(name, name),
            _SETS.get(which, which),
            *(f"{100 * value:.1f} %" for value in (each.mean, each.median, each.low, each.high)),
        ]
        for name, sets in evidence.confidence.items()
        for which, each in sets.items()
    ]


def _sizes(evidence: Evidence) -> list[tuple[str, str]]:
    names = {**_SETS, "members": "Forgotten, attacked", "unseen": "Never seen, attacked"}
    return [
        (said, f"{evidence.samples[key]:,}")
        for key, said in names.items()
        if evidence.samples.get(key)
    ]


def _points(value: float) -> str:
    return f"{100 * value:g}"
