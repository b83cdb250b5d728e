"""The report: one page that holds everything, works offline and in both themes.

It reads run folders, finished or not, draws several over each other, and writes one
HTML file; plotly's script is inside it. All that comes from files is escaped.
"""

import json
import math
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from fedsparse.errors import RunFolderError
from fedsparse.runs.atomic import write_file, writing
from simulations import pages, units
from simulations.charts import all_charts
from simulations.figures import SERIES, Chart
from simulations.headlines import AT_CLIENTS, Column, columns, headline, progress
from simulations.results import Results, distinct_names, number, read

_MOST_REASONS = 20
_MOST_ROUNDS = 500
_LONGEST_SET = 80
"""Characters of a set of numbers that a sentence has room for."""


def write_report(runs: Sequence[Path], out: Path | None = None) -> Path:
    """Write one page about one run or several, and return its path.

    Without `out` it is `report.html` in the run's folder, or beside the first of
    several. Raises RunFolderError for a folder that is no run and for a place that
    cannot be written, MissingExtraError without the extra `report`.
    """
    if not runs:
        raise RunFolderError("no run to report on; give at least one run folder")
    results = [read(path) for path in runs]
    home = Path(runs[0]) if len(runs) == 1 else Path(runs[0]).resolve().parent
    target = Path(out) if out is not None else home / "report.html"
    if target.is_dir():
        raise RunFolderError(f"'{target}' is a folder; choose a file name for the report")
    page = render(results)
    with writing(target.parent):
        target.parent.mkdir(parents=True, exist_ok=True)
        write_file(target, page.encode())
    return target


def render(runs: Sequence[Results]) -> str:
    """Return the page about `runs` as HTML; raises MissingExtraError."""
    names = distinct_names(runs)
    charts, shown = all_charts(runs, names), columns(runs)
    return pages.render(
        "report.html.jinja",
        _figures(charts.values()),
        what="the report",
        title=names[0] if len(runs) == 1 else f"{len(runs)} runs compared",
        runs=[
            _run_text(run, name, i, shown)
            for i, (run, name) in enumerate(zip(runs, names, strict=True))
        ],
        single=len(runs) == 1,
        columns=shown,
        charts=charts,
        rounds=_round_table(runs[0]) if len(runs) == 1 else [],
        settings=_settings(runs),
    )


def _run_text(run: Results, name: str, index: int, shown: Sequence[Column]) -> dict[str, Any]:
    """Return what the page says in words about one run."""
    return {
        "name": name,
        "path": str(run.path),
        "series": index % SERIES + 1,
        "about": _sentence(run),
        "finished": run.finished,
        "deployed": run.deployed,
        "progress": progress(run),
        "headline": {key: headline(run, key) for key, _, _ in shown},
        "measure": "R²" if run.regression else "Accuracy",
        "at_clients": {
            note: units.percent(value)
            for key, note in AT_CLIENTS
            if (value := run.figure(key)) is not None
        },
        "failures": _failures(run),
        "rejected": _rejected(run),
        "failed": len(run.failures()),
        "refused": len(run.rejected()),
        "asked": len(run.clients),
        "command": run.command,
    }


def _sentence(run: Results) -> str:
    """Return one sentence: who trained what, on what, where."""
    said = {
        key: run.setting(section, name)
        for key, section, name in (
            ("strategy", "strategy", "name"),
            ("model", "model", "name"),
            ("data", "data", "name"),
            ("partition", "data", "partition"),
            ("clients", "fleet", "clients"),
            ("seed", "run", "seed"),
        )
    }
    plural = "client" if said["clients"] == 1 else "clients"
    on = (
        f"what lies at the nodes of {said['clients']} {plural}"
        if run.at_nodes
        else f"{said['data']}, dealt to {said['clients']} {plural} ({said['partition']})"
    )
    return (
        f"Strategy {said['strategy']} trains the model {said['model']} on {on}, with seed "
        f"{said['seed']}.{_of_forgetting(run)}{_of_rules(run)}{_of_sums(run)}"
    )


def _of_forgetting(run: Results) -> str:
    """Return a sentence on what the run is made without; '' for a run without such."""
    found = [
        f"{one if text.isdecimal() else many} {text}"
        if len(text) <= _LONGEST_SET
        else f"some {many}"
        for one, many, key in (
            ("client", "clients", "clients"),
            ("class", "classes", "classes"),
            ("sample", "samples", "samples"),
        )
        if (text := str(run.setting("forget", key) or ""))
    ]
    return f" It is to forget {' and '.join(found)}." if found else ""


def _of_rules(run: Results) -> str:
    """Return sentences on who attacks, and on the rule that keeps them out; '' for neither."""
    clients, updates = (run.setting("attack", key) for key in ("clients", "updates"))
    said = ""
    if clients:
        who = (
            f"Client {clients} attacks" if str(clients).isdecimal() else f"Clients {clients} attack"
        )
        said = f" {who} ({updates or 'a backdoor'})."
    rule = run.setting("robust", "rule")
    if rule is None or rule == "mean":
        return said
    size = run.setting("robust", "bucket_size")
    seen = f", which sees means of {size} clients" if isinstance(size, int) and size > 1 else ""
    return f"{said} A round's models become one by the rule {rule}{seen}."


