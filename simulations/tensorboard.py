"""TensorBoard events of a run, written from its metrics.

They say nothing that `metrics.jsonl` does not; writing them again gives the same
events in the same place.
"""

import os
import shutil
from pathlib import Path

from fedsparse.errors import MissingExtraError
from fedsparse.runs import RunFolder
from fedsparse.runs.atomic import writing
from simulations.results import number

_FILE = "events.out.tfevents.0.fedsparse"


def write_events(folder: RunFolder | Path | str) -> Path:
    """Write `events/` of a run folder, replacing what it held, and return its path.

    Raises RunFolderError when it cannot be written, MissingExtraError without the
    extra `report`.
    """
    run = folder if isinstance(folder, RunFolder) else RunFolder.open(folder)
    events = run.path / "events"
    temporary = run.path / f".events.tmp-{os.getpid()}"
    with writing(run.path):
        try:
            _write(run, temporary)
            written = next(temporary.iterdir())
            events.mkdir(exist_ok=True)
            os.replace(written, events / _FILE)
        finally:
            shutil.rmtree(temporary, ignore_errors=True)
    return events


def _write(run: RunFolder, target: Path) -> None:
    """Write every number of every round; times count from the making of the run.

    `accuracy_by_second` has the simulated second as its step, so that runs on simulated
    devices lie over each other on their clock.
    """
    try:
        from torch.utils.tensorboard import SummaryWriter
    except ImportError:
        raise MissingExtraError("TensorBoard output", "report") from None
    clock = (run.path / "config.toml").stat().st_mtime
    with SummaryWriter(str(target)) as writer:
        for row in run.metrics():
            step = int(number(row.get("round")) or 0)
            clock += number(row.get("seconds")) or 0.0
            layers = row.get("layer_density")
            scalars = {key: value for key, value in row.items() if key != "round"}
            if isinstance(layers, dict):
                scalars |= {f"layer_density/{name}": value for name, value in layers.items()}
            for name, value in scalars.items():
                known = number(value)
                if known is not None:
                    writer.add_scalar(name, known, step, walltime=clock)
            second, reached = number(row.get("simulated_seconds")), number(row.get("accuracy"))
            if second is not None and reached is not None:
                writer.add_scalar("accuracy_by_second", reached, int(second), walltime=clock)
