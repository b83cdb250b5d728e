"""Run or resume an experiment on this machine or a Ray cluster: engine, grid, folder.

The engine only carries messages. Which one is used changes how long a run takes, never
a bit of its result.
"""

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from flwr.serverapp import Grid

from fedsparse.config import Config
from fedsparse.data import nodes
from fedsparse.errors import ConfigError, RunFolderError
from fedsparse.messages import Plan
from fedsparse.runs import RunFolder
from fedsparse.runs.progress import Progress, Silent
from simulations import capacity
from simulations.capacity import workers_of
from strategies import foreign, server_app
from strategies.addressing import MeteredGrid, round_size
from strategies.base import SparseStrategy
from strategies.execute import check_clock, execute
from strategies.fedavg import FedAvg
from strategies.task import Task

if TYPE_CHECKING:
    from fedsparse.devices import Fleet
    from simulations.ray_session import RaySession
    from strategies.seats import Demands

CLIENT_APP = "clients.client_app:app"

RAY_PAYS_FLOPS = 2e12
"""Arithmetic of a run above which starting workers takes less time than it saves."""

Summary = dict[str, Any]


def run_experiment(
    config: Config,
    out: Path,
    *,
    command: str,
    progress: Progress | None = None,
    session: "RaySession | None" = None,
) -> Summary:
    """Run a configuration into a new folder and return its summary.

    Everything that can be refused is refused before the folder is made. `session` is Ray where
    that was started before; it is closed after the run.
    """
    check_engine(config)
    task = Task.of(config)
    strategy = foreign.make(task)
    fleet = fleet_of(task, strategy)
    folder = RunFolder.create(out, task.config, command=command)
    with folder.lock():
        return _drive(task, strategy, fleet, folder, progress or Silent(), session)


def resume_experiment(path: Path, *, progress: Progress | None = None) -> Summary:
    """Continue an interrupted run to the same bits as one that was never interrupted.

    A finished run is left as it is and its summary returned; a model, mask or summary that
    it lost is made again. Raises RunFolderError for an unfinished one that Flower carries: its
    clients are not ours to simulate.
    """
    folder = RunFolder.open(path)
    progress = progress or Silent()
    if folder.finished:
        if not (lost := folder.lost()):
            progress.note(f"'{path}' is finished; there is nothing to resume")
            return folder.summary()
        _check_remakable(folder, lost)
        progress.note(f"{', '.join(lost)}: missing or damaged, made again")
    elif folder.command == server_app.COMMAND:
        raise RunFolderError(
            f"'{path}' is a run of `{server_app.COMMAND}`; to go on, set FEDSPARSE_OUT to "
            f"'{path.absolute()}' and start it the same way again"
        )
    with folder.lock():
        check_engine(folder.config)
        task = Task.of(folder.config)
        strategy = foreign.make(task)
        fleet = fleet_of(task, strategy)
        return _drive(task, strategy, fleet, folder, progress)


def _check_remakable(folder: RunFolder, lost: list[str]) -> None:
    """Refuse to finish a run again that has lost what its last checkpoint does not hold."""
    gone = [name for name in lost if name in ("metrics.jsonl", "clients.parquet")]
    ended = folder.checkpoints()[-1:] == [folder.config.run.rounds]
    if gone or not ended or folder.command == server_app.COMMAND:
        raise RunFolderError(
            f"'{folder.path / (gone or lost)[0]}' of a finished run is missing or damaged and "
            "cannot be made again; start again with another --out"
        )


def _drive(
    task: Task,
    strategy: Any,
    fleet: "Fleet | None",
    folder: RunFolder,
    progress: Progress,
    session: "RaySession | None" = None,
) -> Summary:
    """Carry the run on the engine that the configuration names."""
    engine = choose_engine(task)
    carried = "" if engine == "inline" else f", {workers_of(task.config)} worker(s)"
    progress.note(f"engine: {engine}{carried}; training: {task.trains}")

    metered: Callable[..., MeteredGrid] = MeteredGrid
    if fleet is not None:
        from simulations.events import EventGrid

        metered = partial(EventGrid, task=task, fleet=fleet)

    def on(grid: Grid) -> Summary:
        if hasattr(grid, "progress"):
            grid.progress = progress.clients
        return execute(task, strategy, grid, folder, progress, metered)

    try:
        return _carriers()[engine](task, on, session)
    finally:
        progress.stop()


