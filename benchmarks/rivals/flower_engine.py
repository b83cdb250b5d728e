"""The job on Flower's simulation engine: message API, FedAvg, two workers of one CPU each.

    python -m benchmarks.rivals.flower_engine --job FOLDER --model tiny

The engine is started by `run_simulation`; `flwr run`, which Flower recommends, starts the same
engine with a SuperLink around it. Flower draws the clients of a round itself; samples are counted
from their replies.
"""

import os

os.environ.setdefault("FLWR_TELEMETRY_ENABLED", "0")
os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
# The engine would join whatever Ray cluster runs on this machine, and then fail.
os.environ["RAY_ADDRESS"] = "local"

from collections.abc import Sequence

import torch
from flwr.app import ArrayRecord, ConfigRecord, Context, MetricRecord, RecordDict
from flwr.serverapp import Grid, ServerApp
from flwr.serverapp.strategy import FedAvg
from flwr.simulation import run_simulation

from benchmarks.rivals import job, models, plain_torch
from benchmarks.rivals.flower_app import app


def main() -> None:
    """Run the job and print its line."""
    given = job.arguments(workers=2)
    work = job.read(given.job)
    watch = job.Stopwatch()
    model = models.MODELS[given.model]()
    trained_on: list[int] = []

    def count(replies: Sequence[RecordDict], key: str) -> MetricRecord:
        trained_on.append(sum(int(reply["metrics"][key]) for reply in replies))
        return MetricRecord({key: trained_on[-1]})

    def round_done(number: int, arrays: ArrayRecord) -> None:
        if number:
            watch.lap(trained_on[-1])
        else:
            watch.start()

    server = ServerApp()

    @server.main()
    def serve(grid: Grid, context: Context) -> None:
        clients = len(work.parts)
        strategy = FedAvg(
            fraction_train=work.cohorts.shape[1] / clients,
            fraction_evaluate=0.0,
            min_available_nodes=clients,
            train_metrics_aggr_fn=count,
        )
        result = strategy.start(
            grid,
            ArrayRecord(model.state_dict()),
            num_rounds=given.rounds + 1,
            train_config=ConfigRecord({"job": str(given.job), "model": given.model}),
            evaluate_fn=round_done,
        )
        model.load_state_dict(result.arrays.to_torch_state_dict())

    run_simulation(
        server,
        app,
        num_supernodes=len(work.parts),
        backend_config={
            "client_resources": {"num_cpus": 1, "num_gpus": 0.0},
            "init_args": {"num_cpus": given.workers},
        },
    )
    torch.set_num_threads(1)
    watch.report(
        "Flower's engine",
        given.model,
        ("flwr", "ray", "torch", "numpy"),
        parameters=models.parameters(model),
        processes=given.workers,
        threads=1,
        accuracy=plain_torch.accuracy(model, work),
    )


if __name__ == "__main__":
    main()
