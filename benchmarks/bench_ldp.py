"""How near locally private sparse regression comes to the truth, by samples and by epsilon.

    .venv/bin/python -m benchmarks.bench_ldp

It writes benchmarks/results/ldp.json: |theta - true|_2 of `nldp` and `ldp-iht` on synthetic data
of 50 features, 5 of them true, over three seeds, beside methods without privacy. Up to 8 million
samples stream through what clients compute and what the server makes of it; whole runs of the
round loop, which hold all samples in memory, are made at one number of samples, as a check.
"""

import json
import statistics
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from safetensors.numpy import load_file

from benchmarks.machine import describe
from fedsparse import config, seeds
from fedsparse.config import Config, DataConfig
from fedsparse.data.synthetic import true_coefficients
from fedsparse.privacy import regression
from simulations.experiment import run_experiment
from strategies.ldp import LocallyPrivate
from strategies.ldp_iht import LdpIht
from strategies.nldp import Nldp
from strategies.task import Task

RESULT = Path(__file__).parent / "results" / "ldp.json"
SEEDS = (0, 1, 2)
EPSILONS = {"nldp": (2.0, 4.0, 8.0, 16.0), "ldp-iht": (1.0, 2.0, 4.0, 8.0)}
SAMPLES = {
    "nldp": tuple(5 * 10**5 * 2**i for i in range(5)),
    "ldp-iht": tuple(10**5 * 2**i for i in range(5)),
}
RUNS = {"nldp": (10**6, 8.0), "ldp-iht": (4 * 10**5, 4.0)}
"""Samples and epsilon of the whole runs."""
CHUNK = 2**18
OWN: dict[str, dict[str, Any]] = {
    "nldp": {"name": "nldp", "longest": 7.0, "largest": 14.0, "threshold": 1.0},
    "ldp-iht": {"name": "ldp-iht", "density": 0.1, "clip": 20.0, "clip_decay": 0.8, "step": 1.0},
}
BASE: dict[str, dict[str, Any]] = {
    "data": {
        "name": "synthetic-regression",
        "features": 50,
        "nonzero": 5,
        "noise": 0.1,
        "partition": "iid",
        "public_samples": 0,
        "client_test_fraction": 0,
    },
    "model": {"name": "linear"},
    "fleet": {"clients": 100, "evaluate_clients": 0},
    "engine": {"name": "inline"},
}

Points = dict[tuple[str, float, int], list[float]]


def setting(name: str, epsilon: float, seed: int, samples: int = 1000) -> Config:
    """Return the configuration of a run."""
    return config.resolve(
        {
            **BASE,
            "run": {"rounds": 1 if name == "nldp" else 10, "seed": seed, "eval_every": 10},
            "data": {**BASE["data"], "samples": samples},
            "strategy": {**OWN[name], "epsilon": epsilon},
        }
    )


def made(cls: type[LocallyPrivate], name: str, epsilon: float, seed: int) -> Any:
    """Return a strategy at its start; the data of its task is not used."""
    strategy = cls(Task.of(setting(name, epsilon, seed)))
    strategy.prepare(None)
    return strategy


