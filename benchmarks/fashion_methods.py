"""Compare FedTiny, its ablations and static masks on Fashion-MNIST at one density.

    .venv/bin/python -m benchmarks.fashion_methods --out runs/methods --page methods.md

Every point is a run folder, so a stopped comparison goes on where it was. Ten clients,
Dirichlet 0.5, 6,000 training samples, 500 of the server's own, 30 rounds of one epoch.
"""

import argparse
import json
import statistics
from collections.abc import Iterable
from concurrent.futures import ProcessPoolExecutor, as_completed
from pathlib import Path
from typing import Any

BASE: dict[str, dict[str, Any]] = {
    "run": {"rounds": 30, "eval_every": 5, "keep_checkpoints": 1},
    "data": {
        "name": "fashion-mnist",
        "partition": "dirichlet",
        "alpha": 0.5,
        "samples": 6500,
        "public_samples": 500,
        "test_samples": 5000,
        "client_test_fraction": 0.0,
    },
    "model": {"name": "paper-cnn"},
    "client": {"lr": 0.05, "batch_size": 50, "local_epochs": 1, "momentum": 0.9},
    "fleet": {"clients": 10},
    "engine": {"name": "inline"},
}
FEDTINY = {"name": "fedtiny", "adjust_every": 3, "stop_round": 20, "candidates": 10}


def static(criterion: str, allocation: str, pretrain_epochs: int = 10) -> dict[str, Any]:
    """Return the settings of a static mask, over the pre-trained weights if not told otherwise."""
    return {
        "name": "static",
        "criterion": criterion,
        "allocation": allocation,
        "pretrain_epochs": pretrain_epochs,
    }


METHODS: dict[str, dict[str, Any]] = {
    "dense FedAvg": {"name": "fedavg", "pretrain_epochs": 10},
    "random, uniform": static("random", "uniform"),
    "random, ERK": static("random", "erk"),
    "magnitude, ERK": static("magnitude", "erk"),
    "SNIP, ERK": static("snip", "erk"),
    "SNIP, global": static("snip", "global"),
    "SNIP, untrained, ERK": static("snip", "erk", 0),
    "SNIP, untrained, global": static("snip", "global", 0),
    "SynFlow, global": static("synflow", "global"),
    "FedTiny": FEDTINY,
    "FedTiny, no selection": {**FEDTINY, "selection": "none"},
    "FedTiny, vanilla selection": {**FEDTINY, "selection": "vanilla"},
    "FedTiny, whole model": {**FEDTINY, "granularity": "model"},
    "FedTiny, no adjustment": {**FEDTINY, "stop_round": 0},
}


def run_point(method: str, density: float, seed: int, folder: str) -> tuple[str, int, Any]:
    """Run one method with one seed, or read its finished run folder."""
    from fedsparse import config
    from simulations.experiment import resume_experiment, run_experiment

    path = Path(folder)
    if (path / "run.json").exists():
        return method, seed, resume_experiment(path)
    tree = {section: dict(values) for section, values in BASE.items()}
    tree["run"]["seed"] = seed
    tree["strategy"] = dict(METHODS[method])
    if method != "dense FedAvg":
        tree["strategy"]["density"] = density
    return method, seed, run_experiment(config.resolve(tree), path, command=f"point {path.name}")


def run_all(
    methods: Iterable[str], density: float, seeds: list[int], out: Path, jobs: int
) -> dict[str, dict[int, Any]]:
    """Run every point, `jobs` at a time, and return summaries by method and seed."""
    table: dict[str, dict[int, Any]] = {method: {} for method in methods}
    with ProcessPoolExecutor(jobs) as pool:
        points = [
            pool.submit(run_point, m, density, s, str(out / f"{_slug(m)}-d{density:g}-s{s}"))
            for s in seeds
            for m in table
        ]
        for number, point in enumerate(as_completed(points), 1):
            method, seed, summary = point.result()
            table[method][seed] = summary
            print(
                f"[{number}/{len(points)}] {method}, seed {seed}: {summary['accuracy']:.3f}",
                flush=True,
            )
    return table


def _slug(method: str) -> str:
    return method.lower().replace(", ", "-").replace(" ", "-")


