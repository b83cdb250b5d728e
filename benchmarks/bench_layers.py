"""Sparse layers, forward and backward: fedsparse's kernels beside torch and SparseProp.

    .venv/bin/python -m benchmarks.bench_layers --setup [--sparseprop FOLDER]   once
    taskset -c 1 .venv/bin/python -m benchmarks.bench_layers

Six layers without bias, batch 32, one thread, random masks. Every form computes the output, the
gradient of the input and that of the kept weights, and is checked against masked dense torch
before it is timed. What each form includes:

- *torch*: a dense layer through autograd; of a convolution the faster of NCHW and channels_last.
- *masked*: the weight multiplied by its mask in every forward pass, in that same layout.
- *CSR*: torch's sparse products, as fedsparse's torch backend uses them; linear layers alone.
- *SparseProp, dropped in*: its module in a torch network, so data comes and goes batch first; the
  faster of its two ways to vectorise a convolution.
- *SparseProp, autograd* and *fedsparse, autograd*: both through `torch.autograd.Function`, data
  batch innermost before and after, as in a network that stays in that layout. fedsparse works in
  its arena; SparseProp makes and clears a tensor for each result, as its functions do. Its linear
  module has no such form: its kernels are called as the module calls them, without transpositions.
- *fedsparse, autograd, copied*: the same between plain contiguous tensors; each is copied into the
  arena, whose planes have a halo, and each result out of it.
- *SparseProp, bare* and *fedsparse, bare*: the kernels alone, called from Python without autograd,
  batch innermost, in memory that is there already, with arguments made once. SparseProp adds to
  what it writes, so that is cleared first.

SparseProp is kept inside its limits: a batch of a multiple of 8, contiguous tensors, stride 1.
"""

import os

os.environ["OMP_NUM_THREADS"] = "1"  # SparseProp brings an OpenMP of its own, unknown to torch

import argparse
import json
import statistics
import subprocess
import sys
import time
from contextlib import ExitStack
from pathlib import Path

import torch
from torch import nn

from benchmarks import machine
from benchmarks.bench_jobs import CACHE, RESULTS, ROOT
from benchmarks.rivals.layers import Case, Form, Layer, forms, outermost

TOLERANCE = 1e-4
"""Largest difference from masked dense torch, relative to the largest value."""
RELEASE = "sparseprop==0.1.14"
SHORTEST = 2e-3
"""Seconds that one measurement takes at least: short calls are repeated within it."""


CASES = (
    Case(2048, 2048),
    Case(512, 3136),
    Case(64, 32, 5, 14),
    Case(16, 8, 3, 14),
    Case(64, 64, 3, 28),
    Case(256, 128, 1, 14),
)
DENSITIES = (0.1, 0.05, 0.01)


