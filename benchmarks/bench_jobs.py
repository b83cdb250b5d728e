"""A whole federated job: fedsparse beside a plain PyTorch loop, Flower, pfl-research and FedJAX.

    .venv/bin/python -m benchmarks.bench_jobs --setup     once: a virtual environment a rival
    .venv/bin/python -m benchmarks.bench_jobs             all models, JSON and a table

Fashion-MNIST, 100 clients (Dirichlet 0.5), 10 a round, one epoch, batches of 32, SGD of 0.05. Each
side is a process of its own, started anew for each repetition, and sides take turns: ratios are
those of one repetition, their median is told with its range. A round is everything between two of
them: local training, aggregation, moving models. Left out of it: tests and checkpoints, which no
side makes then. Linux only.
"""

import argparse
import json
import os
import shlex
import signal
import statistics
import subprocess
import sys
import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks import machine
from benchmarks.rivals import job

ROOT = Path(__file__).parent.parent
CACHE = Path(os.environ.get("FEDSPARSE_BENCHMARKS", "~/.cache/fedsparse-benchmarks")).expanduser()
RESULTS = ROOT / "benchmarks" / "results"
ENVIRONMENTS = ("flower_engine", "pfl_research", "fedjax_job")
TIMEOUT = 300.0


@dataclass(frozen=True)
class Side:
    """One way to do the job: a script, its arguments, and the environment that it runs in."""

    name: str
    script: str
    arguments: tuple[str, ...] = ()
    models: tuple[str, ...] = ("tiny", "leaf", "resnet18")
    processes: int = 1
    torchrun: bool = False
    variables: tuple[tuple[str, str], ...] = ()

    def command(self, model: str, rounds: int) -> list[str]:
        """Return what runs it; the plain loop and fedsparse run in this interpreter."""
        own = self.script in ENVIRONMENTS
        python = CACHE / self.script / "bin" / "python" if own else Path(sys.executable)
        run = ["-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={self.processes}"]
        return [
            str(python),
            *(run if self.torchrun else []),
            *("-m", f"benchmarks.rivals.{self.script}"),
            *("--job", str(CACHE / "job"), "--model", model, "--rounds", str(rounds)),
            *self.arguments,
        ]


def ours(
    engine: str, backend: str, density: float = 1.0, precision: str = "f32", **more: Any
) -> Side:
    """Return fedsparse in one of its forms."""
    form = "dense" if density == 1 else f"density {density:g}"
    form += "" if precision == "f32" else f", {precision}"
    workers = "in one process" if engine == "inline" else "2 workers"
    arguments = ["--engine", engine, "--backend", backend]
    arguments += ["--density", str(density), "--precision", precision]
    return Side(
        f"fedsparse {backend}, {workers}, {form}",
        "fedsparse_job",
        tuple(arguments),
        processes=1 if engine == "inline" else 2,
        **more,
    )


PLAIN = Side("plain PyTorch loop", "plain_torch")
TWO_DEVICES = (("XLA_FLAGS", "--xla_force_host_platform_device_count=2"),)
LIBRARIES = (
    Side("Flower's engine, 2 workers", "flower_engine", models=("tiny", "leaf"), processes=2),
    Side("pfl-research, in one process", "pfl_research", models=("tiny",)),
    Side(
        "pfl-research, 2 processes",
        "pfl_research",
        models=("tiny", "leaf"),
        processes=2,
        torchrun=True,
    ),
    Side("FedJAX, jit", "fedjax_job", models=("tiny", "leaf")),
    Side(
        "FedJAX, pmap, 2 devices",
        "fedjax_job",
        ("--backend", "pmap"),
        models=("tiny",),
        variables=TWO_DEVICES,
    ),
)
OURS = (
    ours("inline", "torch", models=("tiny",)),
    ours("ray", "torch"),
    ours("inline", "native", models=("tiny", "leaf")),
    ours("ray", "native"),
    ours("ray", "torch", precision="bf16", models=("leaf",)),
    ours("ray", "torch", 0.05, models=("tiny",)),
    ours("inline", "native", 0.05),
    ours("ray", "native", 0.05),
    ours("ray", "native", 0.01),
)
SIDES = (PLAIN, *LIBRARIES, *OURS)
ROUNDS = {"tiny": 8, "leaf": 1, "resnet18": 1}
"""Measured rounds of a repetition; as REPEATS, so that slow models don't take the whole time."""
REPEATS = {"tiny": 3, "leaf": 3, "resnet18": 2}


