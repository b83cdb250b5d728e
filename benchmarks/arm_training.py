"""What training costs on ARM: instructions of a step, counted under emulation.

    .venv/bin/python -m benchmarks.arm_training [--model NAME]... [--json]

The kernels are compiled for aarch64 and run by qemu's model of a Cortex-A72; arm/count.c, a
plugin of qemu's, counts. A step is a batch of 32: forward, backward, SGD with momentum. Its
instructions are what a round of two steps takes more than one of one step. They are not time:
an emulator has no caches. Beside them stands how far the trained weights lie from x86's, and,
as a measure of what rounding alone does to that round, how far x86's own instruction sets lie
apart. Needs a cross compiler and qemu (Debian: g++-aarch64-linux-gnu qemu-user).
"""

import argparse
import json
import re
import shutil
import subprocess
import tempfile
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np

from benchmarks.native_jobs import Case, prepare
from fedsparse.kernels import build, library, node
from fedsparse.kernels.program import Values

HERE = Path(__file__).parent
MADE = HERE.parent / "build" / "arm"
COMPILER, EMULATOR, CORE = "aarch64-linux-gnu-g++", "qemu-aarch64", "cortex-a72"
DENSITIES = (0.1, 0.05, 0.01)
MODELS = ("paper-cnn", "leaf-cnn", "mobilenet-v1")
STEPS = (1, 2)


class Lacking(Exception):
    """What ARM training needs and this machine lacks; the message names it."""


@dataclass(frozen=True)
class Measured:
    """A round on ARM: instructions a step, how far its weights lie from x86's."""

    case: Case
    instructions: int
    difference: float
    of_rounding: float


@dataclass(frozen=True)
class Arm:
    """The program compiled for aarch64, and the plugin of the emulator that counts."""

    program: Path
    plugin: Path

    @classmethod
    def made(cls) -> "Arm":
        """Compile both where their sources changed; raises Lacking."""
        compiler = build.ask(COMPILER)
        if compiler is None:
            raise Lacking(f"no {COMPILER}; Debian's package g++-aarch64-linux-gnu has it")
        if shutil.which(EMULATOR) is None:
            raise Lacking(f"no {EMULATOR}; Debian's package qemu-user has it")
        try:
            library.load()
        except library.Unavailable as error:
            raise Lacking(str(error)) from None
        MADE.mkdir(parents=True, exist_ok=True)
        program = node.compile_node(compiler, MADE / "node", extra=["-static"])
        plugin = MADE / "count.so"
        flags = ["-O2", "-Wall", "-Wextra", "-shared", "-fPIC"]
        subprocess.run(["cc", *flags, "-o", plugin, HERE / "arm" / "count.c"], check=True)
        return cls(program, plugin)

    def train(self, job: Path, result: Path, epochs: int, *, count: bool = True) -> int:
        """Train a job's first epochs; return all instructions of the run, 0 if not counted.

        Raises Lacking where the emulator takes no plugin, and CalledProcessError where the
        program fails.
        """
        plugin = ["-plugin", self.plugin] if count else []
        command = [EMULATOR, "-cpu", CORE, *plugin, self.program, job, result, str(epochs)]
        done = subprocess.run(command, capture_output=True, text=True)
        if "plugin" in done.stderr:
            raise Lacking(f"{EMULATOR} takes no plugin of ours: {done.stderr.strip()}")
        done.check_returncode()
        found = re.search(r"^instructions (\d+)$", done.stderr, re.MULTILINE)
        return int(found[1]) if found else 0


def measure(arm: Arm, case: Case) -> Measured:
    """Return what a step takes on ARM and where two of them lead; raises Lacking."""
    first, last = STEPS
    prepared = prepare(case, epochs=last, instructions="baseline")
    ours, _, _ = prepared.train()
    widest, _, _ = prepare(case, epochs=last).train()
    with tempfile.TemporaryDirectory() as folder:
        job, result = Path(folder) / "job", Path(folder) / "result"
        prepared.write(job)
        before = arm.train(job, result, first)
        after = arm.train(job, result, last)
        trained, _, _ = node.read_result(result)
    a_step = (after - before) // (last - first)
    return Measured(case, a_step, difference(trained, ours), difference(widest, ours))


def difference(left: Values, right: Values) -> float:
    """Return the largest difference between two clients' parameters and statistics."""
    parts = [(left.parameters, right.parameters), (left.buffers, right.buffers)]
    return max(float(np.max(np.abs(a - b), initial=0.0)) for a, b in parts)


def main() -> None:
    """Print a table, or JSON, of what the models take."""
    options = argparse.ArgumentParser(description="Count what training takes on ARM.")
    options.add_argument("--model", action="append", help=f"of the zoo (default: {MODELS})")
    options.add_argument("--json", action="store_true", help="print one JSON object")
    chosen = options.parse_args()
    try:
        arm = Arm.made()
        rows = []
        for model in chosen.model or MODELS:
            cases = [Case(model, 1.0, "dense"), *(Case(model, d, "sparse") for d in DENSITIES)]
            rows += [measure(arm, case) for case in cases]
    except Lacking as lacking:
        raise SystemExit(f"skipped: {lacking}") from None
    if chosen.json:
        print(json.dumps({"core": CORE, "batch": 32, "results": [asdict(row) for row in rows]}))
        return
    print(f"{'':28}{'instructions':>14}{'dense over':>12}{'from x86':>10}{'x86 apart':>11}")
    print(f"{'':28}{'a step':>14}{'this':>12}{'':>10}{'':>11}")
    for row in rows:
        if row.case.form == "dense":
            dense = row.instructions
        print(
            f"{row.case!s:28}{row.instructions:>14,}{dense / row.instructions:>12.2f}"
            f"{row.difference:>10.1e}{row.of_rounding:>11.1e}"
        )


if __name__ == "__main__":
    main()
