"""A hundred thousand mutated inputs to every parser that sees foreign bytes, and what came of them.

    .venv/bin/python -m benchmarks.fuzz_parsers [--inputs 100000] [--parser NAME] [--json FILE]

Inputs are valid ones, mutated by a seed; half of those with a checksum get one that fits. A parser
reads one, or refuses it by an error of fedsparse's own family in one line; all else is a finding,
also memory beyond 2 GiB of what the process takes at the start.
"""

import argparse
import json
import resource
import sys
import tempfile
import time
from pathlib import Path

from rich.progress import Progress

from fedsparse.runs.atomic import write_file
from tests.fuzz.fuzzing import Found, feed
from tests.fuzz.parsers import PARSERS

EXTRA_BYTES = 2 * 2**30
STEP = 250


def bound_memory() -> None:
    """Let this process take 2 GiB more than it has, and no more."""
    pages = int(Path("/proc/self/statm").read_text().split()[0])
    limit = pages * resource.getpagesize() + EXTRA_BYTES
    resource.setrlimit(resource.RLIMIT_AS, (limit, limit))


def main() -> None:
    """Feed the parsers, print findings, and leave with 1 where there are any."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--inputs", type=int, default=100_000, help="in all")
    parser.add_argument("--first", type=int, default=0)
    parser.add_argument("--parser", choices=sorted(PARSERS))
    parser.add_argument("--scratch", type=Path, help="a folder in memory is fast")
    parser.add_argument("--json", type=Path, help="where the figures go")
    given = parser.parse_args()
    chosen = {given.parser: PARSERS[given.parser]} if given.parser else PARSERS
    for one in chosen.values():
        one.corpus()
    bound_memory()
    each = -(-given.inputs // len(chosen))
    began = time.perf_counter()
    figures: dict[str, dict[str, object]] = {}
    broken = 0
    with tempfile.TemporaryDirectory(dir=given.scratch) as folder, Progress() as progress:
        bar = progress.add_task("inputs", total=each * len(chosen))
        for name, one in chosen.items():
            whole = Found()
            for first in range(given.first, given.first + each, STEP):
                found = feed(one, first, min(STEP, given.first + each - first), Path(folder))
                whole.inputs += found.inputs
                whole.ends.update(found.ends)
                whole.broken |= found.broken
                whole.slowest = max(whole.slowest, found.slowest)
                progress.advance(bar, found.inputs)
            for seed, text in list(whole.broken.items())[:5]:
                again = f"--parser '{name}' --first {seed} --inputs 1"
                progress.console.print(
                    f"{name}, seed {seed}: {text}\n  again: {again}", markup=False
                )
            broken += len(whole.broken)
            figures[name] = {
                "inputs": whole.inputs,
                **dict(sorted(whole.ends.items())),
                "broken": len(whole.broken),
                "slowest_seconds": round(whole.slowest, 3),
            }
    told = {
        "inputs": sum(int(str(row["inputs"])) for row in figures.values()),
        "broken": broken,
        "seconds": round(time.perf_counter() - began, 1),
        "parsers": figures,
    }
    print(json.dumps(told, indent=1))
    if given.json:
        write_file(given.json, (json.dumps(told, indent=1) + "\n").encode())
    sys.exit(bool(broken))


if __name__ == "__main__":
    main()