def _of_sums(run: Results) -> str:
    """Return a sentence on secure aggregation, with who is in no sum; '' for a run without."""
    if run.setting("secure", "aggregation") is not True:
        return ""
    summed = run.series("secure_summed")[1]
    out = math.fsum(run.series("secure_dropped")[1])
    return (
        f" Models came by secure aggregation (threshold {run.setting('secure', 'threshold')}): the "
        f"server saw the sum alone in {sum(n > 0 for n in summed)} of {len(summed)} rounds; "
        f"{out:.0f} {'reply was' if out == 1 else 'replies were'} left out. What is told of one "
        "client is its round's mean."
    )


def _failures(run: Results) -> list[dict[str, str]]:
    """Return failures by reason, the most frequent first."""
    groups: dict[str, list[dict[str, Any]]] = {}
    for row in run.failures():
        groups.setdefault(str(row.get("reason") or "no reason given"), []).append(row)
    ordered = sorted(groups.items(), key=lambda item: -len(item[1]))[:_MOST_REASONS]
    return [
        {
            "reason": reason[:500],
            "times": str(len(rows)),
            "clients": _listed({row.get("client") for row in rows}),
            "rounds": _listed({row.get("round") for row in rows}),
        }
        for reason, rows in ordered
    ]


def _rejected(run: Results) -> list[dict[str, str]]:
    """Return each rejected reply: who sent it, in which round, why it was refused."""
    return [
        {
            "client": str(row.get("client")),
            "round": str(row.get("round")),
            "reason": str(row.get("reason") or "no reason given")[:500],
        }
        for row in run.rejected()[:_MOST_ROUNDS]
    ]


def _listed(values: Iterable[Any], most: int = 12) -> str:
    """Return numbers as `1, 2, 5 and 3 more`."""
    known = sorted(int(v) for v in values if number(v) is not None)
    text = ", ".join(map(str, known[:most]))
    return f"{text} and {len(known) - most} more" if len(known) > most else text


def _round_table(run: Results) -> list[dict[str, str]]:
    """Return the rounds in words and numbers, for those who cannot see the charts."""
    clock, joules = run.timed, bool(run.series("energy_joules")[1])
    late, dropped = (any(run.series(f"clients_{key}")[1]) for key in ("late", "dropped"))
    return [
        {
            "Round": f"{number(row.get('round')) or 0:.0f}",
            "Accuracy": units.percent(number(row.get("accuracy"))),
            "Loss": _plain_number(row.get("loss")),
            "Density": units.percent(number(row.get("density"))),
            "Mask change": _plain_number(row.get("mask_change"), "{:,.0f}"),
            "Up": units.in_units(number(row.get("bytes_up"))),
            "Down": units.in_units(number(row.get("bytes_down"))),
            "Clients": _plain_number(row.get("clients_replied"), "{:.0f}"),
            "Failed": _plain_number(row.get("clients_failed"), "{:.0f}"),
            **({"Late": _plain_number(row.get("clients_late"), "{:.0f}")} if late else {}),
            **({"Dropped": _plain_number(row.get("clients_dropped"), "{:.0f}")} if dropped else {}),
            **({"Staleness": _plain_number(row.get("staleness"))} if run.asynchronous else {}),
            "Time": units.duration(number(row.get("seconds"))),
            **({"Clock": units.duration(number(row.get("simulated_seconds")))} if clock else {}),
            **({"Energy": _joules(row.get("energy_joules"))} if joules else {}),
        }
        for row in run.metrics[-_MOST_ROUNDS:]
    ]


def _plain_number(value: Any, form: str = "{:.4g}") -> str:
    known = number(value)
    return units.NONE if known is None else form.format(known)


def _joules(value: Any) -> str:
    return units.in_units(number(value), units.JOULES)


def _settings(runs: Sequence[Results]) -> list[dict[str, Any]]:
    """Return every key with its value in each run; keys that differ are marked and first."""
    keys = dict.fromkeys(
        (section, key) for run in runs for section, values in run.settings.items() for key in values
    )
    rows = []
    for section, key in keys:
        values = [_shown(run.setting(section, key)) for run in runs]
        differs = len(set(values)) > 1
        rows.append({"key": f"{section}.{key}", "values": values, "differs": differs})
    return sorted(rows, key=lambda row: not row["differs"])


def _shown(value: Any) -> str:
    if value is None:
        return "unset"
    return value if isinstance(value, str) else json.dumps(value, default=str)


def _figures(sections: Iterable[Sequence[Chart]]) -> dict[str, Any]:
    return {chart.id: chart.figure for charts in sections for chart in charts if chart.figure}
