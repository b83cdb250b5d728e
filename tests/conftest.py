"""What every test stands on: one thread, and nobody told that we ran."""

import os

os.environ["FLWR_TELEMETRY_ENABLED"] = "0"
os.environ["RAY_USAGE_STATS_ENABLED"] = "0"

import torch

torch.set_num_threads(1)
