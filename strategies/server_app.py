"""The ServerApp: what `flwr run .` starts, on a simulation or on real nodes.

The run's configuration comes from `[tool.flwr.app.config]` and `--run-config`, with the
same keys as everywhere else; the run folder is `runs/flower-<run id>` where the app runs,
or the folder that `FEDSPARSE_OUT` names. An unfinished run in that folder goes on.
"""

import logging
import os
from pathlib import Path
from typing import Any

from flwr.app import Context
from flwr.serverapp import Grid, ServerApp

from fedsparse import config as configuration
from fedsparse.config import Config, differences
from fedsparse.errors import ConfigError, RunFolderError, TooFewRepliesError
from fedsparse.flower_pulls import ask_again_soon, outlast_cuts
from fedsparse.runs import RunFolder
from fedsparse.runs.ledger import Ledger
from fedsparse.runs.progress import Silent
from strategies import foreign
from strategies.execute import check_clock, execute
from strategies.prompt import PromptGrid
from strategies.task import Task

COMMAND = "flwr run ."
"""What the run folder of a run on Flower's nodes says that started it."""


class Logged(Silent):
    """Puts what is noted into the app's log, which `flwr log` shows."""

    def note(self, text: str) -> None:
        """Log a line."""
        logging.getLogger(__name__).warning(text)


app = ServerApp()


@app.main()
def main(grid: Grid, context: Context) -> None:
    """Run, or go on with, the configured experiment over Flower's grid."""
    config = configuration.resolve(nested(context.run_config))
    if config.fleet.profile is not None:
        raise ConfigError(
            f"fleet.profile = '{config.fleet.profile}': `{COMMAND}` runs on nodes as they are, in "
            "real time; leave it out, or simulate devices with `fedsparse run`"
        )
    out = Path(os.environ.get("FEDSPARSE_OUT", f"runs/flower-{context.run_id}"))
    task = Task.of(settled_before(out, config), settle=False)
    strategy = foreign.make(task)
    check_clock(task.config, strategy)
    folder = folder_of(out, task.config)
    ask_again_soon()
    outlast_cuts()
    with folder.lock():
        prompt = PromptGrid(grid, least=task.config.fleet.min_replies)
        try:
            execute(task, strategy, prompt, folder, Logged())
        except TooFewRepliesError as error:
            kept = max(folder.checkpoints(), default=0)
            raise TooFewRepliesError(
                f"paused after round {kept}: {error}; when nodes are back, start it again with the "
                "same folder, and it goes on there"
            ) from error


def settled_before(out: Path, config: Config) -> Config:
    """Return the configuration with what an unfinished run at `out` settled and this leaves open.

    The break-even densities are measured; a second measurement may come out otherwise.
    """
    if not (out / "run.json").exists():
        return config
    before = RunFolder.open(out).config.client
    keys = ("sparse_linear_below", "sparse_conv_below")
    known = {k: getattr(before, k) for k in keys if getattr(config.client, k) is None}
    return config.model_copy(update={"client": config.client.model_copy(update=known)})


def folder_of(out: Path, config: Config) -> RunFolder:
    """Return a new run folder at `out`, or the unfinished run of the same configuration there.

    Raises RunFolderError when the run there is finished or not Flower's, ConfigError when its
    configuration is another one, or keeps state in clients, which begin anew.
    """
    if not (out / "run.json").exists():
        folder = RunFolder.create(out, config, command=COMMAND)
        Ledger(folder.path).make_key()  # these samples are somebody's
        return folder
    folder = RunFolder.open(out)
    if folder.finished:
        raise RunFolderError(f"the run in '{out}' is finished; set FEDSPARSE_OUT to a new folder")
    if folder.command != COMMAND:
        raise RunFolderError(
            f"'{out}' holds a run of '{folder.command}'; go on with `fedsparse resume {out}` "
            "or set FEDSPARSE_OUT to a new folder"
        )
    if changed := differences(folder.config.model_dump(), config.model_dump()):
        raise ConfigError(
            f"the run in '{out}' has another {', '.join(changed)}; give the same --run-config, "
            "or set FEDSPARSE_OUT to a new folder"
        )
    if config.client.keep_optimizer:
        raise ConfigError(
            "client.keep_optimizer = true: Flower gives no access to its clients' state, so this "
            "run cannot be resumed; set FEDSPARSE_OUT to a new folder"
        )
    return folder


def nested(flat: dict[str, Any]) -> dict[str, Any]:
    """Turn Flower's dotted keys back into sections; keys that are nobody's are refused."""
    tree: dict[str, Any] = {}
    for key, value in flat.items():
        section, dot, name = key.partition(".")
        if dot:
            tree.setdefault(section, {})[name] = value
        else:
            tree[section] = value
    return tree
