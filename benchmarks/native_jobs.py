"""Local rounds that the native program trains: one model, density and form each.

The density is that of the whole model under an ERK allocation with random kept weights. The
form says how layers are computed: `dense` all from whole weights, `sparse` all from kept
weights, as far as they are masked. Samples, weights and masks are drawn from fixed seeds.
"""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from fedsparse import models
from fedsparse.kernels import graph, library, node
from fedsparse.kernels.program import Optimizer, Program, Values
from fedsparse.kernels.rule import Rule
from fedsparse.sparsity import static_mask

BATCH = 32
FORMS = {"dense": Rule(0.0, 0.0), "sparse": Rule(2.0, 2.0)}
SHAPES = {"mobilenet-v1": (3, 32, 32), "resnet18": (3, 16, 16)}
WIDTHS = {"mobilenet-v1": 0.25, "resnet18": 0.25}


@dataclass(frozen=True)
class Case:
    """A model of the zoo, its density, and the form of its layers."""

    model: str
    density: float
    form: str

    def __str__(self) -> str:
        return f"{self.model} {self.density:g} {self.form}"


@dataclass(frozen=True)
class Prepared:
    """A round ready to be trained here or written for a program."""

    program: Program
    values: Values
    job: node.Job

    def write(self, path: Path) -> None:
        """Write it for the program of node_main.cpp."""
        node.write_job(path, self.program, self.values, self.job)

    def train(self) -> tuple[Values, float, int]:
        """Train it here; return what `node.read_result` does."""
        values, job = self.values.copy(), self.job
        slots = self.program.slots(job.optimizer)
        done = self.program.train(values, job.x, job.y, job.order, job.edges, job.optimizer, slots)
        return values, done.loss, done.correct


def prepare(case: Case, *, epochs: int = 1, batch: int = BATCH, instructions: str = "") -> Prepared:
    """Return a round of `epochs` epochs of one batch, to run with an instruction set here."""
    torch.manual_seed(0)
    rng = np.random.default_rng(0)
    shape = SHAPES.get(case.model, (1, 28, 28))
    width = WIDTHS.get(case.model, 1.0)
    model = models.build(case.model, input_shape=shape, classes=10, width=width)
    mask = None
    if case.density < 1:
        mask = static_mask(model, models.prunable(model), case.density, "random", rng=rng)
    derived = graph.derive(model, shape)
    program = Program(derived, mask, FORMS[case.form], library.load(instructions))
    state = {name: value.numpy() for name, value in model.state_dict().items()}
    job = node.Job(
        x=rng.standard_normal((batch, *shape), dtype=np.float32),
        y=rng.integers(0, 10, batch),
        order=np.stack([rng.permutation(batch) for _ in range(epochs)]),
        edges=np.array([0, batch]),
        optimizer=Optimizer("momentum", lr=0.05, momentum=0.9),
    )
    return Prepared(program, program.pack(state), job)