def check(layer: Layer, name: str, form: Form) -> None:
    """Compare a form with masked dense torch in double precision; ends the run if it differs."""
    x, weight = layer.x.double().requires_grad_(), layer.weight.double().requires_grad_()
    if layer.case.kernel:
        y = nn.functional.conv2d(x, weight, padding=layer.case.kernel // 2)
    else:
        y = nn.functional.linear(x, weight)
    dx, dw = torch.autograd.grad(y, (x, weight), layer.dy.double())
    dense = name.startswith(("torch", "fedsparse dense"))
    wanted = (y, dx, dw if dense else dw[layer.bits])
    for what, found, truth in zip(
        ("output", "input gradient", "weight gradient"), form(), wanted, strict=True
    ):
        found = found.detach()
        if what == "weight gradient":
            if name.startswith("masked"):
                found = found[layer.bits]
            found, truth = found.reshape(-1), truth.reshape(-1)
        elif found.shape != truth.shape:
            found = outermost(found)
        # Both sides keep weights in the order of torch's positions; SparseProp's convolution
        # orders them within a channel otherwise, so values are compared sorted.
        if what == "weight gradient" and name.startswith("SparseProp") and layer.case.kernel:
            found, truth = found.sort().values, truth.sort().values
        truth = truth.detach()
        error = float((found.double() - truth).abs().max() / truth.abs().max())
        if not error < TOLERANCE:
            sys.exit(f"{layer.case.name}, {name}: the {what} differs by {error:.1e}; nothing timed")


def measure(case: Case, density: float, repeats: int) -> dict[str, list[float]]:
    """Return milliseconds of every form of a layer, its runs taken in turn with the others'."""
    layer = Layer.make(case, density)
    with ExitStack() as stack:
        found = dict(forms(layer, density, stack))
        calls = {}
        for name, form in found.items():
            check(layer, name, form)
            once = min(_seconds(form, 1) for _ in range(3))
            calls[name] = max(1, round(SHORTEST / once))
        times: dict[str, list[float]] = {name: [] for name in found}
        for _ in range(repeats):
            for name, form in found.items():
                times[name].append(1e3 * _seconds(form, calls[name]))
    return _best_variant(times)


def _seconds(form: Form, calls: int) -> float:
    start = time.perf_counter()
    for _ in range(calls):
        form()
    return (time.perf_counter() - start) / calls


def _best_variant(times: dict[str, list[float]]) -> dict[str, list[float]]:
    """Keep of each form's variants the one with the least median, and say which."""
    chosen: dict[str, list[float]] = {}
    for name, values in times.items():
        form = name.partition(" [")[0]
        if form not in chosen or statistics.median(values) < statistics.median(chosen[form]):
            chosen[form] = values
    return chosen


COLUMNS = (
    "masked",
    "CSR",
    "SparseProp, dropped in",
    "SparseProp, autograd",
    "fedsparse, autograd",
    "fedsparse, autograd, copied",
    "SparseProp, bare",
    "fedsparse, bare",
    "fedsparse dense, bare",
)


def ratios(times: dict[str, list[float]], name: str, reference: str) -> list[float]:
    """Return how many times as fast a form is, repetition by repetition."""
    pairs = zip(times[reference], times[name], strict=True)
    return [theirs / own for theirs, own in pairs]


def cell(times: dict[str, list[float]], name: str) -> str:
    """Return the speed over torch: median, and the range of the middle half."""
    if name not in times:
        return "–"
    low, middle, high = statistics.quantiles(ratios(times, name, "torch"), n=4)
    return f"{middle:.2f} ({low:.2f}–{high:.2f})"


def render(found: dict[str, dict[str, dict[str, list[float]]]]) -> str:
    """Return the tables in Markdown: speed over dense torch, and geometric means."""
    lines = []
    for density, layers in found.items():
        lines += [f"Density {density}, dense torch = 1:", ""]
        lines += ["| layer | torch, ms | " + " | ".join(COLUMNS) + " |"]
        lines += ["| --- |" + " ---: |" * (len(COLUMNS) + 1)]
        for name, times in layers.items():
            cells = [cell(times, column) for column in COLUMNS]
            lines += [f"| {name} | {statistics.median(times['torch']):.2f} | {' | '.join(cells)} |"]
        lines += [""]
    lines += ["| density | " + " | ".join(MEANS) + " |", "| --- |" + " ---: |" * len(MEANS)]
    for density, layers in found.items():
        cells = []
        for form, reference in MEANS.values():
            medians = [
                statistics.median(ratios(times, form, reference)) for times in layers.values()
            ]
            cells.append(f"{statistics.geometric_mean(medians):.2f}")
        lines += [f"| {density} | {' | '.join(cells)} |"]
    return "\n".join(lines) + "\n"


MEANS = {
    "fedsparse over torch, autograd": ("fedsparse, autograd", "torch"),
    "fedsparse over SparseProp, autograd": ("fedsparse, autograd", "SparseProp, autograd"),
    "the same, copied": ("fedsparse, autograd, copied", "SparseProp, autograd"),
    "fedsparse over SparseProp, bare": ("fedsparse, bare", "SparseProp, bare"),
    "fedsparse bare over torch": ("fedsparse, bare", "torch"),
    "SparseProp over torch, dropped in": ("SparseProp, dropped in", "torch"),
}
"""Geometric means over the six layers of a form's speed over another's."""


def set_up(sources: str) -> None:
    """Build SparseProp for this processor in an environment of its own."""
    folder = CACHE / "sparseprop"
    wanted = ROOT / "benchmarks" / "rivals" / "sparseprop.txt"
    subprocess.run([sys.executable, "-m", "venv", "--clear", str(folder)], check=True)
    pip = [str(folder / "bin" / "pip"), "install", "--quiet"]
    subprocess.run([*pip, "-r", str(wanted)], check=True)
    environment = {**os.environ, "PATH": f"{folder / 'bin'}:{os.environ['PATH']}"}
    build = [*pip, "--no-build-isolation", "--no-deps", sources]
    subprocess.run(build, check=True, env=environment)


def main() -> None:
    """Check and time every layer, write the JSON, print the tables."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--setup", action="store_true", help="build SparseProp, and stop")
    parser.add_argument("--sparseprop", default=RELEASE, help="its sources; by default its release")
    parser.add_argument("--densities", default=",".join(map(str, DENSITIES)))
    parser.add_argument("--layers", default="", help="parts of names, by comma; all if not given")
    parser.add_argument("--repeats", type=int, default=25)
    parser.add_argument("--out", type=Path, default=RESULTS / "layers.json")
    given = parser.parse_args()
    if given.setup:
        set_up(given.sparseprop)
        return
    packages = sorted((CACHE / "sparseprop" / "lib").glob("python3*/site-packages"))
    if not packages:
        parser.error("SparseProp is not built; run it with --setup first")
    sys.path.append(str(packages[-1]))
    torch.set_num_threads(1)
    wanted = given.layers.split(",")
    cases = [case for case in CASES if any(part in case.name for part in wanted)]
    found: dict[str, dict[str, dict[str, list[float]]]] = {}
    for density in map(float, given.densities.split(",")):
        found[str(density)] = {}
        for case in cases:
            print(f"{case.name}, density {density}", file=sys.stderr)
            found[str(density)][case.name] = measure(case, density, given.repeats)
    ran_on = machine.describe()
    result = {"machine": ran_on, "torch": torch.__version__, "milliseconds": found}
    given.out.parent.mkdir(parents=True, exist_ok=True)
    given.out.write_text(json.dumps(result, indent=1) + "\n")
    print(machine.one_line(ran_on) + f"; torch {torch.__version__}\n\n{render(found)}")


if __name__ == "__main__":
    main()