def fleet_of(task: Task, strategy: Any) -> "Fleet | None":
    """Return the devices of a run, None without any; refuse those that cannot train.

    Raises ConfigError for a fleet of which no client holds the training, with the density
    that would fit, and for an asynchronous strategy without a clock.
    """
    config = task.config
    if config.fleet.profile is None:
        check_clock(config, strategy)
        return None
    from fedsparse import devices
    from simulations.enrolment import Enrolment

    fleet = devices.load(config.fleet, config.run.seed)
    density = float(config.strategy["density"])
    if isinstance(strategy, SparseStrategy):
        wants, fits, sparser = strategy.demands, strategy.fits, strategy.sparser
    else:
        foreign.check_clock(config)
        wants, fits, sparser = partial(_dense_demands, task), frozenset[str](), FedAvg.sparser
    Enrolment(task, fleet).check(wants, density, fits, sparser)
    return fleet


def _dense_demands(task: Task, density: float) -> "Demands":
    """Return what a strategy of another maker asks for; below 1, what a sparse one would."""
    from strategies.seats import erk_counts

    return [(Plan(), erk_counts(task, density))]


def check_engine(config: Config) -> None:
    """Refuse what an engine cannot do; raises ConfigError, or GridError for a lost cluster."""
    if config.data.name == nodes.NAME:
        raise ConfigError(
            "data.name = 'nodes': these data lie at real nodes, where `flwr run` or `fedsparse "
            "deploy local --node-config` reach them; choose another data set to simulate"
        )
    capacity.check(config.engine)
    if config.engine.device != "cpu" and not config.engine.ray_address:
        from fedsparse.training import cohort

        cohort.device_of(config.engine)
    if config.engine.name == "flower" and config.client.keep_optimizer:
        raise ConfigError(
            "client.keep_optimizer = true: Flower's engine gives no access to its clients' state, "
            "so the run could not be resumed; use --engine inline or ray"
        )


def choose_engine(task: Task) -> str:
    """Return the engine: the one named, or by the amount of arithmetic for `auto`."""
    config = task.config
    if config.engine.name != "auto":
        return config.engine.name
    if config.engine.ray_address:
        return "ray"
    cohort = round_size(config.fleet)
    each = float(task.data.train_sizes.mean()) * config.client.local_epochs
    samples = each * cohort * config.run.rounds
    heavy = task.cost.train_flops(1) * samples > RAY_PAYS_FLOPS
    return "ray" if heavy and workers_of(config) > 1 else "inline"


Carrier = Callable[[Task, Callable[[Grid], Summary], "RaySession | None"], Summary]


def _carriers() -> dict[str, Carrier]:
    return {"inline": _inline, "ray": _ray, "flower": _flower}


def _inline(task: Task, on: Callable[[Grid], Summary], session: object) -> Summary:
    from simulations.grid import CohortGrid, InlineExecutor

    executor = InlineExecutor(CLIENT_APP)
    with CohortGrid(CLIENT_APP, clients=task.config.fleet.clients, executor=executor) as grid:
        return on(grid)


def _ray(task: Task, on: Callable[[Grid], Summary], session: "RaySession | None") -> Summary:
    from simulations.grid import CohortGrid
    from simulations.ray_workers import RayExecutor

    config, sizes = task.config, task.data.train_sizes
    executor = RayExecutor(
        CLIENT_APP,
        workers=workers_of(config),
        address=config.engine.ray_address,
        session=session,
        weigh=lambda client: float(sizes[client]),
    )
    with CohortGrid(CLIENT_APP, clients=config.fleet.clients, executor=executor) as grid:
        return on(grid)


def _flower(task: Task, on: Callable[[Grid], Summary], session: object) -> Summary:
    from simulations.flower_engine import run_with_flower

    return run_with_flower(
        lambda grid, context: on(grid),
        CLIENT_APP,
        clients=task.config.fleet.clients,
        workers=workers_of(task.config),
    )
