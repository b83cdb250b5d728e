"""Measure what hostile clients do to a sparse model, under each rule of aggregation.

    .venv/bin/python -m benchmarks.bench_robust --seeds 0,1,2

Fifty clients on the digits data, the first ten hostile from the first round to the last; a static
mask at density 0.1. Each attack meets each rule; `clean` is the same run without an attack. A rule
with /2 sees means of two clients. Data are dealt evenly (iid) and by Dirichlet 0.5. Loud attacks
are played again with the check of lengths, `robust.max_norm`. Written to
benchmarks/results/robust.json as it goes; what is there already is not run again.
"""

import argparse
import json
import math
import statistics
import tempfile
from pathlib import Path
from typing import Any

from fedsparse import config
from fedsparse.errors import TooFewRepliesError
from fedsparse.runs import RunFolder
from fedsparse.runs.atomic import write_file
from simulations.experiment import run_experiment

HOSTILE = 10
RULES = (
    "mean",
    "median",
    "median/2",
    "trimmed-mean",
    "trimmed-mean/2",
    "krum",
    "krum/2",
    "multi-krum",
    "norm-clip",
    "trust",
)
ATTACKS = (
    "clean",
    "scaled",
    "sign-flip",
    "gaussian",
    "scaled, checked",
    "sign-flip, checked",
    "gaussian, checked",
    "not-finite",
    "oversize",
    "wrong-mask",
    "stale",
)
CHECKED = ", checked"
MAX_NORM = 3.0
"""Times the round's median length that a checked update may have."""

SCALES = {"scaled": 100.0, "sign-flip": 10.0, "gaussian": 100.0}
"""Factors on the hostile updates: without one, ten honest-looking updates of fifty do little."""

BROKEN = {"not-finite", "oversize", "wrong-mask", "stale"}
"""Attacks that every check sees, whatever the rule: they come last."""

BASE: dict[str, dict[str, Any]] = {
    "run": {"rounds": 60, "eval_every": 60, "checkpoint_every": 60},
    "data": {"name": "digits", "public_samples": 100, "client_test_fraction": 0.0},
    "model": {"name": "cnn", "width": 0.5},
    "strategy": {"name": "static", "density": 0.1, "pretrain_epochs": 10},
    "client": {"lr": 0.05, "batch_size": 16, "local_epochs": 2},
    "fleet": {"clients": 50},
    "engine": {"name": "inline"},
    "robust": {"hostile": 0.2},
}
RESULTS = Path(__file__).parent / "results" / "robust.json"


def run_point(partition: str, attack: str, rule: str, seed: int) -> dict[str, Any]:
    """Run one attack under one rule; return the accuracy, and who was rejected."""
    tree = {section: dict(values) for section, values in BASE.items()}
    tree["run"]["seed"] = seed
    tree["data"]["partition"] = partition
    name, _, size = rule.partition("/")
    tree["robust"] |= {"rule": name, "bucket_size": int(size or 1)}
    if attack.endswith(CHECKED):
        tree["robust"]["max_norm"] = MAX_NORM
    attack = attack.removesuffix(CHECKED)
    if attack != "clean":
        scale = {"scale": SCALES[attack]} if attack in SCALES else {}
        tree["attack"] = {"clients": f"0-{HOSTILE - 1}", "updates": attack, **scale}
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "run"
        try:
            accuracy = run_experiment(config.resolve(tree), path, command="bench")["accuracy"]
        except TooFewRepliesError:  # the model is so far gone that honest clients fail on it
            accuracy = None
        rows = RunFolder.open(path).clients()
    rejected = [row for row in rows if row["status"] == "rejected"]
    return {
        "accuracy": accuracy,
        "rejected": len(rejected),
        "rejected_clients": sorted({row["client"] for row in rejected}),
        "without_reason": sum(not row["reason"] for row in rejected),
    }


def table(points: dict[str, Any], partition: str, seeds: list[int]) -> str:
    """Return the mean accuracy over seeds by attack and rule, in Markdown."""
    lines = [
        f"| {partition} | " + " | ".join(RULES) + " | rejected |",
        "| --- |" + " ---: |" * (len(RULES) + 1),
    ]
    for attack in ATTACKS:
        cells = []
        rejected = 0
        for rule in RULES:
            found = [points.get(key(partition, attack, rule, s)) for s in seeds]
            known = [one for one in found if one is not None]
            cells.append(cell([one["accuracy"] for one in known]))
            rejected = max([rejected, *(len(one["rejected_clients"]) for one in known)])
        lines.append(f"| {attack} | " + " | ".join(cells) + f" | {rejected} |")
    return "\n".join(lines) + "\n"


def losses(points: dict[str, Any], partition: str, seeds: list[int]) -> str:
    """Return what the worst attack of each kind costs each rule, beside the clean run by the mean.

    In accuracy, from means over seeds; `lost` where a run stopped.
    """

    def mean(attack: str, rule: str) -> float:
        found = [points[key(partition, attack, rule, seed)]["accuracy"] for seed in seeds]
        return math.nan if None in found else statistics.mean(found)

    kinds = {
        "no attack": ["clean"],
        "loud": list(SCALES),
        "loud, checked": [name + CHECKED for name in SCALES],
        "broken": sorted(BROKEN),
    }
    clean = mean("clean", "mean")
    lines = [f"| {partition} | " + " | ".join(RULES) + " |", "| --- |" + " ---: |" * len(RULES)]
    for kind, attacks in kinds.items():
        lost = [[clean - mean(attack, rule) for attack in attacks] for rule in RULES]
        cells = ["lost" if any(map(math.isnan, one)) else f"{max(one):.3f}" for one in lost]
        lines.append(f"| {kind} | " + " | ".join(cells) + " |")
    return "\n".join(lines) + "\n"


def cell(accuracies: list[float | None]) -> str:
    """Return a mean accuracy; `lost` where a run stopped because honest clients failed."""
    if None in accuracies:
        return "lost"
    return f"{statistics.mean(accuracies):.3f}" if accuracies else "-"


def key(partition: str, attack: str, rule: str, seed: int) -> str:
    """Return the name of a point."""
    return f"{partition} | {attack} | {rule} | {seed}"


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--seeds", default="0,1,2")
    parser.add_argument("--partitions", default="iid,dirichlet")
    parser.add_argument("--out", type=Path, default=RESULTS)
    options = parser.parse_args()
    seeds = [int(seed) for seed in options.seeds.split(",")]
    points: dict[str, Any] = {}
    if options.out.exists():
        points = json.loads(options.out.read_text())["points"]
    wanted = [
        (p, a, r, s)
        for refused in (False, True)
        for s in seeds
        for p in options.partitions.split(",")
        for a in ATTACKS
        if (a in BROKEN or a.endswith(CHECKED)) == refused
        for r in RULES
    ]
    for number, point in enumerate(wanted, 1):
        if key(*point) in points:
            continue
        points[key(*point)] = run_point(*point)
        content = {"base": BASE, "hostile": HOSTILE, "scales": SCALES, "points": points}
        write_file(options.out, (json.dumps(content, indent=1) + "\n").encode())
        print(f"[{number}/{len(wanted)}] {key(*point)}: {cell([points[key(*point)]['accuracy']])}")
    for partition in options.partitions.split(","):
        print(table(points, partition, seeds))
        print(losses(points, partition, seeds))


if __name__ == "__main__":
    main()
