"""Configurations of runs that last a second or two, on scikit-learn's digits."""

import json
from pathlib import Path
from typing import Any

import pytest

from fedsparse import config
from fedsparse.config import Config
from fedsparse.runs import RunFolder
from fedsparse.runs.progress import Silent
from simulations.experiment import run_experiment

BASE: dict[str, dict[str, Any]] = {
    "run": {"rounds": 3},
    "data": {"name": "digits", "samples": 400, "public_samples": 60, "test_samples": 100},
    "model": {"name": "cnn", "width": 0.5},
    "client": {"batch_size": 16},
    "fleet": {"clients": 4},
    "strategy": {
        "name": "fedtiny",
        "density": 0.1,
        "adjust_every": 1,
        "stop_round": 3,
        "pretrain_epochs": 2,
        "candidates": 3,
        "development_samples": 32,
    },
    "engine": {"name": "inline"},
}


class Noted(Silent):
    """Progress that keeps what is noted."""

    def __init__(self) -> None:
        self.notes: list[str] = []

    def note(self, text: str) -> None:
        """Keep a note."""
        self.notes.append(text)


def tiny(*assignments: str) -> Config:
    """Return the tiny configuration with `section.key=value` changes."""
    return config.resolve(config.override(BASE, assignments))


def run(out: Path, *assignments: str) -> dict[str, Any]:
    """Run the tiny configuration into a folder and return its summary."""
    return run_experiment(tiny(*assignments), out, command="tiny")


def rows(out: Path) -> list[dict[str, Any]]:
    """Return the rounds' rows of a run without what differs from one run to the next."""
    text = (out / "metrics.jsonl").read_text().splitlines()
    return [{k: v for k, v in json.loads(line).items() if k != "seconds"} for line in text]


def model_bytes(out: Path) -> bytes:
    """Return the bytes of the final model."""
    return (out / "model.safetensors").read_bytes()


def run_and_interrupt(monkeypatch: Any, out: Path, row: int, *assignments: str) -> None:
    """Run the tiny configuration until it is interrupted ahead of its `row`th row of figures."""
    plain, seen = RunFolder.append_metrics, []

    def interrupted(self: RunFolder, figures: Any) -> None:
        seen.append(figures)
        if len(seen) == row:
            raise KeyboardInterrupt
        plain(self, figures)

    with monkeypatch.context() as patched:
        patched.setattr(RunFolder, "append_metrics", interrupted)
        with pytest.raises(KeyboardInterrupt):
            run(out, *assignments)
