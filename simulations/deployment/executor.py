"""What runs a node's clients: one process with everything imported, forked for each message.

A fork starts in milliseconds where a new Python process takes seconds to import torch and
Flower, and a client that crashes or leaks takes nothing with it. Started by `node.py`.
"""

import importlib
import sys
from contextlib import suppress

PRELOADED = (
    "clients.client_app",
    "flwr.supernode.runtime.run_clientapp",
    "fedsparse.kernels.library",
)
WHERE_INSTALLED = ("sklearn.datasets", "fedsparse.kernels.graph", "fedsparse.training.torch_model")
"""What a light node lacks, or may lack: the last two import torch."""


def main() -> None:
    """Serve the node at the address in the first argument until the process in the second ends."""
    from simulations.flower_internals import run_superexec_forking

    for name in PRELOADED:
        importlib.import_module(name)
    for name in WHERE_INSTALLED:
        with suppress(ModuleNotFoundError):
            importlib.import_module(name)
    run_superexec_forking(sys.argv[1], int(sys.argv[2]))


if __name__ == "__main__":
    main()
