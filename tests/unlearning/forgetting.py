"""Tiny runs that forget: a parent on digits, and children of it by any method."""

from pathlib import Path
from typing import Any

import numpy as np
import safetensors.numpy

from fedsparse import registry
from fedsparse.runs import RunFolder
from fedsparse.sparsity import Mask, State
from strategies.task import Task
from tests.tiny_runs import run

METHODS = sorted(registry.METHODS)
TARGET = {"federaser": "forget.clients=1"}
"""What a method forgets in tests, if not class 3."""

WORLD = ("data.samples=700", "data.test_samples=300", "fleet.clients=5", "run.keep_norms=true")
LEARNT = (*WORLD, "run.rounds=10")
QUICK = (
    "data.samples=260",
    "data.test_samples=60",
    "model.width=0.25",
    "run.keep_norms=true",
    "data.client_test_fraction=0.2",
)


def dense(*more: str) -> tuple[str, ...]:
    """Return the strategy of a dense parent."""
    return ("strategy.name=fedavg", *more)


def sparse(*more: str) -> tuple[str, ...]:
    """Return the strategy of a sparse parent."""
    return ("strategy.name=static", "strategy.density=0.3", *more)


def method(name: str, parent: Path, *more: str, target: str | None = None) -> tuple[str, ...]:
    """Return the settings of a child by a method, which forgets `target` ('' for nothing)."""
    usual = TARGET.get(name, "forget.classes=3")
    chosen = usual if target is None else target
    density = ("strategy.density=0.1",) if name == "prune-finetune" else ()
    settings = (f"strategy.name={name}", f"strategy.parent={parent}", *density, *more)
    return (*settings, chosen) if chosen else settings


def child(
    out: Path, name: str, parent: Path, *more: str, target: str | None = None
) -> dict[str, Any]:
    """Run a method on a parent and return its summary."""
    return run(out, *method(name, parent, *more, target=target))


def model_of(out: Path) -> tuple[State, Mask | None]:
    """Return the last model of a run and its mask."""
    state = safetensors.numpy.load((out / "model.safetensors").read_bytes())
    found = out / "mask.safetensors"
    return state, Mask.load(found) if found.exists() else None


def accuracy(out: Path, seen_by: Path | None = None) -> tuple[float, float]:
    """Return a run's accuracy on the forgotten class's test samples, and on all others.

    `seen_by` is the run whose configuration says what is forgotten.
    """
    task = Task.of(RunFolder.open(seen_by or out).config)
    state, mask = model_of(out)
    model = task.backend.load({name: state[name] for name in task.schema.names}, mask)
    assert task.data.test_forgotten is not None
    return model.evaluate(task.data.test_forgotten).accuracy, task.evaluate(state, mask).accuracy


def same(first: State, second: State) -> bool:
    """Tell whether two models are equal to the bit."""
    return all(np.array_equal(first[name], second[name]) for name in first)
