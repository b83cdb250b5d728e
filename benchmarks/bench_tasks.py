"""Client tasks a second when clients do nothing: what it takes to carry models, and no more.

    .venv/bin/python -m benchmarks.bench_tasks [--parameters 30000] [--rounds 3]

Each client sends back what it gets (`echo_app`); two workers on this machine, started and warmed
up before. A round is timed from making its messages until the server has what it wants of them:

- `flower`: Flower's simulation engine; each reply delivered, a dense payload;
- `actor`: two Ray actors without any library, a call a client that returns a dense float32 array;
- `dense`, `sparse`: fedsparse on Ray, each reply delivered as a Flower message, its payload dense
  or of 5 % of the weights; payloads are not decoded;
- `summed`: fedsparse on Ray where the strategy only adds up: each dense payload is checked,
  decoded and added by its worker, and the mean model is made. Less is sent than in the rows above.

The median of the rounds is told with its range. Sides are two processes, one after the other, as
Flower's engine wants Ray for itself; the plain actors share fedsparse's.
"""

import argparse
import json
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import ray
from flwr.app import ArrayRecord, Message, RecordDict
from flwr.serverapp import Grid

from benchmarks import machine
from fedsparse import wire
from fedsparse.sparsity import Mask, State
from simulations.flower_engine import run_with_flower
from simulations.grid import CohortGrid
from simulations.ray_workers import RayExecutor
from strategies.added import AddedUp
from strategies.addressing import Directory, MeteredGrid
from strategies.replies import Reader
from strategies.sums import Tally
from strategies.task import masked

APP = "benchmarks.echo_app:app"
WORKERS, DENSITY, TENSORS = 2, 0.05, 8
RESULTS = Path(__file__).parent / "results" / "tasks.json"
PARAMETERS = (30_000, 1_600_000, 11_000_000)
CLIENTS = {
    "flower": {30_000: 100, 1_600_000: 20, 11_000_000: 6},
    "actor": {30_000: 200, 1_600_000: 60, 11_000_000: 12},
    "dense": {30_000: 2000, 1_600_000: 80, 11_000_000: 12},
    "sparse": {30_000: 2000, 1_600_000: 200, 11_000_000: 40},
    "summed": {30_000: 4000, 1_600_000: 200, 11_000_000: 24},
}
"""Clients a round, so that one takes about a second."""

Round = Callable[[], None]


def model(parameters: int) -> State:
    """Return a made-up model of some tensors."""
    values = np.random.default_rng(0).normal(0, 0.05, parameters).astype(np.float32)
    return {f"tensor{i}": part for i, part in enumerate(np.array_split(values, TENSORS))}


def sparse(state: State) -> bytes:
    """Return the payload of the 5 % of the weights that are drawn."""
    rng = np.random.default_rng(1)
    mask = Mask.from_arrays({n: rng.random(v.shape) < DENSITY for n, v in state.items()})
    return wire.encode(masked(state, mask), mask=mask)


def asked(grid: Grid, arrays: ArrayRecord) -> list[Message]:
    """Return a message a client, as strategies make them."""
    content = RecordDict({"arrays": arrays})
    return [Message(content, node, "train") for node in grid.get_node_ids()]


def deliver(grid: Grid, arrays: ArrayRecord, clients: int) -> None:
    """Let each client reply, and count the replies."""
    replies = list(grid.send_and_receive(messages=asked(grid, arrays), timeout=600))
    assert len(replies) == clients
    assert not any(reply.has_error() for reply in replies)


def add_up(grid: MeteredGrid, arrays: ArrayRecord, state: State, clients: int) -> None:
    """Let each client reply, and make the mean of the replies."""
    reader = Reader(wire.Schema.of(state))
    replies = grid.send_and_receive(asked(grid, arrays), timeout=600, reader=reader)
    tally = Tally(reader.schema, reader.masks)
    parts = {}
    for client, reply in enumerate(replies):
        flat, told, _ = reader.open(client, reply)
        record = reply.content["arrays"]
        if isinstance(record, AddedUp):
            parts[id(record.part)] = record.part
        elif flat is not None:
            tally.add(0, flat, told["examples"])
    for part in parts.values():
        tally.merge(part)
    assert tally.parts[0].clients == clients
    mean = tally.mean(state, None)
    assert all(np.array_equal(mean[name], value) for name, value in state.items())


def measure(side: str, parameters: int, clients: int, one: Round, rounds: int) -> dict[str, Any]:
    """Return a side's clients a second, after a round to warm up."""
    one()
    found = []
    for _ in range(rounds):
        began = time.perf_counter()
        one()
        found.append(clients / (time.perf_counter() - began))
    median = statistics.median(found)
    return {
        "side": side,
        "parameters": parameters,
        "clients": clients,
        "tasks_a_second": round(median, 1),
        "least": round(min(found), 1),
        "most": round(max(found), 1),
    }


