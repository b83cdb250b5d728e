"""Local training and evaluation of a masked model with torch: the reference backend.

Gradients are masked, so pruned weights, and the optimizer's state for them, stay
exactly zero: no weight decay, momentum or Adam step can move them. Wide, thin linear
layers are trained by their kept weights alone (`sparse_linear`). Personal methods say in a
`Problem` which parameters move, which samples count, and what the weights are pulled to.
"""

import math
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from functools import partial

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from fedsparse.config import ClientConfig
from fedsparse.data import Dataset
from fedsparse.errors import TrainingError
from fedsparse.sparsity import Mask, State
from fedsparse.training import sparse_linear
from fedsparse.training.optimizers import Optimizer, Trainable
from fedsparse.training.results import Evaluated as Evaluated
from fedsparse.training.results import Trained as Trained
from fedsparse.training.results import batches as batches
from fedsparse.training.results import check_loss as check_loss
from fedsparse.training.results import check_weights, spread_explained
from fedsparse.training.results import largest_batch as largest_batch

EVALUATION_BATCH = 512


@dataclass(frozen=True, eq=False)
class Problem:
    """What training minimises, and over what, where that is not the mean loss over all weights.

    The proximal term pulls to `anchor`, the weights on entry if unset. The parameters named
    in `frozen` stay, as do the entries that `movable` leaves out of the tensors it covers;
    BatchNorm's statistics go on. `weights` holds what each sample's loss counts, one a sample.
    """

    anchor: State | None = None
    frozen: frozenset[str] = frozenset()
    movable: Mask | None = None
    weights: NDArray[np.float32] | None = None


WHOLE = Problem()


def tensors(data: Dataset) -> tuple[Tensor, Tensor]:
    """Return a dataset as tensors that share its memory where they can."""
    x = torch.from_numpy(np.ascontiguousarray(data.x))
    if x.ndim == 4:
        x = x.contiguous(memory_format=torch.channels_last)
    return x, torch.from_numpy(np.ascontiguousarray(data.y))


def loss_of(classes: int, reduction: str = "mean") -> Callable[[Tensor, Tensor], Tensor]:
    """Return the loss: cross-entropy, or squared error when there is one output.

    With `reduction` "none" it is one value a sample.
    """
    if classes == 1:
        return lambda output, y: nn.functional.mse_loss(
            output.squeeze(1), y.float(), reduction=reduction
        )
    return partial(nn.functional.cross_entropy, reduction=reduction)


def autocast(settings: ClientConfig, device: str = "cpu") -> AbstractContextManager[object]:
    """Return the context of a forward pass: bfloat16 arithmetic where it is asked for."""
    if settings.precision == "bf16":
        return torch.autocast(device, torch.bfloat16)
    return nullcontext()


def train(
    model: nn.Module,
    data: Dataset,
    settings: ClientConfig,
    *,
    rng: np.random.Generator,
    mask: Mask | None = None,
    lr: float | None = None,
    epochs: int | None = None,
    proximal_mu: float = 0.0,
    l1: float = 0.0,
    optimizer_state: Mapping[str, State] | None = None,
    lr_key: str = "client.lr",
    problem: Problem = WHOLE,
) -> Trained:
    """Train `model` in place on `data` with masked gradients.

    `proximal_mu` adds mu/2 ||w - w_0||^2 (FedProx, eq. 2), w_0 being the weights on
    entry, or the problem's anchor; `l1` adds that multiple of the L1 norm of all parameters, by
    its subgradient. `lr_key` is what the configuration calls the learning
    rate. Torch's own draws, such as dropout's, come from a child of `rng`'s stream. Raises
    TrainingError when the loss or a trained weight is not finite, or BatchNorm meets
    batches of one.
    """
    check_batches(model, settings, data)
    lr = settings.lr if lr is None else lr
    epochs = settings.local_epochs if epochs is None else epochs
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(int(rng.spawn(1)[0].integers(2**63 - 1)))
        named = dict(model.named_parameters())
        with (
            _frozen(named, problem.frozen),
            sparse_linear.replaced(model, mask, settings.sparse_linear_below) as sparse,
        ):
            named.update({name: layer.values for name, layer in sparse.items()})
            trainable = Trainable(named, sparse)
            trained = _train(
                model, trainable, data, settings, rng, mask, lr, epochs, proximal_mu, l1,
                optimizer_state or {}, lr_key, problem,
            )  # fmt: skip
    check_finite(model.state_dict().values(), lr_key, lr)
    return trained


def check_finite(tensors: Iterable[Tensor], lr_key: str, lr: float) -> None:
    """Raise TrainingError unless every trained weight is a finite number."""
    # A sum is quick, and finite where all is; a sum of huge numbers need not be.
    finite = all(math.isfinite(float(t.sum())) or bool(t.isfinite().all()) for t in tensors)
    check_weights(finite, lr_key, lr)


@contextmanager
def _frozen(named: Mapping[str, nn.Parameter], names: Iterable[str]) -> Iterator[None]:
    """Let no gradient reach the named parameters within the block; buffers have none anyway."""
    stopped = [p for name in names if (p := named.get(name)) is not None and p.requires_grad]
    try:
        for parameter in stopped:
            parameter.requires_grad_(False)
        yield
    finally:
        for parameter in stopped:
            parameter.requires_grad_(True)


