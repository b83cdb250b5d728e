"""What secure aggregation costs: processor seconds and bytes of a round beside the plain one.

    .venv/bin/python -m benchmarks.bench_secure

It writes benchmarks/results/secure.json: for each number of clients and kept values, the median
round of each, without training: clients send a model that they were sent. All clients answer in one
process, one after another, so a round's seconds are those of all clients and the server together.
"""

import json
import statistics
import time
from pathlib import Path
from typing import Any
from unittest.mock import patch

from flwr.app import ConfigRecord

from benchmarks.machine import describe
from clients.program import PLAIN, Outcome, Visit
from fedsparse import config
from fedsparse.training.local import Trained
from simulations.experiment import CLIENT_APP
from simulations.grid import CohortGrid
from strategies import foreign
from strategies.addressing import Directory, MeteredGrid
from strategies.secure import SecureGrid
from strategies.task import Task

RESULT = Path(__file__).parent / "results" / "secure.json"
ROUNDS = 2
CLIENTS = (10, 50)
MODELS = (("mlp", 1.0, 1.0), ("cnn", 1.0, 0.1), ("cnn", 2.0, 1.0))
"""Model, width and density: few, more and many kept values."""
VARIANTS: dict[str, dict[str, Any]] = {
    "plain": {},
    "all neighbours": {"aggregation": True},
    "12 neighbours": {"aggregation": True, "neighbours": 12},
}


def send_back(visit: Visit) -> Outcome:
    """Stand for training: the model as it came."""
    mask, state = visit.received.mask, visit.received.state
    return Outcome(
        state if mask is None else {**state, **mask.take(state)}, Trained(0.5, 0.5, 1, dict), mask
    )


def point(clients: int, model: tuple[str, float, float], secure: dict[str, Any]) -> dict[str, Any]:
    """Return the median seconds and the bytes of a round."""
    name, width, density = model
    settings = config.resolve(
        {
            "data": {"name": "digits", "partition": "iid", "client_test_fraction": 0},
            "model": {"name": name, "width": width},
            "fleet": {"clients": clients},
            "strategy": {"name": "static", "criterion": "random", "density": density},
            "engine": {"name": "inline"},
            "secure": {"max_examples": 1000, **secure},
        }
    )
    strategy: Any = foreign.make(Task.of(settings))
    with CohortGrid(CLIENT_APP, clients=clients) as inner:
        directory = strategy.directory = Directory.of(inner, clients, 1.0)
        grid: MeteredGrid = (
            SecureGrid(inner, directory, config=settings)
            if secure
            else MeteredGrid(inner, directory)
        )
        strategy.prepare(grid)
        values = sum(v.size for v in strategy.state.values())
        values -= strategy.mask.size - strategy.mask.kept
        seconds, traffic = [], grid.read_traffic()
        with patch.object(type(PLAIN), "train", lambda self, visit: send_back(visit)):
            for number in range(1, ROUNDS + 2):
                begun = time.process_time()
                asked = list(
                    strategy.configure_train(number, strategy.arrays(), ConfigRecord(), grid)
                )
                replies = grid.send_and_receive(asked, reader=strategy.round_reader())
                strategy.learn(number, replies)
                seconds.append(time.process_time() - begun)
                traffic = grid.read_traffic()
    return {
        "clients": clients,
        "model": f"{name}, width {width:g}, density {density:g}",
        "values": int(values),
        "cpu_seconds": statistics.median(
            seconds[1:]
        ),  # the first round makes models and tells masks
        "bytes_up_client": traffic.bytes_up / clients,
        "bytes_down_client": traffic.bytes_down / clients,
    }


def main() -> None:
    """Measure every point and write the result."""
    points = []
    for clients in CLIENTS:
        for model in MODELS:
            for name, secure in VARIANTS.items():
                if secure.get("neighbours", 0) >= clients - 1:
                    continue
                points.append({"variant": name, **point(clients, model, secure)})
                print(points[-1], flush=True)
    result = {"machine": describe(), "rounds": ROUNDS, "points": points}
    RESULT.write_text(json.dumps(result, indent=1) + "\n")


if __name__ == "__main__":
    main()
