"""Start-up: seconds from the command to the first round done, and to the end, by engine.

    .venv/bin/python -m benchmarks.bench_startup [--repetitions 3] [--json FILE]

Each run is a command of its own, `fedsparse run --preset demo --engine NAME`, as a user starts it.
The first round is done when `metrics.jsonl` holds its row. Engines take turns; one run before them
is not counted, so that files are in memory and bytecode is there, as after an installation.
`imports` is a process that imports torch and Flower and nothing else: no run can be faster.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from benchmarks import machine

ENGINES = ("inline", "ray", "flower")
IMPORTS = "import torch, flwr.app, flwr.serverapp, flwr.clientapp"
POLL_SECONDS = 0.01


def imports(environment: dict[str, str]) -> tuple[float, float]:
    """Return the seconds of a process that does its imports only, twice."""
    start = time.perf_counter()
    subprocess.run([sys.executable, "-c", IMPORTS], check=True, env=environment)
    seconds = time.perf_counter() - start
    return seconds, seconds


def run(engine: str, environment: dict[str, str]) -> tuple[float, float]:
    """Return the seconds to the row of round 1 and to the end of a command."""
    command = [sys.executable, "-m", "fedsparse.cli", "run", "--preset", "demo"]
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder) / "run"
        command += ["--engine", engine, "--out", str(out), "--quiet"]
        start = time.perf_counter()
        process = subprocess.Popen(command, stdout=subprocess.DEVNULL, env=environment)
        first = None
        while process.poll() is None:
            if first is None and _rounds(out / "metrics.jsonl") > 1:
                first = time.perf_counter() - start
            time.sleep(POLL_SECONDS)
        whole = time.perf_counter() - start
    if process.returncode or first is None:
        raise SystemExit(f"the run on {engine} ended with {process.returncode}")
    return first, whole


def _rounds(metrics: Path) -> int:
    """Return how many rounds are written down, the one before training included."""
    return metrics.read_bytes().count(b"\n") if metrics.exists() else 0


def main() -> None:
    """Time each engine in turn and print medians with their ranges."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--repetitions", type=int, default=3)
    parser.add_argument("--json", type=Path, metavar="FILE", help="write every figure there")
    given = parser.parse_args()
    seconds: dict[str, list[tuple[float, float]]] = {}
    with tempfile.TemporaryDirectory() as bytecode:
        environment = {k: v for k, v in os.environ.items() if k != "PYTHONDONTWRITEBYTECODE"}
        environment["PYTHONPYCACHEPREFIX"] = bytecode
        for repetition in range(given.repetitions + 1):
            for name in ("imports", *ENGINES):
                took = imports(environment) if name == "imports" else run(name, environment)
                if repetition:
                    seconds.setdefault(name, []).append(took)
    print(machine.one_line(machine.describe()))
    print(f"{'':10}{'first round':>22}{'whole command':>22}")
    for name, pairs in seconds.items():
        print(f"{name:10}" + "".join(_told(column) for column in zip(*pairs, strict=True)))
    if given.json:
        content = {"machine": machine.describe(), "seconds": seconds}
        given.json.write_text(json.dumps(content, indent=1) + "\n")


def _told(values: tuple[float, ...]) -> str:
    spread = f"({min(values):.1f} to {max(values):.1f})"
    return f"{statistics.median(values):7.1f} {spread:>14}"


if __name__ == "__main__":
    main()
