"""What every test stands on: one thread, and nobody told that we ran."""

import os

os.environ["FLWR_TELEMETRY_ENABLED"] = "0"
os.environ["RAY_USAGE_STATS_ENABLED"] = "0"
# Tests start a hundred processes; without bytecode each would compile our modules anew.
os.environ.pop("PYTHONDONTWRITEBYTECODE", None)

import torch

torch.set_num_threads(1)