def render(table: dict[str, dict[int, Any]], seeds: list[int]) -> str:
    """Return the table in Markdown: mean and spread of the accuracy, bytes, memory, FLOPs."""
    lines = [
        "| method | " + " | ".join(f"seed {s}" for s in seeds) + " | mean ± sd | density "
        "| MB up | MB down | training FLOPs | peak client memory |",
        "| --- |" + " ---: |" * (len(seeds) + 6),
    ]
    for method, runs in table.items():
        accuracy = [runs[s]["accuracy"] for s in seeds]
        spread = statistics.stdev(accuracy) if len(accuracy) > 1 else 0.0
        first = runs[seeds[0]]
        lines.append(
            f"| {method} | "
            + " | ".join(f"{a:.3f}" for a in accuracy)
            + f" | **{statistics.mean(accuracy):.3f}** ± {spread:.3f} | {first['density']:.4f}"
            f" | {first['bytes_up'] / 1e6:.2f} | {first['bytes_down'] / 1e6:.2f}"
            f" | {first['train_flops']:.2e} | {first['peak_client_memory_bytes'] / 1e6:.2f} MB |"
        )
    return "\n".join(lines) + "\n"


GATES: list[tuple[str, str, str, float]] = [
    ("layer densities matter", "random, ERK", "random, uniform", 0.15),
    ("data on the server helps", "magnitude, ERK", "random, ERK", 0.02),
    ("SynFlow beats SNIP", "SynFlow, global", "SNIP, global", 0.02),
    ("SynFlow beats SNIP at its best", "SynFlow, global", "SNIP, untrained, global", 0.02),
    ("selection against none", "FedTiny", "FedTiny, no selection", 0.0),
    ("adapted statistics against stale ones", "FedTiny", "FedTiny, vanilla selection", 0.0),
    ("block by block against the whole model", "FedTiny", "FedTiny, whole model", 0.0),
    ("adjustment against none", "FedTiny", "FedTiny, no adjustment", 0.0),
]
"""Claims: a name, the better method, the worse one, and how far apart they must be."""


def gates(table: dict[str, dict[int, Any]], seeds: list[int]) -> str:
    """Return the claims in Markdown: the difference of the means, its spread, and whether it holds.

    A claim holds when the mean over seeds of the paired differences is at least its margin;
    less than two standard errors away from it, that may be chance.
    """
    lines = ["| claim | difference | margin | holds |", "| --- | ---: | ---: | --- |"]
    for claim, better, worse, margin in GATES:
        if better not in table or worse not in table:
            continue
        apart = [table[better][s]["accuracy"] - table[worse][s]["accuracy"] for s in seeds]
        spread = statistics.stdev(apart) if len(apart) > 1 else 0.0
        beyond = statistics.mean(apart) - margin
        held = "yes" if beyond >= 0 else "no"
        if abs(beyond) < 2 * spread / len(apart) ** 0.5:
            held += ", within the spread"
        lines.append(
            f"| {claim} ({better} − {worse}) | {statistics.mean(apart):+.3f} ± {spread:.3f}"
            f" | {margin:+.2f} | {held} |"
        )
    return "\n".join(lines) + "\n"


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--density", type=float, default=0.01)
    parser.add_argument("--seeds", default="0,1,2")
    parser.add_argument("--methods", default=",".join(_slug(m) for m in METHODS))
    parser.add_argument("--out", type=Path, default=Path("runs/methods"))
    parser.add_argument("--page", type=Path, help="write the tables into this file")
    parser.add_argument("--json", type=Path, help="write every summary into this file")
    parser.add_argument("--jobs", type=int, default=2)
    options = parser.parse_args()
    seeds = [int(s) for s in options.seeds.split(",")]
    wanted = options.methods.split(",")
    unknown = set(wanted) - {_slug(m) for m in METHODS}
    if unknown:
        parser.error(
            f"unknown method '{min(unknown)}'; choose from {', '.join(map(_slug, METHODS))}"
        )
    chosen = [m for m in METHODS if _slug(m) in wanted]
    table = run_all(chosen, options.density, seeds, options.out, options.jobs)
    text = render(table, seeds) + "\n" + gates(table, seeds)
    print(text)
    if options.page:
        options.page.parent.mkdir(parents=True, exist_ok=True)
        options.page.write_text(text)
    if options.json:
        options.json.write_text(json.dumps(table, indent=1))


if __name__ == "__main__":
    main()
