"""A SuperNode that answers fast: `python -m simulations.deployment.node` and flower-supernode's
own options.

Flower starts a Python process for each message, which imports torch anew, and looks for work
every three seconds. Here one process keeps everything imported and forks for each message, and
the node looks as often as FEDSPARSE_NODE_POLL says, in seconds.
"""

import argparse
import os
import subprocess
import sys

from fedsparse.errors import ConfigError
from simulations.deployment.told import check_told

POLL = "FEDSPARSE_NODE_POLL"
POLL_SECONDS = 1.0


def main() -> None:
    """Check what the node is told, start what runs clients, then be Flower's SuperNode."""
    from simulations.deployment.processes import quieten

    quieten()

    parser = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    parser.add_argument("--port", type=int, default=9094)
    parser.add_argument("--node-config", default="")
    own, _ = parser.parse_known_args()
    try:
        check_told(own.node_config)
    except ConfigError as error:
        sys.exit(f"fedsparse: error: {error}")

    from simulations.deployment.steadfast import stay_in_fleet
    from simulations.flower_internals import look_often_for_work

    executor = [sys.executable, "-m", "simulations.deployment.executor"]
    subprocess.Popen([*executor, f"127.0.0.1:{own.port}", str(os.getpid())])
    sys.argv += ["--isolation", "process"]
    look_often_for_work(float(os.environ.get(POLL, POLL_SECONDS)))
    stay_in_fleet()

    from flwr.supernode.cli.flower_supernode import flower_supernode

    flower_supernode()


if __name__ == "__main__":
    main()