def runs_here(side: Side, model: str) -> bool:
    """Whether a side does a model; bf16 only where the processor has it: emulated, it crawls."""
    fast = {"avx512_bf16", "amx_tile"} & set(machine.describe()["instructions"])
    return model in side.models and ("bf16" not in side.name or bool(fast))


def set_up() -> None:
    """Make a virtual environment for each rival from its requirements, once."""
    for name in ENVIRONMENTS:
        folder, wanted = CACHE / name, ROOT / "benchmarks" / "rivals" / f"{name}.txt"
        done = folder / "requirements.txt"
        if done.exists() and done.read_text() == wanted.read_text():
            continue
        print(f"{name}: installing into {folder}", file=sys.stderr)
        subprocess.run([sys.executable, "-m", "venv", "--clear", str(folder)], check=True)
        pip = [str(folder / "bin" / "python"), "-m", "pip", "install", "--quiet"]
        subprocess.run([*pip, "-r", str(wanted)], check=True)
        done.write_text(wanted.read_text())
    write_job(CACHE / "job")


def write_job(folder: Path, rounds: int = 50) -> None:
    """Write the arrays that all sides read: as fedsparse deals them, and who takes part when."""
    import numpy as np

    from benchmarks.rivals import fedsparse_job
    from fedsparse import data
    from strategies.addressing import cohort

    config = fedsparse_job.settings("tiny", "inline", "torch", 1.0, "f32", rounds)
    dealt = data.load(config.data, clients=config.fleet.clients, seed=config.run.seed)
    numbers = range(1, rounds + 1)
    arrays = {
        "x": dealt.train.x,
        "y": dealt.train.y,
        "test_x": dealt.test.x,
        "test_y": dealt.test.y,
        "order": np.concatenate([dealt.partition[client] for client in range(dealt.clients)]),
        "sizes": np.array(dealt.sizes),
        "cohorts": np.array([cohort(config.fleet, config.run.seed, n) for n in numbers]),
    }
    folder.mkdir(parents=True, exist_ok=True)
    for name in job.NAMES:
        np.save(folder / f"{name}.npy", arrays[name])


def run(side: Side, model: str, rounds: int, under: Sequence[str]) -> dict[str, Any]:
    """Run one side once and return its line, or {"failed": the last line it wrote}."""
    environment = {**os.environ, job.LAUNCHED: str(job.now()), **dict(side.variables)}
    command = [*under, *side.command(model, rounds)]
    # A session of its own, so that on a time-out the side ends with all that it started.
    process = subprocess.Popen(
        command,
        cwd=ROOT,
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    try:
        output, errors = process.communicate(timeout=TIMEOUT)
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, signal.SIGKILL)
        process.communicate()
        return {"failed": f"not done after {TIMEOUT:.0f} s"}
    lines = [line for line in output.splitlines() if line.startswith('{"side"')]
    if process.returncode or not lines:
        told = [line for line in errors.splitlines() if line.strip()]
        return {"failed": told[-1] if told else f"exit code {process.returncode}"}
    found: dict[str, Any] = json.loads(lines[-1])
    return found


def measure(
    models: Iterable[str], sides: Sequence[Side], repeats: int, rounds: int, under: Sequence[str]
) -> dict[str, dict[str, list[dict[str, Any]]]]:
    """Run all sides in turn, `repeats` times, and return their lines by model and side."""
    found: dict[str, dict[str, list[dict[str, Any]]]] = {}
    for model in models:
        chosen = [side for side in sides if runs_here(side, model)]
        table = found[model] = {side.name: [] for side in chosen}
        times = repeats or REPEATS[model]
        for number in range(times):
            for side in chosen:
                line = run(side, model, rounds or ROUNDS[model], under)
                table[side.name].append(line)
                speed = line.get("samples_per_second")
                told = f"{speed:,.0f} samples/s" if speed else f"failed: {line['failed']}"
                print(f"{model} {number + 1}/{times} {side.name}: {told}", file=sys.stderr)
    return found


