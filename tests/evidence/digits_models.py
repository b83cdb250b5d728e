"""Small models of the digits, trained in a blink on all samples or without some of them."""

from functools import cache

from tiny_runs import tiny

from fedsparse import models, seeds
from fedsparse.config import Config
from fedsparse.data import Dataset
from simulations.evidence.examine import Subject
from simulations.evidence.samples import Samples, samples
from strategies.task import Task

PLAIN = (
    "model.name=mlp",
    "model.width=1.0",
    "data.samples=440",
    "data.test_samples=359",
    "data.public_samples=0",
    "data.client_test_fraction=0.0",
    "data.seed=0",
)
SAMPLES = PLAIN, ("forget.clients=0,1",)
CLASS = PLAIN, ("forget.classes=3",)


def configs(case: tuple[tuple[str, ...], tuple[str, ...]]) -> tuple[Config, Config]:
    """Return the configurations of a run and of the run without the target."""
    plain, forget = case
    return tiny(*plain), tiny(*plain, *forget)


@cache
def world(case: tuple[tuple[str, ...], tuple[str, ...]]) -> tuple[Task, Samples]:
    parent, child = configs(case)
    return Task.of(parent), samples(parent, child)


def train(task: Task, data: Dataset, seed: int, epochs: int = 40) -> Subject:
    """Train a fresh dense model by a seed until it knows its samples by heart."""
    module = models.build_seeded(
        task.config.model.name,
        input_shape=task.data.input_shape,
        classes=task.data.classes,
        width=1.0,
        seed=seed,
    )
    model = task.backend.load(models.get_state(module))
    rng = seeds.stream(seed, 0, 0, "batches")
    model.train(data, task.config.client, rng=rng, epochs=epochs, lr=0.05)
    return Subject(model.whole(), None)


@cache
def original(case: tuple[tuple[str, ...], tuple[str, ...]], seed: int = 200) -> Subject:
    """Return a model of all samples."""
    task, _ = world(case)
    return train(task, task.data.train, seed)


@cache
def retrained(case: tuple[tuple[str, ...], tuple[str, ...]], seed: int) -> Subject:
    """Return a model that never had the target."""
    task, found = world(case)
    return train(task, found.retained, seed)
