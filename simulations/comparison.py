"""A comparison: what was planned, what each point gave, and what that says of the variants.

Figures of a variant at a density are means over its seeds; the accuracy has the 95 %
confidence interval of Student's t, and is set against the baseline's seed by seed.
"""

import csv
import io
import json
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import fedsparse
from fedsparse import registry
from fedsparse.config import differences, resolve
from fedsparse.errors import ConfigError, RunFolderError
from fedsparse.runs import RunFolder, tables
from fedsparse.runs.atomic import write_file, writing
from simulations.results import number
from simulations.sweep import place_of, state_of
from simulations.variants import Point

Row = dict[str, Any]

PLAN = "comparison.json"
CONFIDENCE = 0.95

COSTS = (
    "bytes",
    "train_flops",
    "peak_client_memory_bytes",
    "simulated_seconds",
    "energy_joules",
)
"""What is paid for accuracy; `bytes` are up and down together."""

PERSONAL = ("accuracy_personal_mean", "accuracy_personal_p10")
"""How the models do that clients use, on their own samples: all, and the weakest tenth."""

TARGETS = ("seconds_to_target", "bytes_to_target", "joules_to_target")


@dataclass(frozen=True)
class Plan:
    """The points of a comparison, its baseline, and the command that asked for it."""

    points: tuple[Point, ...]
    baseline: str
    command: str

    @property
    def variants(self) -> list[str]:
        """The variants' names, in the order of the tables."""
        return list(dict.fromkeys(point.variant for point in self.points))

    @property
    def targeted(self) -> bool:
        """Whether runs count what it takes to reach an accuracy."""
        return any(point.config.run.target_accuracy is not None for point in self.points)

    @property
    def personal(self) -> bool:
        """Whether a strategy among them gives clients models of their own."""
        names = {str(point.config.strategy["name"]) for point in self.points}
        return any(getattr(registry.load("strategies", name), "program", "") for name in names)

    def groups(self) -> list[tuple[str, float]]:
        """Return what a line of the table is about: a variant at a density."""
        return list(dict.fromkeys((point.variant, point.density) for point in self.points))

    def to_json(self) -> Row:
        """Return the plan as `comparison.json` holds it."""
        points = [
            {"variant": p.variant, "command": p.command, "config": p.config.model_dump()}
            for p in self.points
        ]
        return {"baseline": self.baseline, "command": self.command, "points": points}


def read_plan(folder: Path) -> Plan:
    """Return the plan of the comparison in `folder`; RunFolderError when there is none."""
    path = folder / PLAN
    if not path.is_file():
        raise RunFolderError(f"'{folder}' holds no comparison; give the --out of one")
    try:
        found = json.loads(path.read_bytes())["plan"]
        points = tuple(_point(each) for each in found["points"])
        plan = Plan(points, str(found["baseline"]), str(found["command"]))
    except (KeyError, TypeError, ValueError, RecursionError, ConfigError, OSError):
        raise RunFolderError(f"'{path}' is damaged; start again with another --out") from None
    if plan.baseline not in plan.variants:
        raise RunFolderError(f"'{path}' is damaged; start again with another --out")
    return plan


def _point(found: Row) -> Point:
    config = resolve(found["config"])
    density = float(config.strategy["density"])
    return Point(str(found["variant"]), density, config.run.seed, config, str(found["command"]))


def check_same(folder: Path, there: Plan, asked: Plan) -> None:
    """Refuse to go on in the folder of another comparison; RunFolderError names what differs.

    The engine, the baseline and the order of points may change: no run depends on them.
    """
    told = []
    for what, key in (("variants", "variant"), ("densities", "density"), ("seeds", "seed")):
        was, now = ({getattr(p, key) for p in plan.points} for plan in (there, asked))
        if was != now:
            told.append(f"{what} {_listed(was)} there, {_listed(now)} asked for")
    mine = {point.slug: point for point in asked.points}
    for point in there.points:
        if point.slug in mine:
            old, new = (json.loads(p.config.to_json()) for p in (point, mine[point.slug]))
            told += [
                f"{point.variant}: {key} = {was!r} there, {now!r} asked for"
                for key, (was, now) in differences(old, new).items()
                if not key.startswith("engine.")
            ]
    told = list(dict.fromkeys(told))
    if told or mine.keys() != {point.slug for point in there.points}:
        more = f" and {len(told) - 3} more" if len(told) > 3 else ""
        raise RunFolderError(
            f"'{folder}' holds another comparison ({'; '.join(told[:3])}{more}); "
            "choose another --out"
        )


def _listed(values: Iterable[Any]) -> str:
    return ", ".join(map(str, sorted(values)))


# -- what the points gave ---------------------------------------------------------------


def point_rows(folder: Path, points: Iterable[Point]) -> list[Row]:
    """Return a row a point: what it is, how it stands, and its summary when it finished.

    `density` and `seed` are those of the summary once there is one; the density asked for
    stands in `asked_density`.
    """
    rows = []
    for point in points:
        place, state = place_of(folder, point), state_of(folder, point)
        row = {
            "variant": point.variant,
            "asked_density": point.density,
            "seed": point.seed,
            "status": state.status,
            "reason": state.reason or None,
        }
        summary = RunFolder.open(place).summary() if state.status == "finished" else {}
        rows.append({**row, **summary, "seed": point.seed, "run": str(place)})
    return rows


def table_of(plan: Plan, rows: Sequence[Row]) -> list[Row]:
    """Return a row a variant and density: means over the seeds that finished."""
    return [_group(plan, rows, variant, density) for variant, density in plan.groups()]


