"""What every part of fedsparse shares: masks, payloads, models, data, runs."""

import os

__version__ = "0.1.0"

# Flower and Ray report usage to their makers unless told not to before they are imported.
os.environ.setdefault("FLWR_TELEMETRY_ENABLED", "0")
os.environ.setdefault("FLWR_DISABLE_UPDATE_CHECK", "1")
os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
# Without it Ray warns at every start that a later release will treat GPUs differently.
os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")
