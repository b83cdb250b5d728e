"""Instructions that the kernels take for a training step: a check that does not wobble.

    .venv/bin/python -m benchmarks.kernel_instructions            compare with the figures kept
    .venv/bin/python -m benchmarks.kernel_instructions --keep     keep the figures found

Valgrind's callgrind counts within `train` of the program of node_main.cpp: one batch of 16,
forward, backward, SGD with momentum, by the AVX2 kernels (valgrind has no AVX-512). Figures
are those of one compiler: with another one the check is skipped, and says so. It ends with 1
when a case takes over 3 % more.
"""

import argparse
import json
import os
import re
import shutil
import subprocess
import tempfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from benchmarks.native_jobs import Case, prepare
from fedsparse.kernels import build, library, node

KEPT = Path(__file__).with_suffix(".json")
MADE = Path(__file__).parent.parent / "build" / "callgrind"
ISA = "avx2"
BATCH = 16
MARGIN = 0.03
CASES = (
    *(Case("paper-cnn", 1.0, "dense"), Case("paper-cnn", 0.05, "sparse")),
    *(Case("leaf-cnn", 1.0, "dense"), Case("leaf-cnn", 0.01, "sparse")),
    *(Case("mobilenet-v1", 1.0, "dense"), Case("mobilenet-v1", 0.05, "sparse")),
    *(Case("resnet18", 1.0, "dense"), Case("resnet18", 0.05, "sparse")),
)


def unable() -> str:
    """Return what the count needs and this machine lacks; empty if nothing."""
    if build.find_compiler() is None:
        return "no C++ compiler"
    if shutil.which("valgrind") is None:
        return "no valgrind"
    try:
        library.load(ISA)
    except library.Unavailable as error:
        return str(error)
    return ""


def count_all(program: Path) -> dict[str, int]:
    """Return the instructions of one training step, by case."""
    with tempfile.TemporaryDirectory() as folder:
        jobs = {str(case): Path(folder) / f"{number}" for number, case in enumerate(CASES)}
        for case, job in zip(CASES, jobs.values(), strict=True):
            prepare(case, batch=BATCH, instructions=ISA).write(job)
        with ThreadPoolExecutor(os.cpu_count()) as pool:
            counted = pool.map(lambda job: count(program, job), jobs.values())
            return dict(zip(jobs, counted, strict=True))


def count(program: Path, job: Path) -> int:
    """Return the instructions of training one job."""
    command = [
        *("valgrind", "--tool=callgrind", f"--callgrind-out-file={job}.out"),
        *(f"--toggle-collect=fedsparse::{ISA}::train(*", program, job, f"{job}.result"),
    ]
    environment = {**os.environ, library.SWITCH: ISA}
    done = subprocess.run(command, capture_output=True, text=True, check=True, env=environment)
    found = re.search(r"Collected : (\d+)", done.stderr)
    if found is None or int(found[1]) == 0:
        raise SystemExit(f"callgrind counted nothing:\n{done.stderr}")
    return int(found[1])


def main() -> int:
    """Count, and keep or compare: 1 when a case takes more than the figures kept allow."""
    options = argparse.ArgumentParser(description="Count instructions of training steps.")
    options.add_argument("--keep", action="store_true", help=f"write {KEPT.name}")
    chosen = options.parse_args()
    if lacking := unable():
        print(f"skipped: {lacking}")
        return 0
    compiler = build.find_compiler()
    assert compiler is not None
    kept = json.loads(KEPT.read_text()) if KEPT.is_file() else {}
    if not chosen.keep and kept.get("compiler") != compiler.version:
        print(f"skipped: the figures kept are of {kept.get('compiler')}, not {compiler.version}")
        return 0
    MADE.mkdir(parents=True, exist_ok=True)
    program = node.compile_node(compiler, MADE / "node", names=[ISA])
    found = count_all(program)
    if chosen.keep:
        figures = {"compiler": compiler.version, "instructions_a_step": found}
        KEPT.write_text(json.dumps(figures, indent=2) + "\n")
    grown = False
    for case, number in found.items():
        before = kept.get("instructions_a_step", {}).get(case, number)
        change = number / before - 1
        grown |= change > MARGIN
        print(f"{case:28}{number:>14,}{change:>+8.1%}{'  GROWN' if change > MARGIN else ''}")
    if grown and not chosen.keep:
        print(f"over {MARGIN:.0%} more instructions; if that is meant, keep the figures: --keep")
        return 1
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
