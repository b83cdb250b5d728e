"""What bounds a round of 100,000 clients: constants measured here, a curve reckoned from them.

    .venv/bin/python -m benchmarks.bench_scaling_curve [--measure] [--svg docs/images/scaling.svg]

Without `--measure` it takes the constants that docs/scaling.md prints. Measured are the
processor seconds that the driver spends on one client's message and reply, and on adding one
reply. Machines and networks of the curve are on paper: nothing here runs on more than one. Drawing
needs matplotlib, which the extra `data` brings.
"""

import argparse
import time
from dataclasses import dataclass
from pathlib import Path

import numpy as np

CLIENTS = 100_000
CORES = 16
"""Workers on each machine of the curve."""
TRAIN_SECONDS = 2.0
"""Training of one client on one core."""
LINK = 1.25e9
"""Bytes a second in and out of each machine: 10 Gbit/s."""
MACHINES = (1, 2, 5, 10, 20, 50, 100, 200, 500)
BATCHES = 8
"""Batches that a worker is handed in a round; each names the model anew."""


@dataclass(frozen=True)
class Constants:
    """Processor seconds of the driver, and the bytes of a model, a reply and an exact sum.

    A sum takes 16 bytes a kept weight, two float64.
    """

    message: float = 0.55e-3
    byte: float = 1.9e-9
    add: float = 1.8e-3
    model_bytes: int = 1_529_400
    reply_bytes: int = 1_307_652
    sum_bytes: int = 5_230_464


@dataclass(frozen=True)
class Round:
    """Seconds of a round's parts; what a driver does and what workers do go on side by side."""

    train: float
    carry: float
    network: float
    add: float

    @property
    def seconds(self) -> float:
        """The whole round's: adding begins when the last reply is there."""
        return max(self.train, self.carry, self.network) + self.add


def each_reply(c: Constants, machines: int) -> Round:
    """Every reply comes to the driver, which adds them one after another when all are there."""
    train = CLIENTS * TRAIN_SECONDS / (machines * CORES)
    carry = CLIENTS * (c.message + c.byte * c.reply_bytes)
    network = (CLIENTS * c.reply_bytes + machines * c.model_bytes) / LINK
    return Round(train, carry, network, CLIENTS * c.add)


def summed_by_workers(c: Constants, machines: int) -> Round:
    """Each worker sends an exact sum now and then, and a short row a client."""
    workers = machines * CORES
    sums = workers * BATCHES
    train = CLIENTS * (TRAIN_SECONDS + c.add) / workers
    carry = CLIENTS * 1e-5 + sums * (c.message + c.byte * c.sum_bytes)
    network = (sums * c.sum_bytes + machines * c.model_bytes) / LINK
    return Round(train, carry, network, sums * c.add)


def summed_in_a_tree(c: Constants, machines: int, arity: int = 10) -> Round:
    """Not built: sums go up a tree of machines, of which the driver hears the top's alone."""
    workers = machines * CORES
    levels = max(1, int(np.ceil(np.log(max(machines, 2)) / np.log(arity))))
    step = arity * (c.sum_bytes / LINK + c.add)
    local = CORES * BATCHES * c.add
    train = CLIENTS * (TRAIN_SECONDS + c.add) / workers
    carry = CLIENTS * 1e-5 + arity * (c.message + c.byte * c.sum_bytes)
    network = (arity * c.sum_bytes + machines * c.model_bytes) / LINK
    return Round(train, carry, network, local + levels * step)


PLANS = {
    "each reply": each_reply,
    "sums in workers": summed_by_workers,
    "tree of sums (not built)": summed_in_a_tree,
}


