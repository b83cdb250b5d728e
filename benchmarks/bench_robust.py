"""Measure what hostile clients do to a sparse model, under each rule of aggregation.

    .venv/bin/python -m benchmarks.bench_robust --seeds 0,1,2

Fifty clients on the digits data, the first ten hostile from the first round to the last; a static
mask at density 0.1. Each attack meets each rule; `clean` is the same run without an attack. Data
are dealt evenly (iid) and by Dirichlet 0.5. Written to benchmarks/results/robust.json as it goes;
what is there already is not run again.
"""

import argparse
import json
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
RULES = ("mean", "median", "trimmed-mean", "krum", "multi-krum", "norm-clip", "trust")
ATTACKS = (
    "clean",
    "scaled",
    "sign-flip",
    "gaussian",
    "not-finite",
    "oversize",
    "wrong-mask",
    "stale",
)
SCALES = {"scaled": 100.0, "sign-flip": 10.0, "gaussian": 100.0}
"""Factors on the hostile updates: without one, ten honest-looking updates of fifty do little."""

BROKEN = {"not-finite", "oversize", "wrong-mask", "stale"}
"""Attacks that every check sees, whatever the rule."""

BASE: dict[str, dict[str, Any]] = {
    "run": {"rounds": 25, "eval_every": 25, "checkpoint_every": 25},
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
    tree["robust"]["rule"] = rule
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
        rejected = "-"
        for rule in RULES:
            found = [points.get(key(partition, attack, rule, s)) for s in seeds]
            known = [one for one in found if one is not None]
            cells.append(cell([one["accuracy"] for one in known]))
            if known:
                rejected = str(max(len(one["rejected_clients"]) for one in known))
        lines.append(f"| {attack} | " + " | ".join(cells) + f" | {rejected} |")
    return "\n".join(lines) + "\n"


def cell(accuracies: list[float | None]) -> str:
    """Return a mean accuracy; `lost` where a run stopped because honest clients failed."""
    if None in accuracies:
        return "lost"
    return f"{statistics.mean(accuracies):.3f}" if accuracies else "-"


def key(partition: str, attack: str, rule: str, seed: int) -> str:
    """Return the name of a point."""
    return f"{partition}/{attack}/{rule}/{seed}"


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
        for s in seeds
        for broken in (False, True)
        for p in options.partitions.split(",")
        for a in ATTACKS
        if (a in BROKEN) == broken
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


if __name__ == "__main__":
    main()
