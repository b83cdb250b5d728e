"""One request to forget, from a finished run to a new folder with its record and evidence.

The parent is never written to. Retrained runs and tries lie in a folder beside the new one, so that
the same command, given again after an interruption, goes on where it stopped.
"""

from collections.abc import Collection, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

from fedsparse import data
from fedsparse.errors import ConfigError, DataError, FedSparseError, RunFolderError
from fedsparse.runs import RunFolder
from simulations.evidence import audit, costs, page
from simulations.evidence.examine import subject_of
from simulations.evidence.record import Evidence
from simulations.evidence.verdict import APPROXIMATE, Verdict, verdict
from simulations.report import write_report
from simulations.unlearning import exact, reference, tries
from simulations.unlearning.reference import Reference
from simulations.unlearning.target import Target, check_changes, forgotten_before, without
from simulations.unlearning.tries import AUTO, Tried, Watch
from strategies import server_app

EXACT = "exact"
FAILED = 3
LOOKED_AT = 4_000
"""Samples of a set by which tries are told apart: shares of them are within 1.6 points."""

Record = dict[str, Any]


@dataclass(frozen=True)
class Request:
    """What is asked: a target, a method with its settings, and what to compare with."""

    parent: Path
    target: Target
    method: str
    out: Path
    changes: tuple[str, ...] = ()
    rounds: int | None = None
    budget: float = 1.0
    retrain: bool = False
    references: int = 0
    given: Path | None = None

    @property
    def home(self) -> Path:
        """Where tries and retrained runs lie."""
        place = self.out.absolute()
        return place.with_name(f"{place.name}-trials")


@dataclass(frozen=True)
class Unlearned:
    """What came of a request: its record, the verdict, and the page if it could be made."""

    record: Record
    verdict: Verdict
    summary: dict[str, Any]
    page: Path | None
    notes: tuple[str, ...] = ()

    @property
    def failed(self) -> bool:
        """Whether an exact result is not what it has to be."""
        return self.verdict.outcome == "contradicted"


def unlearn(request: Request, *, command: str, watch: Watch) -> Unlearned:
    """Forget, examine what came of it, and write the record and its page.

    Raises ConfigError and DataError for what cannot be forgotten so, RunFolderError for a run that
    is not finished, or a place that is taken.
    """
    parent = RunFolder.open(request.parent)
    parent.summary()
    if parent.command == server_app.COMMAND:
        raise RunFolderError(
            f"'{request.parent}' is a run of `{server_app.COMMAND}`: its clients are not ours to "
            "simulate; start a run with [forget] the same way"
        )
    _check_new(parent, request)
    check_changes(request.changes, exact=request.method == EXACT)
    notes: list[str] = []
    compared = partial(
        reference.retrained,
        parent,
        request.target,
        request.home,
        command=command,
        watch=watch,
    )
    if request.method == EXACT:
        record, searched, plan = _exact(parent, request, command, watch)
        retrained = compared(_numbers(request)) if request.retrain or request.references else []
    else:
        plan = None
        retrained = compared(_numbers(request)) if request.retrain or request.references else []
        record, searched = _approximate(parent, request, retrained, command, watch, notes)
    if request.given is not None:
        given = reference.check_given(parent, request.target, request.given)
        retrained = [given, *retrained]
    child = RunFolder.open(request.out)
    evidence = _evidence(parent, child, retrained, request, notes)
    retraining = costs.cost_of(retrained[0] if retrained else reference.root_of(parent))
    after = None if plan is None else plan.back
    paid = costs.costs(costs.cost_of(child, after), searched, retraining)
    record |= {
        "costs": asdict(paid) | {"retraining_of": "the run" if retrained else "the original"},
        "evidence": None if evidence is None else evidence.plain(),
        "notes": notes,
    }
    judged = verdict(evidence, record["certificate"])
    record["verdict"] = {"outcome": judged.outcome, "headline": judged.headline}
    child.write_json(page.RECORD, record)
    return Unlearned(record, judged, child.summary(), _page(request.out, notes), tuple(notes))


def _numbers(request: Request) -> list[int]:
    """Return which retrained runs are made: that of the parent's seed, and others."""
    others = range(1, request.references + 1)
    return [*([0] if request.retrain else []), *others]


def _check_new(parent: RunFolder, request: Request) -> None:
    """Refuse what is forgotten already by a method that certifies less, and a foreign folder."""
    if forgotten_before(parent.config, request.target) and parent.config.strategy.get("parent"):
        raise ConfigError(
            f"{request.target.words} is forgotten already in '{parent.path}', approximately by "
            f"'{parent.config.strategy['name']}'; for certainty unlearn exactly from "
            f"'{parent.config.strategy['parent']}'"
        )
    if request.out.resolve() == parent.path.resolve():
        raise ConfigError("--out is the run itself, which is never changed; choose another --out")


def _begin(parent: RunFolder, request: Request, certificate: str, method: Record) -> Record:
    forget = request.target.forget.model_dump()
    return {
        "parent": {
            "path": str(parent.path.absolute()),
            "model": parent.digest("model.safetensors"),
        },
        "target": {key: text for key, text in forget.items() if text},
        "method": method,
        "certificate": certificate,
        "search": None,
    }


