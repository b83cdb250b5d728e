"""What privacy by client costs in accuracy, on digits with many small clients.

    .venv/bin/python -m benchmarks.bench_privacy

It writes benchmarks/results/privacy.json: for each noise, epsilon and accuracy over three seeds.
300 clients of a few samples each, 100 expected a round by Poisson sampling, a random mask that
keeps a fifth of an MLP's weights.
"""

import json
import statistics
import tempfile
from pathlib import Path
from typing import Any

from benchmarks.machine import describe
from fedsparse import config
from simulations.experiment import run_experiment

RESULT = Path(__file__).parent / "results" / "privacy.json"
NOISES = (None, 0.0, 1.0, 4.0, 8.0, 16.0)
"""None: neither clip nor noise."""
SEEDS = (0, 1, 2)

BASE: dict[str, dict[str, Any]] = {
    "run": {"rounds": 30, "eval_every": 30, "checkpoint_every": 30},
    "data": {"name": "digits", "partition": "iid", "public_samples": 60, "client_test_fraction": 0},
    "model": {"name": "mlp"},
    "client": {"lr": 0.5, "batch_size": 4, "local_epochs": 5, "momentum": 0.0},
    "fleet": {"clients": 300, "clients_per_round": 100, "evaluate_clients": 0},
    "strategy": {"name": "static", "criterion": "random", "density": 0.2},
    "engine": {"name": "inline"},
}


def point(noise: float | None, folder: Path) -> dict[str, Any]:
    """Return epsilon and accuracy, mean and deviation over the seeds, at one noise."""
    privacy: dict[str, Any] = {} if noise is None else {"clip": 1.0, "noise": noise, "delta": 1e-3}
    found = []
    for seed in SEEDS:
        tree = {**BASE, "run": {**BASE["run"], "seed": seed}, "privacy": privacy}
        out = folder / f"{noise}-{seed}"
        found.append(run_experiment(config.resolve(tree), out, command="bench_privacy"))
    accuracies: list[Any] = [summary["accuracy"] for summary in found]
    return {
        "clip": privacy.get("clip"),
        "noise": noise,
        "epsilon": found[0]["epsilon"],
        "delta": found[0]["delta"],
        "accuracy_mean": statistics.mean(accuracies),
        "accuracy_sd": statistics.stdev(accuracies),
    }


def main() -> None:
    """Measure every point and write the result."""
    with tempfile.TemporaryDirectory() as folder:
        points = []
        for noise in NOISES:
            points.append(point(noise, Path(folder)))
            print(points[-1], flush=True)
    result = {"machine": describe(), "seeds": len(SEEDS), "base": BASE, "points": points}
    RESULT.write_text(json.dumps(result, indent=1) + "\n")


if __name__ == "__main__":
    main()