class Echo:
    """What a plain Ray actor does for a client."""

    def ready(self) -> None:
        """Return when the actor has started."""

    def echo(self, values: np.ndarray) -> np.ndarray:
        """Return a model of its own, as a client's reply is."""
        return values.copy()


def plain_round(actors: list[Any], values: np.ndarray, clients: int) -> None:
    """Put the model once, call an actor for each client, take each reply."""
    put = ray.put(values)
    calls = [actors[client % WORKERS].echo.remote(put) for client in range(clients)]
    assert sum(len(reply) for reply in map(ray.get, calls)) == clients * len(values)


def with_ray(sizes: list[int], rounds: int) -> list[dict[str, Any]]:
    """Measure the plain actors and fedsparse."""
    executor = RayExecutor(APP, workers=WORKERS)
    found = []
    for parameters in sizes:
        state = model(parameters)
        forms = {"dense": wire.pack(wire.encode(state)), "sparse": wire.pack(sparse(state))}
        for side in ("dense", "sparse", "summed"):
            clients = of(CLIENTS[side], parameters)
            grid = CohortGrid(clients=clients, executor=executor)
            metered = MeteredGrid(grid, Directory.of(grid, clients))
            arrays = forms["sparse" if side == "sparse" else "dense"]

            def one(
                side: str = side,
                metered: MeteredGrid = metered,
                arrays: ArrayRecord = arrays,
                state: State = state,
                clients: int = clients,
            ) -> None:
                if side == "summed":
                    add_up(metered, arrays, state, clients)
                else:
                    deliver(metered, arrays, clients)

            found.append(measure(side, parameters, clients, one, rounds))
    executor.pool.close()
    actors: list[Any] = [ray.remote(Echo).options(num_cpus=1).remote() for _ in range(WORKERS)]
    ray.get([actor.ready.remote() for actor in actors])
    for parameters in sizes:
        clients = of(CLIENTS["actor"], parameters)
        values = np.concatenate(list(model(parameters).values()))
        found.append(
            measure(
                "actor",
                parameters,
                clients,
                lambda values=values, clients=clients: plain_round(actors, values, clients),
                rounds,
            )
        )
    ray.shutdown()
    return found


def with_flower(sizes: list[int], rounds: int) -> list[dict[str, Any]]:
    """Measure Flower's engine, which is started anew for each number of clients."""
    found = []
    for parameters in sizes:
        clients = of(CLIENTS["flower"], parameters)
        arrays = wire.pack(wire.encode(model(parameters)))

        def work(grid: Grid, *_: Any, clients: int = clients, a: ArrayRecord = arrays) -> Any:
            while len(list(grid.get_node_ids())) < clients:
                time.sleep(0.1)
            return measure("flower", len_of(a), clients, lambda: deliver(grid, a, clients), rounds)

        found.append(run_with_flower(work, APP, clients=clients, workers=WORKERS))
        found[-1]["parameters"] = parameters
    return found


def len_of(arrays: ArrayRecord) -> int:
    """Return about how many float32 values a dense payload holds."""
    return wire.record_bytes(arrays) // 4


def of(clients: dict[int, int], parameters: int) -> int:
    """Return how many clients a round has, of the nearest size."""
    return clients[min(clients, key=lambda size: abs(size - parameters))]


SIDES = {"ray": with_ray, "flower": with_flower}


def main() -> None:
    """Run the sides, print a table, and write JSON."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--parameters", type=int, nargs="+", default=list(PARAMETERS))
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--out", type=Path, default=RESULTS)
    parser.add_argument("--side", choices=SIDES, help="measure one side, print its JSON alone")
    given = parser.parse_args()
    if given.side:
        print(json.dumps(SIDES[given.side](given.parameters, given.rounds)))
        return
    rows: list[dict[str, Any]] = []
    sizes = [str(size) for size in given.parameters]
    for side in SIDES:
        command = [sys.executable, "-m", "benchmarks.bench_tasks", "--side", side]
        command += ["--rounds", str(given.rounds), "--parameters", *sizes]
        ran = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True)
        rows += json.loads(ran.stdout.splitlines()[-1])
    found = {"machine": machine.describe(), "workers": WORKERS, "rows": rows}
    given.out.parent.mkdir(exist_ok=True)
    given.out.write_text(json.dumps(found, indent=1) + "\n")
    print(machine.one_line(found["machine"]))
    for parameters in given.parameters:
        print(f"\n{parameters:,} parameters, client tasks a second (least to most):")
        for row in (row for row in rows if row["parameters"] == parameters):
            spread = f"({row['least']:,.0f} to {row['most']:,.0f})"
            print(f"  {row['side']:8} {row['tasks_a_second']:10,.0f}  {spread}")


if __name__ == "__main__":
    main()