def _exact(
    parent: RunFolder, request: Request, command: str, watch: Watch
) -> tuple[Record, list[costs.Cost], exact.Rerun]:
    """Rerun without the target, and return the record so far."""
    exact.check_parent(parent)
    plan = exact.planned(parent, request.target, request.changes)
    if (request.out / "run.json").exists():
        there = RunFolder.open(request.out)
        if not tries.same(there.config, plan.config):
            raise RunFolderError(f"'{request.out}' holds another run; choose another --out")
    progress = watch(f"{request.target.words}: {plan.reason}")
    exact.rerun(parent, request.target, plan, request.out, command=command, progress=progress)
    method = {
        "name": EXACT,
        "first_influence": plan.first,
        "rewound_to": plan.back,
        "rounds_repeated": plan.repeated,
        "reason": plan.reason,
    }
    return _begin(parent, request, plan.certificate, method), [], plan


def _approximate(
    parent: RunFolder,
    request: Request,
    retrained: Sequence[RunFolder],
    command: str,
    watch: Watch,
    notes: list[str],
) -> tuple[Record, list[costs.Cost]]:
    """Run the method, with the strength that comes closest to the reference."""
    wanted = tries.tries(
        parent,
        request.target,
        request.method,
        changes=request.changes,
        rounds=request.rounds,
        budget=request.budget,
        note=notes.append,
    )
    search, searched = None, []
    if len(wanted) == 1:
        chosen = wanted[0]
        tries.run(chosen, request.out, command=command, progress=watch(chosen.name))
    else:
        _check_place(parent, request, {each.method for each in wanted})
        found, held_against = _searched(parent, request, wanted, retrained, command, watch)
        best = tries.best(found)
        chosen = best.which
        tries.copied(best.folder, request.out)
        searched = [_cost(each) for each in found if each is not best]
        search = _search_record(request, found, best, held_against)
    settings = {
        key: value
        for key, value in chosen.config.strategy.items()
        if key not in ("parent", "parent_model", "values")
    }
    method = {**settings, "rounds": chosen.config.run.rounds}
    return _begin(parent, request, APPROXIMATE, method) | {"search": search}, searched


def _check_place(parent: RunFolder, request: Request, methods: Collection[str]) -> None:
    """Refuse a folder that holds anything but what one of some methods made of the same run."""
    if not (request.out / "run.json").exists():
        return
    there = RunFolder.open(request.out).config
    if (
        there.strategy["name"] not in methods
        or there.strategy["parent"] != str(parent.path.absolute())
        or there.forget != without(parent.config, request.target).forget
    ):
        raise RunFolderError(f"'{request.out}' holds another run; choose another --out")


def _searched(
    parent: RunFolder,
    request: Request,
    wanted: Sequence[tries.Try],
    retrained: Sequence[RunFolder],
    command: str,
    watch: Watch,
) -> tuple[list[Tried], Reference]:
    """Run all tries and measure each against the reference."""
    wanted_config = without(parent.config, request.target)
    task, looked_at = audit.setting(parent, wanted_config, LOOKED_AT)
    folders = list(retrained)
    if request.given is not None:
        folders.insert(0, reference.check_given(parent, request.target, request.given))
    held_against = (
        reference.from_retrained(task, looked_at, folders)
        if folders
        else reference.proxy(task, looked_at, subject_of(parent))
    )
    gap_of = partial(reference.gap_to, task, looked_at, held_against)
    return tries.run_all(wanted, request.home, gap_of, command=command, watch=watch), held_against


def _cost(tried: Tried) -> costs.Cost:
    """Return what a try cost, of one that failed what it cost so far."""
    with suppress(FedSparseError):
        return costs.cost_of(RunFolder.open(tried.folder))
    return costs.Cost(0, 0.0, 0.0, 0.0)


def _search_record(
    request: Request, found: Sequence[Tried], best: Tried, held_against: Reference
) -> Record:
    knobs = {each.which.knob for each in found}
    chosen = best.which.value if request.method != AUTO else best.which.name
    rows = [each.plain() for each in found]
    if request.method == AUTO:
        rows = [row | {"value": each.which.name} for row, each in zip(rows, found, strict=True)]
    return {
        "knob": knobs.pop() if len(knobs) == 1 else None,
        "reference": held_against.words,
        "wanted": dict(held_against.measures),
        "tried": rows,
        "chosen": chosen,
    }


def _evidence(
    parent: RunFolder,
    child: RunFolder,
    retrained: Sequence[RunFolder],
    request: Request,
    notes: list[str],
) -> Evidence | None:
    """Return what an audit finds; None with a note where a model or target cannot be examined."""
    same_seed = [each for each in retrained if each.config.run.seed == parent.config.run.seed]
    others = [each for each in retrained if each not in same_seed[:1]]
    if parent.summary()["accuracy"] is None:
        notes.append("not examined: there is no global model, clients have models of their own")
        return None
    if data.of(parent.config).classes == 1:
        notes.append("not examined: the tests ask for classes, and these targets are numbers")
        return None
    try:
        return audit.audit(parent, child, same_seed[0] if same_seed else None, others)
    except (DataError, RunFolderError) as error:
        notes.append(f"not examined: {error}")
        return None


def _page(out: Path, notes: list[str]) -> Path | None:
    """Write the page of the unlearning, and the report that every run has."""
    try:
        write_report([out])
        return page.write_page(out)
    except FedSparseError as error:
        notes.append(f"no page: {error}")
        return None