def samples_of(
    data: DataConfig, seed: int, purpose: str, count: int
) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Yield `count` samples like those of synthetic-regression, some at a time."""
    true, rng = true_coefficients(data, seed), seeds.stream(seed, 0, 0, purpose)
    while count:
        size = min(CHUNK, count)
        x = rng.standard_normal((size, data.features), np.float32)
        noise = rng.standard_normal(size, np.float32)
        yield x, x @ true.astype(np.float32) + np.float32(data.noise) * noise
        count -= size


def error(theta: np.ndarray, data: DataConfig, seed: int) -> float:
    """Return |theta - true|_2."""
    return float(np.linalg.norm(theta.reshape(-1) - true_coefficients(data, seed)))


# -- the two methods --------------------------------------------------------------------


def nldp(seed: int, points: Points) -> None:
    """Add the errors of one seed: fewer samples are the first of more, their noise is its own."""
    strategies = {epsilon: made(Nldp, "nldp", epsilon, seed) for epsilon in EPSILONS["nldp"]}
    data, s = strategies[8.0].task.config.data, strategies[8.0].settings
    d = data.features
    told, clean = np.zeros(d * (d + 1) // 2 + d), (np.zeros((d, d)), np.zeros(d))
    done = 0
    for goal in SAMPLES["nldp"]:
        for x, y in samples_of(data, seed, f"moments to {goal}", goal - done):
            told += regression.moments(x, y, s.longest, s.largest)
            clean[0][...] += x.T @ x
            clean[1][...] += x.T @ y
        done = goal
        for epsilon, strategy in strategies.items():
            rng = seeds.stream(seed, goal, 0, f"noise of {epsilon}")
            sent = regression.noisy_mean(told, goal, strategy.deviation, rng)
            strategy.square, strategy.cross = sent[:-d] * goal, sent[-d:] * goal
            strategy.samples = goal
            points["nldp", epsilon, goal].append(error(strategy.solved(), data, seed))
        for name, theta in without_privacy(clean[0] / goal, clean[1] / goal, goal, data).items():
            points[name, np.inf, goal].append(error(theta, data, seed))


def ldp_iht(seed: int, points: Points) -> None:
    """Add the errors of one seed; each number of samples has samples of its own, in ten groups."""
    for goal in SAMPLES["ldp-iht"]:
        strategies = [made(LdpIht, "ldp-iht", epsilon, seed) for epsilon in EPSILONS["ldp-iht"]]
        data, s, rounds = strategies[0].task.config.data, strategies[0].settings, 10
        for number in range(1, rounds + 1):
            clip = regression.clip_of(s.clip, s.clip_decay, number)
            thetas = [each.state[each.weight].reshape(-1).astype(np.float64) for each in strategies]
            totals = np.zeros((len(strategies), data.features))
            for x, y in samples_of(data, seed, f"step {number} of {goal}", goal // rounds):
                for total, theta in zip(totals, thetas, strict=True):
                    total += regression.gradients(x, y, theta, clip)
            for total, strategy in zip(totals, strategies, strict=True):
                rng = seeds.stream(seed, number, 0, f"noise {goal} {strategy.settings.epsilon}")
                mean = regression.noisy_mean(total, goal // rounds, strategy.deviation, rng)
                strategy.take(strategy.stepped(mean, number))
        for epsilon, strategy in zip(EPSILONS["ldp-iht"], strategies, strict=True):
            found = error(strategy.state[strategy.weight], data, seed)
            points["ldp-iht", epsilon, goal].append(found)


def without_privacy(
    square: np.ndarray, cross: np.ndarray, samples: int, data: DataConfig
) -> dict[str, np.ndarray]:
    """Return least squares, IHT and Lasso (by ISTA) of the clean moments."""
    iht, lasso = np.zeros(len(cross)), np.zeros(len(cross))
    size = data.noise * (2 * np.log(len(cross)) / samples) ** 0.5
    for _ in range(200):
        iht = regression.hard_threshold(iht - 0.9 * (square @ iht - cross), data.nonzero)
        moved = lasso - 0.9 * (square @ lasso - cross)
        lasso = np.sign(moved) * np.maximum(np.abs(moved) - 0.9 * size, 0)
    return {"least squares": np.linalg.solve(square, cross), "iht": iht, "lasso": lasso}


def through_runs(name: str) -> dict[str, Any]:
    """Return the errors of whole runs, whose 100 clients each add noise of their own."""
    samples, epsilon = RUNS[name]
    found = []
    for seed in SEEDS:
        own = setting(name, epsilon, seed, samples)
        with tempfile.TemporaryDirectory() as folder:
            run_experiment(own, Path(folder) / "run", command="bench_ldp")
            weight = load_file(Path(folder) / "run" / "model.safetensors")["fc.weight"]
        found.append(error(weight, own.data, seed))
    return {"method": name, "epsilon": epsilon, "samples": samples, **spread(found)}


# -- figures ----------------------------------------------------------------------------


def spread(errors: list[float]) -> dict[str, float]:
    """Return mean and standard deviation."""
    return {"error_mean": statistics.mean(errors), "error_sd": statistics.stdev(errors)}


def told_from_noise(name: str, epsilon: float, samples: int) -> bool:
    """Tell, before looking at errors, whether noise is small enough for the rate to show.

    nldp: the largest eigenvalue of the noise on x x' is below half of the data's, which are about
    1. ldp-iht: the first step's noise on a coefficient is below half of the least true one, 1.
    """
    own = OWN[name]
    if name == "nldp":
        one = regression.deviation(regression.MOMENTS_SENSITIVITY, epsilon, 1e-5)
        return bool(10 * own["longest"] ** 2 * one / samples**0.5 < 0.5)
    one = regression.deviation(regression.GRADIENT_SENSITIVITY, epsilon, 1e-5)
    return bool(own["clip"] * one / (samples / 10) ** 0.5 < 0.5)


def slope(x: list[float], y: list[float]) -> float | None:
    """Return the slope of log y by log x; None of less than three points."""
    return float(np.polyfit(np.log(x), np.log(y), 1)[0]) if len(x) >= 3 else None


def slopes(means: dict[tuple[str, float, int], float]) -> list[dict[str, Any]]:
    """Return by method and epsilon the slope in samples; by method that in epsilon at the most."""
    found: list[dict[str, Any]] = []
    for name, counts in SAMPLES.items():
        for epsilon in EPSILONS[name]:
            seen = [n for n in counts if told_from_noise(name, epsilon, n)]
            every = [means[name, epsilon, n] for n in counts]
            found.append(
                {
                    "method": name,
                    "epsilon": epsilon,
                    "by": "samples",
                    "from": seen[0] if seen else None,
                    "points": len(seen),
                    "slope": slope(list(seen), [means[name, epsilon, n] for n in seen]),
                    "slope_of_all": slope(list(counts), every),
                }
            )
        most = counts[-1]
        seen = [e for e in EPSILONS[name] if told_from_noise(name, e, most)]
        errors = [means[name, e, most] for e in seen]
        noise = [regression.deviation(1.0, e, 1e-5) for e in seen]
        found.append({"method": name, "samples": most, "by": "epsilon", "epsilons": seen})
        found[-1] |= {"slope": slope(list(seen), errors), "slope_by_noise": slope(noise, errors)}
    return found


def summarised(points: Points) -> dict[str, Any]:
    """Return slopes and rows of what was measured; two seeds are the least."""
    means = {key: statistics.mean(errors) for key, errors in points.items()}
    rows = [
        {
            "method": name,
            "epsilon": None if epsilon == np.inf else epsilon,
            "samples": samples,
            **spread(errors),
            "told_from_noise": epsilon == np.inf or told_from_noise(name, epsilon, samples),
        }
        for (name, epsilon, samples), errors in points.items()
    ]
    return {"slopes": slopes(means), "points": rows}


def main() -> None:
    """Measure every point; the result is written anew after each seed from the second on."""
    points: Points = {
        (name, epsilon, n): []
        for name in SAMPLES
        for epsilon in EPSILONS[name]
        for n in SAMPLES[name]
    }
    clean = ("least squares", "iht", "lasso")
    points |= {(name, np.inf, n): [] for name in clean for n in SAMPLES["nldp"]}
    result: dict[str, Any] = {"machine": describe(), "base": BASE, "strategies": OWN, "delta": 1e-5}
    for done, seed in enumerate(SEEDS, 1):
        ldp_iht(seed, points)
        nldp(seed, points)
        print(f"seed {seed} done", flush=True)
        if done > 1:
            result |= {"seeds": done, **summarised(points)}
            RESULT.write_text(json.dumps(result, indent=1) + "\n")
    for row in result["slopes"]:
        print(row, flush=True)
    result["runs"] = [through_runs(name) for name in RUNS]
    RESULT.write_text(json.dumps(result, indent=1) + "\n")


if __name__ == "__main__":
    main()
