"""The ServerApp: what `flwr run .` starts, on a simulation or on real nodes.

The run's configuration comes from `[tool.flwr.app.config]` and `--run-config`, with the
same keys as everywhere else; the run folder is `runs/flower-<run id>` where the app runs,
or the folder that `FEDSPARSE_OUT` names.
"""

import os
from pathlib import Path
from typing import Any

from flwr.app import Context
from flwr.serverapp import Grid, ServerApp

from fedsparse import config as configuration
from fedsparse.runs import RunFolder
from fedsparse.runs.progress import Silent
from strategies import foreign
from strategies.execute import execute
from strategies.task import Task

app = ServerApp()


@app.main()
def main(grid: Grid, context: Context) -> None:
    """Run the configured experiment over Flower's grid."""
    config = configuration.resolve(nested(context.run_config))
    out = Path(os.environ.get("FEDSPARSE_OUT", f"runs/flower-{context.run_id}"))
    task = Task.of(config)
    strategy = foreign.make(task)
    folder = RunFolder.create(out, config, command="flwr run .")
    with folder.lock():
        execute(task, strategy, grid, folder, Silent())


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