def ratios(table: dict[str, list[dict[str, Any]]], name: str, reference: str) -> list[float]:
    """Return a side's speed over another's, one for each repetition in which both ended well."""
    return [
        mine["samples_per_second"] / other["samples_per_second"]
        for mine, other in zip(table[name], table.get(reference, ()), strict=False)
        if "failed" not in mine and "failed" not in other
    ]


def spread(values: Sequence[float], form: str) -> str:
    """Return a median with its range."""
    if not values:
        return "–"
    middle = format(statistics.median(values), form)
    if len(values) == 1:
        return middle
    return f"{middle} ({format(min(values), form)}–{format(max(values), form)})"


def render(model: str, table: dict[str, list[dict[str, Any]]]) -> str:
    """Return a model's figures in Markdown: each side, then ours against each rival."""
    lines = [
        "| side | processes | samples a second | plain loop = 1 | start-up, s | first round, s "
        "| accuracy |",
        "| --- | ---: | ---: | ---: | ---: | ---: | ---: |",
    ]
    for name, runs in table.items():
        good = [line for line in runs if "failed" not in line]
        if not good:
            lines.append(f"| {name} | failed: {runs[-1]['failed'][:80]} | | | | | |")
            continue
        lines.append(
            f"| {name} | {good[0]['processes']}"
            f" | {spread([line['samples_per_second'] for line in good], ',.0f')}"
            f" | {spread(ratios(table, name, PLAIN.name), '.2f')}"
            f" | {statistics.median(line['start_seconds'] for line in good):.1f}"
            f" | {statistics.median(line['first_round_seconds'] for line in good):.1f}"
            f" | {statistics.median(line['accuracy'] for line in good):.3f} |"
        )
    rivals = [side.name for side in LIBRARIES if side.name in table]
    if not rivals:
        return "\n".join(lines) + "\n"
    lines += ["", f"| {model}: times as fast as | " + " | ".join(rivals) + " |"]
    lines += ["| --- |" + " ---: |" * len(rivals)]
    for side in OURS:
        if side.name in table:
            cells = [spread(ratios(table, side.name, rival), ".2f") for rival in rivals]
            lines.append(f"| {side.name} | " + " | ".join(cells) + " |")
    return "\n".join(lines) + "\n"


def main() -> None:
    """Measure, write the JSON, print the tables."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--setup", action="store_true", help="install the rivals, and stop")
    parser.add_argument("--models", default="tiny,leaf,resnet18")
    parser.add_argument("--sides", default="", help="parts of names, by comma; all if not given")
    parser.add_argument("--repeats", type=int, default=0, help="by model if not given")
    parser.add_argument("--rounds", type=int, default=0, help="measured a repetition; by model")
    parser.add_argument("--under", default="", help="a command before each side's, such as nice")
    parser.add_argument("--out", type=Path, default=RESULTS / "jobs.json")
    given = parser.parse_args()
    if given.setup:
        set_up()
        return
    if not (CACHE / "job").exists():
        parser.error("the rivals are not installed; run it with --setup first")
    wanted = given.sides.split(",")
    sides = [side for side in SIDES if any(part in side.name for part in wanted)]
    started = time.time()
    found = measure(
        given.models.split(","), sides, given.repeats, given.rounds, shlex.split(given.under)
    )
    ran_on = machine.describe()
    result = {
        "machine": ran_on,
        "seconds": round(time.time() - started),
        "models": found,
    }
    given.out.parent.mkdir(parents=True, exist_ok=True)
    given.out.write_text(json.dumps(result, indent=1) + "\n")
    print(machine.one_line(ran_on) + "\n")
    for model, table in found.items():
        print(f"### {model}\n\n{render(model, table)}")


if __name__ == "__main__":
    main()
