"""The job on fedsparse: the side that the rivals are compared with, through its public face.

    python -m benchmarks.rivals.fedsparse_job --job FOLDER --model tiny --engine ray \
        --backend native --density 0.05

It reads Fashion-MNIST itself; of the job's folder it takes only who took part. Checkpoints and
tests of the global model are left out of the measured rounds, as no rival makes any.
"""

import tempfile
from pathlib import Path
from typing import Any

from benchmarks.rivals import job
from fedsparse.config import Config, resolve
from fedsparse.runs.progress import Silent

CLIENTS, COHORT, SEED, TEST_SAMPLES = 100, 10, 0, 2000


def settings(
    model: str, engine: str, backend: str, density: float, precision: str, rounds: int
) -> Config:
    """Return the job as a configuration; a density of 1 is FedAvg, any other a random ERK mask."""
    strategy: dict[str, Any] = {"name": "fedavg"}
    if density < 1:
        strategy = {
            "name": "static",
            "density": density,
            "criterion": "random",
            "allocation": "erk",
        }
    rarely = rounds + 1
    return resolve(
        {
            "run": {
                "seed": SEED,
                "rounds": rounds,
                "eval_every": rarely,
                "checkpoint_every": rarely,
            },
            "data": {
                "name": "fashion-mnist",
                "partition": "dirichlet",
                "alpha": 0.5,
                "public_samples": 0,
                "client_test_fraction": 0.0,
                "test_samples": TEST_SAMPLES,
            },
            "model": {"name": f"benchmarks.rivals.models:{model}"},
            "strategy": strategy,
            "client": {
                "lr": job.LR,
                "batch_size": job.BATCH,
                "momentum": 0.0,
                "backend": backend,
                "precision": precision,
            },
            "fleet": {"clients": CLIENTS, "clients_per_round": COHORT},
            "engine": {"name": engine, **({"workers": 2} if engine != "inline" else {})},
        }
    )


class Laps(Silent):
    """Reads the clock when the run begins and after each round; the last one is tested.

    The model is made in the first round here. It is tested meanwhile, as every run does.
    """

    def __init__(self, watch: job.Stopwatch, work: job.Job, rounds: int) -> None:
        self.watch, self.work, self.rounds = watch, work, rounds

    def start(self, total_rounds: int, first_round: int) -> None:
        """Note that the run begins."""
        self.watch.start()

    def round_done(self, row: dict[str, Any]) -> None:
        """Note a round."""
        if 0 < row["round"] < self.rounds:
            self.watch.lap(self.work.samples(row["round"] - 1))


def main() -> None:
    """Run the job and print its line."""
    given = job.arguments(engine="ray", backend="auto", density=1.0, precision="f32")
    work = job.read(given.job)
    rounds = given.rounds + 2
    watch = job.Stopwatch()
    from simulations.experiment import run_experiment

    config = settings(
        given.model, given.engine, given.backend, given.density, given.precision, rounds
    )
    with tempfile.TemporaryDirectory() as folder:
        laps = Laps(watch, work, rounds)
        summary = run_experiment(config, Path(folder) / "run", command="benchmark", progress=laps)
    watch.report(
        "fedsparse",
        given.model,
        ("fedsparse", "torch", "flwr", "ray", "numpy"),
        processes=1 if given.engine == "inline" else 2,
        threads=1,
        density=summary["density"],
        accuracy=summary["accuracy"],
    )


if __name__ == "__main__":
    main()
