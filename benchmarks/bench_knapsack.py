"""pFedGate's knapsack: what greedy loses against dynamic programming, and how long each takes.

    .venv/bin/python -m benchmarks.bench_knapsack [--draws 200]

Gates are drawn around 0.5 as training leaves them, 0.5 + 0.15 z clipped to [s_min, 1]. The loss is
that of the total value of the used blocks, relative to the exact solver's; `used` is the part of
the budget that is used.
"""

import argparse
import time

import numpy as np

from fedsparse import models
from fedsparse.sparsity import knapsack
from fedsparse.sparsity.blocks import Blocks

MODELS = {"paper-cnn": 1.0, "leaf-cnn": 1.0, "resnet18": 0.25, "mobilenet-v1": 0.25}
BUDGETS = (0.3, 0.5, 0.75)


def main() -> None:
    """Print a line a model and budget."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--draws", type=int, default=200)
    draws = parser.parse_args().draws
    print("| model | blocks | s | greedy's loss | used, greedy | used, exact | greedy | exact |")
    print("| --- | ---: | ---: | ---: | ---: | ---: | ---: | ---: |")
    for name, width in MODELS.items():
        shape = (1, 28, 28)
        model = models.build(name, input_shape=shape, classes=10, width=width)
        blocks = Blocks.of(model, 5)
        for budget in BUDGETS:
            print(f"| {name} | {len(blocks)} | {budget} | " + line(blocks, budget, draws) + " |")


def line(blocks: Blocks, budget: float, draws: int) -> str:
    """Return the figures of one budget as cells."""
    rng = np.random.default_rng(0)
    least = knapsack.least_gate(blocks, budget)
    values = {"greedy": 0.0, "exact": 0.0}
    used = dict.fromkeys(values, 0.0)
    seconds = dict.fromkeys(values, 0.0)
    for _ in range(draws):
        gate = np.clip(0.5 + 0.15 * rng.standard_normal(len(blocks)), least, 1.0)
        worth = np.rint(knapsack.DIGITS * gate)
        for solver in values:
            start = time.perf_counter()
            counts = knapsack.choose(gate, blocks, budget, solver=solver)
            seconds[solver] += time.perf_counter() - start
            values[solver] += float(worth[(counts > 0) & ~blocks.first].sum())
            used[solver] += counts.sum() / (budget * blocks.entries)
    loss = 1 - values["greedy"] / values["exact"]
    cells = [f"{100 * loss:.2f} %"]
    cells += [f"{100 * used[solver] / draws:.1f} %" for solver in values]
    cells += [f"{1e3 * seconds[solver] / draws:.2f} ms" for solver in values]
    return " | ".join(cells)


if __name__ == "__main__":
    main()
