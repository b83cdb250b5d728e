"""Thousands of tiny runs under faults, each by a seed: what does not hold, and how to see it again.

    .venv/bin/python -m benchmarks.fault_schedules [--schedules 10000] [--first 0] [--plant BUG]

A seed draws a strategy, faults of clients and messages, and deaths of the coordinator: killed
between two steps or in the middle of a write, or out of disk. What must hold is in
tests/faults/invariants.py. `--plant` puts a known bug in, which must be found.
"""

import argparse
import json
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path

import torch
from rich.progress import Progress

from fedsparse.runs.atomic import write_file
from tests.faults.planted import BUGS
from tests.faults.schedules import plan_of, problems_of

SHOWN = 5
"""Failing seeds after which a planted bug is taken as found, and no more are played."""


def main() -> None:
    """Play the schedules, print the failing seeds, and leave with 1 where there are any."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--schedules", type=int, default=10000)
    parser.add_argument("--first", type=int, default=0)
    parser.add_argument("--plant", choices=sorted(BUGS))
    parser.add_argument(
        "--scratch", type=Path, help="where the runs lie; a folder in memory is fast"
    )
    parser.add_argument("--json", type=Path, help="where the figures go")
    given = parser.parse_args()
    torch.set_num_threads(1)
    began = time.perf_counter()
    ends: Counter[str] = Counter()
    faults: Counter[str] = Counter()
    broken: dict[int, str] = {}
    played = 0
    with tempfile.TemporaryDirectory(dir=given.scratch) as folder, Progress() as progress:
        bar = progress.add_task("schedules", total=given.schedules)
        for seed in range(given.first, given.first + given.schedules):
            problems, told = problems_of(seed, Path(folder), BUGS.get(given.plant))
            ends.update(told)
            faults.update(plan_of(seed).schedule.faults.values())
            played += 1
            if problems:
                broken[seed] = problems[0].strip().splitlines()[-1]
                again = f"python -m benchmarks.fault_schedules --first {seed} --schedules 1"
                plant = f" --plant {given.plant}" if given.plant else ""
                progress.console.print(f"seed {seed}: {broken[seed]}\n  again: {again}{plant}")
            progress.advance(bar)
            if given.plant and len(broken) == SHOWN:
                break
    figures = {
        "schedules": played,
        "first": given.first,
        "broken": broken,
        "lives": dict(sorted(ends.items())),
        "faults": dict(sorted(faults.items())),
        "seconds": round(time.perf_counter() - began, 1),
    }
    print(json.dumps(figures, indent=1))
    if given.json:
        write_file(given.json, (json.dumps(figures, indent=1) + "\n").encode())
    sys.exit(bool(broken))


if __name__ == "__main__":
    main()