def _group(plan: Plan, rows: Sequence[Row], variant: str, density: float) -> Row:
    own = _of(rows, variant, density)
    done = [row for row in own if row["status"] == "finished"]
    accuracy = _column(done, "accuracy")
    found: Row = {
        "variant": variant,
        "density": density,
        "seeds": len(done),
        "failed": sum(row["status"] == "failed" for row in own),
        "missing": sum(row["status"] in ("unfinished", "not started") for row in own),
        "accuracy": mean(accuracy),
        "accuracy_ci95": half_width(accuracy),
    }
    for key in COSTS:
        found[key] = mean([v for row in done if (v := cost(row, key)) is not None])
    timed = [row for row in done if number(row.get("simulated_seconds")) is not None]
    found["clients_refused"] = mean(_column(timed, "clients_refused"))
    if plan.targeted:
        found["reached"] = len(_column(done, "rounds_to_target"))
        found |= {key: mean(_column(done, key)) for key in TARGETS}
    against = _baseline_density(plan, variant, density)
    theirs = _of(rows, plan.baseline, against) if against is not None else []
    pairs = differences_of(_by_seed(done), _by_seed(theirs))
    found["difference"], found["difference_ci95"] = mean(pairs), half_width(pairs)
    for key in PERSONAL if plan.personal else ():
        values = _column(done, key)
        apart = differences_of(_by_seed(done, key), _by_seed(theirs, key))
        found |= {key: mean(values), f"{key}_ci95": half_width(values)}
        found |= {f"{key}_difference": mean(apart), f"{key}_difference_ci95": half_width(apart)}
    return found | {"pairs": len(pairs)}


def _of(rows: Sequence[Row], variant: str, density: float) -> list[Row]:
    return [r for r in rows if (r["variant"], r["asked_density"]) == (variant, density)]


def _baseline_density(plan: Plan, variant: str, density: float) -> float | None:
    """Return the baseline's density to compare with: the same, or its only one."""
    if variant == plan.baseline:
        return None
    known = [d for name, d in plan.groups() if name == plan.baseline]
    return density if density in known else known[0] if len(known) == 1 else None


def cost(row: Mapping[str, Any], key: str) -> float | None:
    """Return a point's cost, None when it was not measured."""
    if key != "bytes":
        return number(row.get(key))
    up, down = number(row.get("bytes_up")), number(row.get("bytes_down"))
    return None if up is None or down is None else up + down


def _column(rows: Iterable[Row], key: str) -> list[float]:
    return [v for row in rows if (v := number(row.get(key))) is not None]


def _by_seed(rows: Iterable[Row], key: str = "accuracy") -> dict[int, float]:
    return {r["seed"]: v for r in rows if (v := number(r.get(key))) is not None}


# -- statistics -------------------------------------------------------------------------


def mean(values: Sequence[float]) -> float | None:
    """Return the arithmetic mean, None of no values."""
    return math.fsum(values) / len(values) if values else None


def half_width(values: Sequence[float], confidence: float = CONFIDENCE) -> float | None:
    """Return half the width of Student's confidence interval of the mean.

    t(1 - (1 - c)/2; n - 1) s / sqrt(n), s with n - 1 in its denominator; None of one value.
    """
    from scipy.special import stdtrit

    middle, count = mean(values), len(values)
    if middle is None or count < 2:
        return None
    deviation = math.sqrt(math.fsum((v - middle) ** 2 for v in values) / (count - 1))
    quantile = float(stdtrit(count - 1, 1 - (1 - confidence) / 2))
    return quantile * deviation / math.sqrt(count)


def differences_of(ours: Mapping[int, float], theirs: Mapping[int, float]) -> list[float]:
    """Return ours minus theirs for each seed that both have, in the order of seeds."""
    return [ours[seed] - theirs[seed] for seed in sorted(ours.keys() & theirs.keys())]


def pareto(points: Sequence[tuple[float, float]]) -> list[int]:
    """Return which (cost, gain) no other beats: none costs less and gains as much, or more.

    The positions are in the order of rising cost; of equal points all stay.
    """
    found: list[int] = []
    best, at = -math.inf, math.nan
    for i in sorted(range(len(points)), key=lambda i: (points[i][0], -points[i][1])):
        cost_, gain = points[i]
        if gain > best or (gain == best and cost_ == at):
            found.append(i)
            best, at = gain, cost_
    return found


# -- files ------------------------------------------------------------------------------


def write_plan(folder: Path, plan: Plan, rows: Sequence[Row] = (), table: Any = ()) -> None:
    """Write `comparison.json`: the plan and, as far as they are there, the results."""
    content = {
        "fedsparse": fedsparse.__version__,
        "plan": plan.to_json(),
        "points": list(rows),
        "table": list(table),
    }
    with writing(folder):
        folder.mkdir(parents=True, exist_ok=True)
        write_file(folder / PLAN, (tables.to_json(content) + "\n").encode())


def write_points(folder: Path, rows: Sequence[Row], stem: str = "points") -> None:
    """Write the rows as STEM.csv and STEM.parquet, a column for each key of any row."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    columns = list(dict.fromkeys(key for row in rows for key in row))
    flat = [{key: _flat(row.get(key)) for key in columns} for row in rows]
    text = io.StringIO(newline="")
    writer = csv.DictWriter(text, columns)
    writer.writeheader()
    writer.writerows(flat)
    buffer = io.BytesIO()
    arrays = {key: [row[key] for row in flat] for key in columns}
    pq.write_table(pa.table(arrays), buffer, compression="zstd")
    with writing(folder):
        write_file(folder / f"{stem}.csv", text.getvalue().encode())
        write_file(folder / f"{stem}.parquet", buffer.getvalue())


def _flat(value: Any) -> Any:
    """Return a value that a cell can hold: lists and objects as JSON."""
    plain = tables.plain(value)
    return tables.to_json(plain) if isinstance(plain, dict | list) else plain
