"""One run over a given grid: what the simulator and a deployment have in common.

The caller makes the grid and the run folder; here the run goes from its newest
checkpoint to its summary.
"""

from flwr.serverapp import Grid
from flwr.serverapp.strategy import Strategy

from fedsparse import data
from fedsparse.config import Config
from fedsparse.runs import RunFolder
from fedsparse.runs.progress import Progress
from strategies.addressing import Directory, MeteredGrid
from strategies.base import SparseStrategy
from strategies.rounds import RoundLoop
from strategies.task import Task


def execute(
    task: Task, strategy: Strategy, grid: Grid, folder: RunFolder, progress: Progress
) -> dict[str, object]:
    """Run a strategy over `grid`, writing into `folder`, and return the summary.

    Continues from the folder's newest checkpoint if it holds one. Raises GridError when
    clients are missing and TooFewRepliesError when a round cannot go on; the folder can
    then be resumed.
    """
    config = task.config
    directory = Directory.of(grid, config.fleet.clients)
    if isinstance(strategy, SparseStrategy):
        strategy.directory = directory
    partition = {"kind": config.data.partition, "classes": task.data.classes}
    folder.write_json("partition.json", {**partition, "counts": data.partition_counts(task.data)})
    loop = RoundLoop(task, strategy, MeteredGrid(grid, directory), folder, progress)
    loop.run()
    summary = summarise(config, folder)
    folder.finish(loop.state, loop.mask, summary)
    return summary


def summarise(config: Config, folder: RunFolder) -> dict[str, object]:
    """Return the run's headline figures, summed over its rounds.

    Bytes are those of the clients' last test, too, which belongs to no round.
    Simulated time and energy need a device model; they are null without one.
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
        "train_flops": sum(row["train_flops"] for row in rows),
        "peak_client_memory_bytes": max(row["peak_client_memory_bytes"] for row in rows),
        "wall_seconds": sum(row["seconds"] for row in rows),
        "simulated_seconds": None,
        "energy_joules": None,
        "run": str(folder.path),
    }
