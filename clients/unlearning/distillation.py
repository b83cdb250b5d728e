"""Forgetting by distillation at a client: Bad-T and SCRUB.

Chundawat et al. (AAAI 2023) and Kurmanji et al. (NeurIPS 2023). The competent teacher is the model
that is to forget, which comes with the message; Bad-T's incompetent one is the run's initial model,
which every client knows by the seed. Teachers answer once a visit.
"""

from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from clients.job import Job
from clients.program import Outcome, Program, Visit
from clients.unlearning import paired
from clients.unlearning.ascent import bound_of
from clients.unlearning.vector import Vector, joined
from fedsparse import messages, models, wire
from fedsparse.data import Dataset
from fedsparse.errors import DataError
from fedsparse.sparsity import Mask, State
from fedsparse.training import local
from fedsparse.training.flat_model import FlatModel
from fedsparse.training.gradients import Floats
from fedsparse.training.local import Trained


class Distillation(Program):
    """Follow a competent teacher on retained data; on the rest a bad one, or away from the good."""

    def train(self, visit: Visit) -> Outcome:
        """Train by the teachers that the settings name."""
        job, settings = visit.job, visit.settings
        kept, gone = job.data.train, job.forgotten
        data, bad = joined(kept, gone), settings["teacher"] == "bad"
        competent = teacher_of(visit)
        answers = [
            answer(job, competent, kept),
            answer(job, job.initial if bad else competent, gone),
        ]
        models.load_state(job.model, visit.received.state)
        hard = 0.0 if bad else float(settings["hard_weight"])
        weights = np.repeat(np.array([hard, 0.0], np.float32), [len(kept), len(gone)])
        own = Vector(visit, data, work=Distilled(job, data, torch.cat(answers), weights))
        own.beside = len(data) * job.cost.flops_of(
            None if own.mask is None else own.mask.layer_kept()
        )
        follow = follow_both if bad else climb_then_follow
        return own.outcome(follow(own, len(kept), len(gone)))


def follow_both(own: Vector, retained: int, forgotten: int) -> Trained:
    """Bad-T: minimise (1 - l) KL(competent || s) + l KL(bad || s), with l = 1 on D_f."""
    halves = paired.plain_halves(own, retained)
    return paired.train(own, retained, forgotten, paired.mean(own.values), halves)


def climb_then_follow(own: Vector, retained: int, forgotten: int) -> Trained:
    """SCRUB: steps up on KL(teacher || s) over D_f, then steps down on D_r.

    Steps up end with the round that the settings name, and where the divergence is beyond its
    bound.
    """
    visit = own.visit
    if visit.job.plan.round <= int(visit.settings["max_rounds"]) and forgotten:
        rng, bound = visit.stream("climbing"), bound_of(visit)
        for chosen in local.batches(forgotten, visit.job.settings.batch_size, rng):
            found, _, gradient = own.gradient(retained + chosen, still=True)
            if found / len(chosen) <= bound:
                own.step(-gradient)
    halves = paired.plain_halves(own, retained)
    return paired.train(own, retained, 0, paired.mean(own.values), halves)


def teacher_of(visit: Visit) -> State:
    """Return the competent teacher of the message; raises DataError where it brings none."""
    record = visit.sent.get(messages.TEACHER)
    if record is None:
        raise DataError(f"the message carries no teacher; send it as '{messages.TEACHER}'")
    return wire.decode(wire.unpack(record), visit.job.schema).state


@torch.no_grad()
def answer(job: Job, state: State, data: Dataset) -> Tensor:
    """Return a teacher's log-probabilities: (samples, classes)."""
    models.load_state(job.model, state)
    job.model.eval()
    x, _ = local.tensors(data)
    parts: Any = x.split(local.EVALUATION_BATCH) if len(x) else ()  # type: ignore[no-untyped-call]
    found = [job.model(part).log_softmax(1) for part in parts]
    return torch.cat(found) if found else torch.zeros(0, data.classes)


class Distilled:
    """Gradients of KL(teacher || student) + h CE, with a weight h of the true label by sample.

    By torch: kernels know true labels alone. The model holds the student's state.
    """

    def __init__(self, job: Job, data: Dataset, answers: Tensor, hard: NDArray[np.float32]) -> None:
        local.check_batches(job.model, job.settings, data)
        self.flat, self.settings = FlatModel(job.model), job.settings
        self.x, self.y = local.tensors(data)
        self.answers, self.hard = answers, torch.from_numpy(hard)

    def of(
        self,
        values: Floats,
        chosen: NDArray[np.int64],
        mask: Mask | None = None,
        *,
        still: bool = False,
    ) -> tuple[float, int, Floats]:
        """Return a batch's summed loss, right answers and mean gradient."""
        self.flat.model.train(not still)
        index, leaf = torch.from_numpy(chosen), torch.from_numpy(values).requires_grad_()
        with local.autocast(self.settings):
            output = self.flat.call(leaf, self.x[index])
        output, target = output.float(), self.y[index]
        student, teacher = output.log_softmax(1), self.answers[index]
        each = (teacher.exp() * (teacher - student)).sum(1)
        true = nn.functional.nll_loss(student, target, reduction="none")
        loss = (each + self.hard[index] * true).mean()
        loss.backward()  # type: ignore[no-untyped-call]
        assert leaf.grad is not None
        correct = int((output.detach().argmax(1) == target).sum())
        return float(loss.detach()) * len(chosen), correct, leaf.grad.numpy()

    def buffers(self) -> State:
        """Return the running statistics as batches have moved them."""
        own = dict(self.flat.model.named_buffers())
        return {n: v for n, v in models.get_state(self.flat.model).items() if n in own}