def measure(clients: int = 400) -> Constants:
    """Measure the driver's seconds on Ray with two workers that echo, and on a decoded reply."""
    from fedsparse import models, wire
    from fedsparse.sparsity import layer_counts, top_mask
    from fedsparse.sparsity.allocation import erk
    from strategies.replies import Reply
    from strategies.sums import weighted_mean
    from strategies.task import masked

    net = models.build("leaf-cnn", input_shape=(1, 28, 28), classes=10)
    state = models.get_state(net)
    shapes = models.shapes(net, models.prunable(net))
    mask = top_mask({n: np.abs(state[n]) for n in shapes}, layer_counts(shapes, erk(shapes, 0.05)))
    state = masked(state, mask)
    model, reply = wire.encode(state, mask=mask), wire.encode(state, mask=mask, mode="shared")
    small = _carry_seconds(b"x" * 100, clients)
    large = _carry_seconds(reply, clients // 4)
    schema = wire.Schema.of(state)
    begin = time.process_time()
    replies = [
        Reply(client, 100, wire.decode_kept(reply, schema, mask), 0.0, None, mask=mask)  # type: ignore[arg-type]
        for client in range(20)
    ]
    weighted_mean(replies)
    add = (time.process_time() - begin) / len(replies)
    kept = sum(np.size(v) for v in wire.decode_kept(reply, schema, mask).values())
    byte = (large - small) / len(reply)
    return Constants(small, byte, add, len(model), len(reply), 16 * kept)


def _carry_seconds(payload: bytes, clients: int) -> float:
    """Return the driver's processor seconds for one echoed message of that many bytes."""
    from flwr.app import Message, RecordDict

    from fedsparse import wire
    from simulations.grid import CohortGrid
    from simulations.ray_workers import RayExecutor

    executor = RayExecutor("benchmarks.echo_app:app", workers=2)
    with CohortGrid(clients=clients, executor=executor) as grid:
        for _ in range(2):  # the first round starts the workers
            content = RecordDict({"arrays": wire.pack(payload)})
            sent = [Message(content, node, "train") for node in grid.get_node_ids()]
            begin = time.process_time()
            assert len(list(grid.send_and_receive(sent, timeout=600))) == clients
            spent = time.process_time() - begin
    return spent / clients


def table(c: Constants) -> str:
    """Return a round's parts for each plan and number of machines, as text."""
    lines = [
        f"{'plan':28} {'machines':>8} {'train':>8} {'carry':>8} {'network':>8} {'add':>8} round"
    ]
    for name, plan in PLANS.items():
        for machines in MACHINES:
            r = plan(c, machines)
            parts = f"{r.train:8.1f} {r.carry:8.1f} {r.network:8.1f} {r.add:8.1f}"
            lines.append(f"{name:28} {machines:8} {parts} {r.seconds:7.1f} s")
    return "\n".join(lines)


def draw(c: Constants, path: Path) -> None:
    """Write rounds an hour against machines, both on logarithmic axes, as SVG."""
    import matplotlib

    matplotlib.use("svg")
    matplotlib.rcParams.update({"svg.hashsalt": "fedsparse", "font.size": 10})
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(figsize=(7, 4))
    for (name, plan), style in zip(PLANS.items(), ("-o", "--s", ":^"), strict=True):
        axes.loglog(MACHINES, [3600 / plan(c, m).seconds for m in MACHINES], style, label=name)
    ideal = [3600 * m * CORES / (CLIENTS * TRAIN_SECONDS) for m in MACHINES]
    axes.loglog(MACHINES, ideal, color="grey", linewidth=0.8, label="training alone")
    axes.set(xlabel=f"machines of {CORES} workers", ylabel="rounds an hour")
    axes.set_title("100,000 clients a round, reckoned, not run", fontsize=10)
    axes.set_xticks(MACHINES, [str(m) for m in MACHINES])
    axes.grid(alpha=0.3)
    axes.legend()
    figure.tight_layout()
    figure.savefig(path, metadata={"Date": None})


def main() -> None:
    """Print the constants and the table; draw the curve where one is asked for."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--measure", action="store_true", help="measure the constants first")
    parser.add_argument("--svg", type=Path, help="write the curve")
    options = parser.parse_args()
    constants = measure() if options.measure else Constants()
    print(constants, table(constants), sep="\n")
    if options.svg is not None:
        draw(constants, options.svg)


if __name__ == "__main__":
    main()
