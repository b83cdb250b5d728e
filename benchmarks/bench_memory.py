"""Peak memory of one client's training, beside what the cost model says that it needs.

    .venv/bin/python -m benchmarks.bench_memory

MobileNet-v1 of width 0.25 on images of 3 x 32 x 32, SGD with momentum, a random ERK mask. Each
figure is from a process of its own: the most resident memory while it trains (VmHWM) above what
it held before, when all was imported, the samples were loaded, and a small model had been trained
by the same backend so that its code was in memory. Included are weights, gradients, momentum,
activations, scratch, and what the allocator does not give back; of torch its module, too, of
native the arrays of its own. *Arena* is what the native trainer sets aside for activations, their
gradients and scratch. Medians of several processes. Linux only.
"""

import argparse
import ctypes
import gc
import json
import statistics
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any

from benchmarks import machine

MODEL, WIDTH, SHAPE, CLASSES, SAMPLES = "mobilenet-v1", 0.25, (3, 32, 32), 10, 256
RESULTS = Path(__file__).parent / "results"
FIGURES = ("measured", "arena", "analytic")


def resident(field: str) -> int:
    """Return VmRSS or VmHWM of this process in bytes."""
    lines = Path("/proc/self/status").read_text().splitlines()
    (kilobytes,) = (line.split()[1] for line in lines if line.startswith(field))
    return int(kilobytes) * 1024


def settle() -> int:
    """Give back what is free, forget the peak so far, and return what is held."""
    gc.collect()
    ctypes.CDLL(None).malloc_trim(0)
    Path("/proc/self/clear_refs").write_text("5")
    return resident("VmRSS")


def measure(backend: str, density: float, batch: int) -> dict[str, float]:
    """Train in this process and return bytes: measured, the native arena, analytic."""
    import numpy as np
    import torch

    from fedsparse import models
    from fedsparse.data import Dataset
    from fedsparse.messages import Plan
    from fedsparse.sections import ClientConfig
    from fedsparse.sparsity import ModelCost, static_mask
    from fedsparse.training.backend import Backend
    from fedsparse.training.native import NativeModel
    from fedsparse.training.price import price

    torch.set_num_threads(1)
    settings = ClientConfig(lr=0.01, batch_size=batch, momentum=0.9, backend=backend)
    rng = np.random.default_rng(0)
    x = rng.standard_normal((SAMPLES, *SHAPE), dtype=np.float32)
    data = Dataset(x, rng.integers(0, CLASSES, SAMPLES), CLASSES)

    def build(name: str, width: float) -> torch.nn.Module:
        module = models.build(name, input_shape=SHAPE, classes=CLASSES, width=width)
        return module.to(memory_format=torch.channels_last)

    small = build("cnn", 0.25)
    warm = Backend(small, SHAPE, settings).load(models.get_state(small))
    few = data.take(np.arange(2 * batch))
    # In a thread of its own: a thread keeps its arena, which would not be counted here.
    warming = threading.Thread(target=warm.train, args=(few, settings), kwargs={"rng": rng})
    warming.start()
    warming.join()
    module = build(MODEL, WIDTH)
    cost, state, mask = ModelCost.of(module, SHAPE), models.get_state(module), None
    if density < 1:
        mask = static_mask(
            module, models.prunable(module), density, "random", allocation="erk", rng=rng
        )
    chosen = Backend(module, SHAPE, settings)
    if chosen.native:
        _ = chosen.graph, chosen.rule
    else:
        del module, chosen
    before = settle()
    if backend == "torch":
        chosen = Backend(build(MODEL, WIDTH), SHAPE, settings)
    client = chosen.load(state, mask)
    client.train(data, settings, rng=rng)
    kept = None if mask is None else mask.layer_kept()
    arena = client.program.arena_bytes(batch) if isinstance(client, NativeModel) else 0
    return {
        "measured": resident("VmHWM") - before,
        "arena": arena,
        "analytic": price(cost, settings, Plan(), SAMPLES, kept).memory.total,
    }


def main() -> None:
    """Measure every form in processes of their own, write the JSON, print the table."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--batches", default="32,16")
    parser.add_argument("--densities", default="1,0.01")
    parser.add_argument("--backends", default="torch,native")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--out", type=Path, default=RESULTS / "memory.json")
    parser.add_argument("--one", action="store_true", help="the first of each here, as JSON")
    given = parser.parse_args()
    backends = given.backends.split(",")
    densities = [float(density) for density in given.densities.split(",")]
    batches = [int(batch) for batch in given.batches.split(",")]
    if given.one:
        print(json.dumps(measure(backends[0], densities[0], batches[0])))
        return
    rows = []
    for batch in batches:
        for backend in backends:
            for density in densities:
                runs = [alone(backend, density, batch) for _ in range(given.repeats)]
                figures = {f: statistics.median(run[f] for run in runs) for f in FIGURES}
                rows.append({"batch": batch, "backend": backend, "density": density, **figures})
    ran_on = machine.describe()
    given.out.parent.mkdir(parents=True, exist_ok=True)
    given.out.write_text(json.dumps({"machine": ran_on, "rows": rows}, indent=1) + "\n")
    print(f"{machine.one_line(ran_on)}\n\n{render(rows)}")


def alone(backend: str, density: float, batch: int) -> dict[str, float]:
    """Measure one form in a new process."""
    command = [sys.executable, "-m", "benchmarks.bench_memory", "--one", "--backends", backend]
    command += ["--densities", str(density), "--batches", str(batch)]
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
    found: dict[str, float] = json.loads(done.stdout.splitlines()[-1])
    return found


def render(rows: list[dict[str, Any]]) -> str:
    """Return the table in Markdown; the last columns divide by dense training in like batches."""
    lines = [
        "| batch | backend | density | measured, MB | arena, MB | analytic, MB "
        "| / analytic | / own dense | / torch dense |",
        "| ---: | --- | ---: | ---: | ---: | ---: | ---: | ---: | ---: |",
    ]
    dense = {(r["batch"], r["backend"]): r["measured"] for r in rows if r["density"] == 1}
    for row in rows:
        measured, batch = row["measured"], row["batch"]
        figures = [f"{row[n] / 1e6:.2f}" if row[n] else "–" for n in FIGURES]
        figures.append(f"{measured / row['analytic']:.2f}")
        for backend in (row["backend"], "torch"):
            other = dense.get((batch, backend))
            figures.append(f"{measured / other:.2f}" if other else "–")
        lines.append(f"| {batch} | {row['backend']} | {row['density']:g} | {' | '.join(figures)} |")
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    main()
