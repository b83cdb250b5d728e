"""One run over a given grid: what the simulator and a deployment have in common.

The caller makes the grid and the run folder; here the run goes from its newest
checkpoint to its summary.
"""

import math
from collections.abc import Callable, Sequence
from functools import partial

import numpy as np
from flwr.serverapp import Grid
from flwr.serverapp.strategy import Strategy

from fedsparse import messages
from fedsparse.config import Config, FleetConfig
from fedsparse.errors import ConfigError
from fedsparse.runs import RunFolder
from fedsparse.runs.progress import Progress
from fedsparse.runs.tables import Row
from strategies import enlisting, foreign
from strategies.addressing import Directory, MeteredGrid
from strategies.async_rounds import AsyncLoop
from strategies.asynchronous import AsyncStrategy
from strategies.base import SparseStrategy
from strategies.metrics import average
from strategies.rounds import RoundLoop
from strategies.secure import SecureGrid
from strategies.task import Task

NEEDS_CLOCK = (
    "fit",
    "deadline",
    "over_selection",
    "dropout",
    "start_hour",
    "network_trace",
    "device_trace",
    "availability_trace",
)
"""Keys of `[fleet]` that mean nothing without `fleet.profile`."""


def execute(
    task: Task,
    strategy: Strategy,
    grid: Grid,
    folder: RunFolder,
    progress: Progress,
    metered: Callable[[Grid, Directory], MeteredGrid] = MeteredGrid,
) -> dict[str, object]:
    """Run a strategy over `grid`, writing into `folder`, and return the summary.

    `metered` makes the grid that counts bytes and, in a simulation of devices, keeps the clock.
    Continues from the folder's newest checkpoint if it holds one. Raises GridError when
    clients are missing and TooFewRepliesError when a round cannot go on; the folder can
    then be resumed.
    """
    config = task.config
    question = messages.write_config(config, messages.Plan())
    directory = Directory.of(grid, config.fleet.clients, absent=task.absent, config=question)
    enlisting.check_testable(task)
    refused = enlisting.check(task, directory.schemas, progress.note)
    enlisting.warn_of_loss(task, strategy, directory.forgetful, progress.note)
    if isinstance(strategy, SparseStrategy):
        strategy.directory = directory
    folder.write_json("partition.json", enlisting.partition(task, directory.schemas, refused))
    asynchronous = isinstance(strategy, AsyncStrategy)
    loop_of = AsyncLoop if asynchronous else RoundLoop
    if config.secure.aggregation:
        metered = partial(SecureGrid, config=config)
    counted = metered(grid, directory)
    counted.absent = task.absent
    if directory.readers and getattr(grid, "may_lack_torch", False):
        counted.described = task.described
    if not isinstance(strategy, SparseStrategy):
        counted.least_nodes = foreign.least_nodes(strategy)
    loop = loop_of(task, strategy, counted, folder, progress)
    loop.left_out = enlisting.rows(refused)
    loop.ledger.elsewhere = enlisting.samples(directory.schemas)
    loop.run()
    summary = summarise(config, folder)
    folder.finish(loop.state, loop.mask, summary)
    return summary


def check_clock(config: Config, strategy: Strategy) -> None:
    """Refuse what only a simulated clock gives a meaning to; raises ConfigError."""
    if isinstance(strategy, AsyncStrategy):
        raise ConfigError(
            f"strategy.name = '{config.strategy['name']}' needs a simulated clock; set "
            "fleet.profile, for example --set fleet.profile=phones"
        )
    unset = FleetConfig()
    for key in NEEDS_CLOCK:
        if (value := getattr(config.fleet, key)) != getattr(unset, key):
            raise ConfigError(
                f"fleet.{key} = {value!r} does nothing without devices; set fleet.profile, for "
                "example --set fleet.profile=phones"
            )


def summarise(config: Config, folder: RunFolder) -> dict[str, object]:
    """Return the run's headline figures, summed over its rounds.

    Bytes and FLOPs are those of the clients' last test, too, which belongs to no round: some
    methods train their personal models for it.
    Simulated time and energy need a device model; they are null without one. What it took
    to the target accuracy is null where that was not reached, or none was set.
    """
    rows = folder.metrics()
    last = rows[-1]
    sent = [*rows, *(row for row in folder.clients() if row["kind"] == "evaluate")]
    return {
        "strategy": config.strategy["name"],
        "model": config.model.name,
        "dataset": config.data.name,
        "clients": config.fleet.clients,
        "rounds": last["round"],
        "seed": config.run.seed,
        "accuracy": last["accuracy"],
        "loss": last["loss"],
        "density": last["density"],
        "bytes_up": sum(row["bytes_up"] for row in sent),
        "bytes_down": sum(row["bytes_down"] for row in sent),
        "train_flops": sum(row["train_flops"] or 0.0 for row in sent),
        "peak_client_memory_bytes": max(row["peak_client_memory_bytes"] for row in rows),
        "wall_seconds": sum(row["seconds"] for row in rows),
        "simulated_seconds": last.get("simulated_seconds"),
        "energy_joules": _energy(rows),
        "clients_refused": min(row.get("clients_refused", 0) for row in rows),
        "epsilon": last.get("epsilon"),
        "delta": config.privacy.delta if last.get("epsilon") is not None else None,
        **to_target(rows, config.run.target_accuracy),
        **of_clients(sent[len(rows) :], config.fleet),
        "run": str(folder.path),
    }


def of_clients(tests: Sequence[Row], fleet: FleetConfig) -> dict[str, object]:
    """Return how well the model that each client uses does on the client's own samples.

    The mean over clients by their samples, and the 10th percentile of clients; of those that
    never train, if there are any, apart.
    """
    good = [row for row in tests if row["status"] == "ok" and row["accuracy"] is not None]
    trained = [row for row in good if row["client"] < fleet.training_clients]
    found: dict[str, object] = {
        "accuracy_personal_mean": _mean_accuracy(trained),
        "accuracy_personal_p10": (
            float(np.percentile([row["accuracy"] for row in trained], 10)) if trained else None
        ),
    }
    if fleet.novel_clients:
        novel = [row for row in good if row["client"] >= fleet.training_clients]
        found["accuracy_novel_mean"] = _mean_accuracy(novel)
    return found


def _mean_accuracy(tests: Sequence[Row]) -> float | None:
    if not tests:
        return None
    return average([row["accuracy"] for row in tests], [row["examples"] for row in tests])


def to_target(rows: Sequence[Row], target: float | None) -> dict[str, object]:
    """Return rounds, simulated seconds, bytes and joules up to the first tested round at `target`.

    Bytes go both ways. All are null where no round reached it.
    """
    reached = [i for i, r in enumerate(rows) if target and (r["accuracy"] or 0.0) >= target]
    until = rows[: reached[0] + 1] if reached else []
    last = until[-1] if until else {}
    return {
        "target_accuracy": target,
        "rounds_to_target": last.get("round"),
        "seconds_to_target": last.get("simulated_seconds"),
        "bytes_to_target": (
            sum(row["bytes_up"] + row["bytes_down"] for row in until) if until else None
        ),
        "joules_to_target": _energy(until),
    }


def _energy(rows: Sequence[Row]) -> float | None:
    """Return the joules of some rounds; None for none, or without a device model."""
    joules = [row.get("energy_joules") for row in rows]
    known = [value for value in joules if value is not None]
    return math.fsum(known) if known else None
