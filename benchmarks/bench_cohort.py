"""Cohort training: samples a second, clients one after another against many at once.

    python -m benchmarks.bench_cohort --device cuda

Clients have unlike numbers of samples, as of a Dirichlet split, in batches of 32; each has
a mask of its own. `alone` is `local.train` on the CPU, one thread, as a worker trains; the
others are `cohort.train` on the device, from states in memory to states in memory, moving
both ways included. The best of the repetitions counts; prints a table, or JSON with `--json`.
"""

import json
import time
from collections.abc import Callable

import click
import numpy as np
import torch
from torch import nn

from benchmarks.machine import describe, one_line
from fedsparse import models
from fedsparse.config import ClientConfig
from fedsparse.data import Dataset
from fedsparse.sparsity import static_mask
from fedsparse.training import cohort, local
from fedsparse.training.cohort import Member

CASES = {
    "mlp": ((1, 28, 28), 1.0),
    "cnn": ((1, 28, 28), 1.0),
    "paper-cnn": ((1, 28, 28), 1.0),
    "leaf-cnn": ((1, 28, 28), 1.0),
    "resnet18": ((3, 32, 32), 0.25),
}
SIZES = (1, 4, 16, 64)
CLASSES = 10


def members(model: nn.Module, shape: tuple[int, ...], count: int, density: float) -> list[Member]:
    """Return clients of 32 to 96 samples from one stream."""
    rng = np.random.default_rng(0)
    settings = ClientConfig(batch_size=32, momentum=0.9)
    found = []
    for client in range(count):
        samples = int(rng.integers(32, 97))
        x = rng.standard_normal((samples, *shape), dtype=np.float32)
        data = Dataset(x, rng.integers(0, CLASSES, samples), CLASSES)
        mask = static_mask(model, models.prunable(model), density, "random", rng=rng)
        state = models.get_state(model)
        mask.apply_(state)
        found.append(Member(state, data, settings, np.random.default_rng(client), 0.01, mask))
    return found


def alone(model: nn.Module, clients: list[Member]) -> None:
    for member in clients:
        models.load_state(model, member.state)
        local.train(model, member.data, member.settings, rng=member.rng, mask=member.mask)
        models.get_state(model)


def rate(work: Callable[[], object], samples: int, seconds: float) -> float:
    """Return the best samples a second within about a number of seconds, after a warm-up."""
    work()
    best, end = 0.0, time.perf_counter() + seconds
    while best == 0.0 or time.perf_counter() < end:
        start = time.perf_counter()
        work()
        best = max(best, samples / (time.perf_counter() - start))
    return best


def measure(name: str, device: torch.device, seconds: float, density: float) -> dict[str, float]:
    shape, width = CASES[name]
    torch.manual_seed(0)
    model = models.build(name, input_shape=shape, classes=CLASSES, width=width)
    found = {}
    single = model.to(memory_format=torch.channels_last)
    few = members(model, shape, 4, density)
    samples = sum(len(member.data.y) for member in few)
    found["alone"] = rate(lambda: alone(single, few), samples, seconds)
    for size in SIZES:
        clients = members(model, shape, size, density)
        samples = sum(len(member.data.y) for member in clients)

        def together(clients: list[Member] = clients, size: int = size) -> object:
            return cohort.train(model, clients, device, clients=size)

        found[str(size)] = rate(together, samples, seconds)
    return found


@click.command()
@click.option("--device", type=click.Choice(["cpu", "cuda"]), default="cpu", show_default=True)
@click.option(
    "--model", "names", multiple=True, type=click.Choice(list(CASES)), help="All if none."
)
@click.option("--seconds", default=3.0, show_default=True, help="Spent on each figure, about.")
@click.option("--density", default=0.05, show_default=True)
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")
def main(
    device: str, names: tuple[str, ...], seconds: float, density: float, as_json: bool
) -> None:
    """Measure training alone and in cohorts of 1, 4, 16 and 64 clients."""
    torch.set_num_threads(1)
    where = torch.device(device)
    machine = one_line(describe())
    if device == "cuda":
        machine += f", {torch.cuda.get_device_name()}"
    found = {name: measure(name, where, seconds, density) for name in names or CASES}
    if as_json:
        click.echo(json.dumps({"machine": machine, "torch": torch.__version__, "rates": found}))
        return
    click.echo(f"samples a second; {machine}; torch {torch.__version__}")
    click.echo(f"{'model':<10}" + "".join(f"{key:>10}" for key in ("alone", *map(str, SIZES))))
    for name, rates in found.items():
        click.echo(f"{name:<10}" + "".join(f"{value:>10.0f}" for value in rates.values()))


if __name__ == "__main__":
    main()
