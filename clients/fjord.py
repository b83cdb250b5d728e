"""FjORD's ordered dropout: each step trains the first channels of a width drawn anew.

Widths are uniform over the strategy's, up to the client's own, which the plan's budget says.
With self-distillation the client's full width is trained at each step, too, and is the teacher
of the narrower one. The personal model is the client's full width.
"""

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import lru_cache

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

from clients.program import Outcome, Program, Visit
from fedsparse import models
from fedsparse.sparsity import Mask
from fedsparse.sparsity.slices import Slices, prefix
from fedsparse.training import local
from fedsparse.training.backend import Backend
from fedsparse.training.local import Trained
from fedsparse.training.optimizers import Optimizer, Trainable
from fedsparse.training.price import price


@dataclass(frozen=True, eq=False)
class Narrow:
    """A width of the model: what of each weight it keeps, and which statistics it has.

    Of a layer's running statistics `held` has those of kept channels. Empty for the whole model.
    """

    weights: Mapping[str, Tensor]
    held: Mapping[str, Tensor]
    mask: Mask | None

    def outputs(self, model: nn.Module, x: Tensor) -> Tensor:
        """Return the outputs of the narrower model."""
        parameters = dict(model.named_parameters())
        kept = {name: parameters[name] * bits for name, bits in self.weights.items()}
        output: Tensor = torch.func.functional_call(model, kept, (x,)) if kept else model(x)
        return output

    @contextmanager
    def alone(self, model: nn.Module) -> Iterator[None]:
        """Leave the statistics of other channels as they were before a pass both ways."""
        buffers = dict(model.named_buffers())
        before = {name: buffers[name].clone() for name in self.held}
        yield
        for name, bits in self.held.items():
            buffers[name].copy_(torch.where(bits, buffers[name], before[name]))


class Fjord(Program):
    """Train by ordered dropout, and send back the client's full width."""

    def train(self, visit: Visit) -> Outcome:
        """Train on the client's data; costs are those of the widths that were drawn."""
        job, mask = visit.job, visit.received.mask
        most = job.plan.budget
        offered = visit.settings["widths"]
        assert isinstance(offered, list)
        widths = [float(width) for width in offered if width <= most] or [most]
        rng = visit.stream("widths")
        steps = _Steps(visit, lambda: widths[int(rng.integers(len(widths)))], most)
        models.load_state(job.model, visit.received.state)
        trained = steps.run()
        kept = None if mask is None else mask.layer_kept()
        cost = price(job.cost, job.config.client, job.plan, len(job.data.train.y), kept)
        state = models.get_state(job.model)
        sent = state if mask is None else mask.take(state)
        return Outcome(sent, trained, mask, price=replace(cost, flops=steps.flops))


class _Steps:
    """The local steps of one client, with what they cost."""

    def __init__(self, visit: Visit, draw: Callable[[], float], most: float) -> None:
        self.visit, self.draw, self.most = visit, draw, most
        self.flops = 0.0
        self.share = float(visit.settings["distillation"])
        self.loss_function = local.loss_of(visit.job.data.train.classes)

    def run(self) -> Trained:
        """Train the worker's module in place; raises TrainingError as plain training does."""
        job = self.visit.job
        settings, data = job.settings, job.data.train
        (x, y), rng = local.tensors(data), self.visit.stream("batches")
        local.check_batches(job.model, settings, data)
        trainable = Trainable(dict(job.model.named_parameters()), {})
        optimizer = Optimizer(trainable, settings, job.lr, {})
        job.model.train(len(y) > 1)
        total = correct = torch.zeros(())
        for epoch in range(settings.local_epochs):
            total, correct = torch.zeros(()), torch.zeros(())
            for index in local.batches(len(y), settings.batch_size, rng):
                chosen = torch.from_numpy(index)
                optimizer.clear()
                loss, output = self.step(x[chosen], y[chosen])
                optimizer.step()
                total = total + loss * len(index)
                correct = correct + (output.argmax(1) == y[chosen]).sum()
            local.check_loss(float(total), epoch + 1, "client.lr", job.lr)
        local.check_finite(job.model.state_dict().values(), "client.lr", job.lr)
        mean = float(total) / len(y)
        accuracy = local.r_squared(mean, y) if data.classes == 1 else float(correct) / len(y)
        return Trained(mean, accuracy, len(y) * settings.local_epochs, optimizer.slots)

    def step(self, x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
        """Add the gradients of one batch at a drawn width; return its loss and its outputs."""
        job, width = self.visit.job, self.draw()
        teacher = None
        if self.share and width < self.most:
            teacher = self.outputs(narrowed(job.backend, self.most), x)
            self.loss_function(teacher, y).backward()  # type: ignore[no-untyped-call]
            teacher = teacher.detach()
        narrow = narrowed(job.backend, width)
        with narrow.alone(job.model):
            output = self.outputs(narrow, x)
            loss = self.loss_function(output, y)
            if teacher is not None:
                loss = (1 - self.share) * loss + self.share * distillation(output, teacher)
            loss.backward()  # type: ignore[no-untyped-call]
        return loss.detach(), output.detach()

    def outputs(self, narrow: Narrow, x: Tensor) -> Tensor:
        """Return the outputs of a width, and count what training on them costs."""
        job = self.visit.job
        kept = None if narrow.mask is None else narrow.mask.layer_kept()
        self.flops += 3 * len(x) * job.cost.flops_of(kept)
        with local.autocast(job.settings):
            output = narrow.outputs(job.model, x)
        return output.float()


def distillation(output: Tensor, teacher: Tensor) -> Tensor:
    """KL(softmax(teacher) || softmax(output)), the batch's mean (FjORD, self-distillation)."""
    return functional.kl_div(
        functional.log_softmax(output, 1), functional.softmax(teacher, 1), reduction="batchmean"
    )


@lru_cache(maxsize=32)
def narrowed(backend: Backend, width: float) -> Narrow:
    """Return a width of a worker's model, made once."""
    if width >= 1:
        return Narrow({}, {}, None)
    state = models.get_state(backend.module)
    shapes = {name: value.shape for name, value in state.items()}
    mask, held = Slices(backend.graph).cut(prefix(width), shapes)
    parameters = dict(backend.module.named_parameters())
    weights = {
        name: torch.empty_like(parameters[name]).copy_(torch.from_numpy(bits.astype(np.float32)))
        for name, bits in mask.items()
    }
    buffers = dict(backend.module.named_buffers())
    own = {n: torch.from_numpy(bits.copy()) for n, bits in held.items() if n in buffers}
    return Narrow({name: bits.detach() for name, bits in weights.items()}, own, mask)