def check_batches(model: nn.Module, settings: ClientConfig, data: Dataset) -> None:
    """Raise TrainingError where BatchNorm over vectors would meet batches of one."""
    vectors = any(isinstance(module, nn.BatchNorm1d) for module in model.modules())
    if settings.batch_size == 1 < len(data.y) and vectors:
        raise TrainingError("BatchNorm needs batches of two; raise client.batch_size (now 1)")


def _train(
    model: nn.Module,
    trainable: Trainable,
    data: Dataset,
    settings: ClientConfig,
    rng: np.random.Generator,
    mask: Mask | None,
    lr: float,
    epochs: int,
    proximal_mu: float,
    l1: float,
    optimizer_state: Mapping[str, State],
    lr_key: str,
    problem: Problem,
) -> Trained:
    x, y = tensors(data)
    loss_function = loss_of(data.classes, "mean" if problem.weights is None else "none")
    weights = None if problem.weights is None else torch.from_numpy(problem.weights)
    optimizer = Optimizer(trainable, settings, lr, optimizer_state)
    parameters = list(optimizer.parameters.values())
    kept = [] if mask is None else trainable.masks(mask)
    start = _anchored(trainable, optimizer.parameters, problem.anchor) if proximal_mu else []
    fixed = _fixed(trainable, problem.movable)
    model.train(len(y) > 1)
    total = correct = torch.zeros(())
    seen = 0
    for epoch in range(epochs):
        total, correct = torch.zeros(()), torch.zeros(())
        for index in batches(len(y), settings.batch_size, rng):
            chosen = torch.from_numpy(index)
            target = y[chosen]
            optimizer.clear()
            with autocast(settings):
                output = model(x[chosen])
            output = output.float()
            loss = loss_function(output, target)
            if weights is not None:
                loss = (loss * weights[chosen]).mean()
            loss.backward()  # type: ignore[no-untyped-call]
            if proximal_mu:
                _pull_back(parameters, start, proximal_mu)
            if l1:
                _shrink(parameters, l1)
            if kept:
                reached = [(p.grad, m) for p, m in kept if p.grad is not None]
                torch._foreach_mul_([g for g, _ in reached], [m for _, m in reached])
            optimizer.step()
            for parameter, held, value in fixed:
                parameter.masked_scatter_(held, value)
            total = total + loss.detach() * len(index)
            correct = correct + (output.detach().argmax(1) == target).sum()
            seen += len(index)
        check_loss(float(total), epoch + 1, lr_key, lr)
    mean = float(total) / len(y)
    accuracy = r_squared(mean, y) if data.classes == 1 else float(correct) / len(y)
    return Trained(mean, accuracy, seen, optimizer.slots)


def _anchored(
    trainable: Trainable, parameters: Mapping[str, nn.Parameter], anchor: State | None
) -> list[Tensor]:
    """Return what the proximal term pulls each parameter to."""
    if anchor is None:
        return [p.detach().clone() for p in parameters.values()]
    return [trainable.load(name, anchor[name]) for name in parameters]


def _fixed(trainable: Trainable, movable: Mask | None) -> list[tuple[Tensor, Tensor, Tensor]]:
    """Return parameters with the places of entries that must stay, and their values there.

    Weight decay and momentum would move an entry that has no gradient, so that its value is
    put back after each step.
    """
    found = []
    for name, bits in () if movable is None else movable.items():
        parameter = trainable.named[name].detach()
        held = torch.empty_like(parameter, dtype=torch.bool).copy_(torch.from_numpy(~bits))
        found.append((parameter, held, parameter[held]))
    return found


def _pull_back(parameters: list[nn.Parameter], start: list[Tensor], mu: float) -> None:
    """Add mu (w - w_0) to the gradients."""
    pairs = [(p, s) for p, s in zip(parameters, start, strict=True) if p.grad is not None]
    moved = torch._foreach_sub([p.detach() for p, _ in pairs], [s for _, s in pairs])
    torch._foreach_add_([p.grad for p, _ in pairs], moved, alpha=mu)  # type: ignore[misc]


def _shrink(parameters: list[nn.Parameter], weight: float) -> None:
    """Add weight * sign(w), a subgradient of the L1 norm, to the gradients."""
    reached = [p for p in parameters if p.grad is not None]
    signs = torch._foreach_sign([p.detach() for p in reached])
    torch._foreach_add_([p.grad for p in reached], signs, alpha=weight)  # type: ignore[misc]


def r_squared(loss: float, y: Tensor) -> float:
    """Return 1 - squared error / variance; where targets are all alike, 1 if met and else 0."""
    return spread_explained(loss, float(y.float().var(correction=0)))


@torch.no_grad()
def evaluate(model: nn.Module, data: Dataset) -> Evaluated:
    """Test the model in evaluation mode; the mode is put back afterwards."""
    x, y = tensors(data)
    if not len(y):
        return Evaluated(math.nan, math.nan, 0)
    training = model.training
    model.eval()
    parts = x.split(EVALUATION_BATCH)  # type: ignore[no-untyped-call]
    outputs = torch.cat([model(part) for part in parts])
    model.train(training)
    loss = float(loss_of(data.classes)(outputs, y))
    if data.classes == 1:
        accuracy = r_squared(loss, y)
    else:
        accuracy = float((outputs.argmax(1) == y).float().mean())
    return Evaluated(loss, accuracy, len(y))
