"""Device profiles with round figures, written to files, for hand-worked cases."""

from pathlib import Path
from typing import Any

import tomli_w

PLAIN: dict[str, Any] = {
    "name": "plain",
    "description": "Round figures for hand-worked cases",
    "dense_flops": 1e5,
    "sparse_efficiency": 0.5,
    "memory_bytes": 1e9,
    "storage_bytes": 1e9,
    "up_bytes_per_second": 1e4,
    "down_bytes_per_second": 4e4,
    "latency_seconds": 0.25,
    "compute_watts": 2.0,
    "radio_watts": 0.5,
}


def profile_file(folder: Path, **changes: Any) -> Path:
    """Write the plain profile with changes into a folder and return its path."""
    path = folder / "plain.toml"
    path.write_text(tomli_w.dumps({**PLAIN, **changes}))
    return path


def fleet_file(folder: Path, *devices: dict[str, Any], **spread: float) -> Path:
    """Write a fleet of such profiles, each `{share, **changes}`, and return its path."""
    for number, device in enumerate(devices):
        device.setdefault("name", f"kind-{number}")
    path = folder / "fleet.toml"
    mixture = [{**PLAIN, **device} for device in devices]
    tree: dict[str, Any] = {"name": "made", "description": "made for a test", "device": mixture}
    path.write_text(tomli_w.dumps({**tree, **({"spread": spread} if spread else {})}))
    return path
