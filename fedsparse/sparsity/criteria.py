"""Criteria: a score for every prunable weight; higher means keep.

A criterion is one small function of (model, names, batches). Combined with an
allocation it makes a mask (`compose`). The model is left as it was found.
"""

import copy
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from fedsparse.errors import MaskError, UnknownNameError
from fedsparse.sparsity.mask import Mask

Scores = dict[str, NDArray[np.float32]]
Batch = tuple[Tensor, Tensor]


def scores(
    criterion: str,
    model: nn.Module,
    names: Sequence[str],
    batches: Iterable[Batch] = (),
    *,
    rng: np.random.Generator,
    mask: Mask | None = None,
) -> Scores:
    """Return the score of every weight of the named parameters, in their shapes.

    With `mask`, the model is scored with its pruned weights at zero. Data criteria use
    cross-entropy, or squared error for a model with one output, in evaluation mode.
    Raises UnknownNameError, and MaskError when data is missing or a score not finite.
    """
    if criterion not in CRITERIA:
        raise UnknownNameError("criterion", criterion, CRITERIA)
    parameters = dict(model.named_parameters())
    unknown = [name for name in names if name not in parameters]
    if unknown:
        raise MaskError(f"the model has no parameter '{unknown[0]}' to score")
    chosen = [parameters[name] for name in names]
    data = list(batches)
    if criterion in NEEDS_DATA and not any(len(y) for _, y in data):
        raise MaskError(f"criterion '{criterion}' looks at data; pass at least one sample")
    with _untouched(model, mask):
        found = CRITERIA[criterion](model, chosen, data, rng)
    result = {n: np.ascontiguousarray(s, np.float32) for n, s in zip(names, found, strict=True)}
    broken = [name for name, score in result.items() if not np.isfinite(score).all()]
    if broken:
        raise MaskError(f"'{criterion}' scores of '{broken[0]}' are not finite; check its weights")
    return result


@contextmanager
def _untouched(model: nn.Module, mask: Mask | None) -> Iterator[None]:
    """Score in evaluation mode on masked weights; put everything back afterwards."""
    parameters = dict(model.named_parameters())
    for name in mask.names if mask else ():
        if name not in parameters:
            raise MaskError(f"the mask covers '{name}', which is no parameter of the model")
    modes = {module: module.training for module in model.modules()}
    needed = {p: p.requires_grad for p in parameters.values()}
    saved = {n: parameters[n].detach().clone() for n in (mask.names if mask else ())}
    try:
        model.eval()
        for parameter in parameters.values():
            parameter.requires_grad_(True)
        if mask is not None:
            mask.apply_(parameters)
        yield
    finally:
        with torch.no_grad():
            for name, value in saved.items():
                parameters[name].copy_(value)
        for parameter, flag in needed.items():
            parameter.requires_grad_(flag)
        for module, mode in modes.items():
            module.training = mode


def _loss(output: Tensor, y: Tensor) -> Tensor:
    if output.shape[-1] == 1:
        return nn.functional.mse_loss(output.squeeze(-1), y.float())
    return nn.functional.cross_entropy(output, y)


def _mean_gradients(
    model: nn.Module, chosen: list[nn.Parameter], data: list[Batch]
) -> list[Tensor]:
    """Gradient of the mean loss over all samples of the batches."""
    total = sum(len(y) for _, y in data)
    sums = [torch.zeros_like(p) for p in chosen]
    for x, y in data:
        gradients = torch.autograd.grad(_loss(model(x), y) * (len(y) / total), chosen)
        torch._foreach_add_(sums, list(gradients))
    return sums


Parts = Sequence[NDArray[np.float32]]
Criterion = Callable[[nn.Module, list[nn.Parameter], list[Batch], np.random.Generator], Parts]


def _numpy(tensors: Iterable[Tensor]) -> Parts:
    return [t.detach().numpy() for t in tensors]


def random(
    model: nn.Module, chosen: list[nn.Parameter], data: list[Batch], rng: np.random.Generator
) -> Parts:
    """Uniform noise: the control that every other criterion must beat."""
    return [rng.random(tuple(p.shape), dtype=np.float32) for p in chosen]


def magnitude(
    model: nn.Module, chosen: list[nn.Parameter], data: list[Batch], rng: np.random.Generator
) -> Parts:
    """|w| (Han et al. 2015)."""
    return _numpy(p.abs() for p in chosen)


def snip(
    model: nn.Module, chosen: list[nn.Parameter], data: list[Batch], rng: np.random.Generator
) -> Parts:
    """|g w|, the change of the loss when a weight is removed (SNIP, Lee et al. 2019, eq. 4)."""
    gradients = _mean_gradients(model, chosen, data)
    return _numpy((g * p).abs() for g, p in zip(gradients, chosen, strict=True))


def grasp(
    model: nn.Module, chosen: list[nn.Parameter], data: list[Batch], rng: np.random.Generator
) -> Parts:
    """w (H g): removing weights of low score keeps the gradient flow (GraSP, eq. 8).

    GraSP's S = -w (H g) estimates how much removal changes the gradient's norm and
    removes the highest S, so the kept are those with the highest w (H g).
    """
    total = sum(len(y) for _, y in data)
    gradients = _mean_gradients(model, chosen, data)
    products = [torch.zeros_like(p) for p in chosen]
    for x, y in data:
        loss = _loss(model(x), y) * (len(y) / total)
        first = torch.autograd.grad(loss, chosen, create_graph=True)
        flow = torch.stack([(a * b).sum() for a, b in zip(first, gradients, strict=True)]).sum()
        torch._foreach_add_(products, list(torch.autograd.grad(flow, chosen)))
    return _numpy(p * hg for p, hg in zip(chosen, products, strict=True))


def synflow(
    model: nn.Module, chosen: list[nn.Parameter], data: list[Batch], rng: np.random.Generator
) -> Parts:
    """|w dR/dw| with R the sum of outputs for an input of ones under |w| (Tanaka et al. 2020).

    BatchNorm is made the identity, as it would break the conservation of the score.
    The gradient is in double precision: products of many layers leave single precision.
    The highest score is 1.
    """
    shape = getattr(model, "input_shape", None)
    if shape is None:
        if not data:
            raise MaskError("synflow needs the input's shape; set model.input_shape")
        shape = tuple(data[0][0].shape[1:])
    twin = copy.deepcopy(model).double()
    with torch.no_grad():
        for parameter in twin.parameters():
            parameter.abs_()
        _identity_norms(twin)
    twins = dict(zip(model.parameters(), twin.parameters(), strict=True))
    positive = [twins[p] for p in chosen]
    ones = torch.ones(1, *shape, dtype=torch.float64)
    gradients = torch.autograd.grad(twin(ones).sum(), positive)
    found = _numpy((g * p).abs() for g, p in zip(gradients, positive, strict=True))
    # R is a product over layers, so a deep net's scores are beyond single precision, in
    # which scores are kept; divided by the highest they are within, in the same order.
    highest = max((float(s.max()) for s in found if s.size), default=0.0)
    return [s / highest for s in found] if 0 < highest < np.inf else found


def _identity_norms(model: nn.Module) -> None:
    for module in model.modules():
        if isinstance(module, nn.modules.batchnorm._BatchNorm):
            for tensor, value in (
                (module.running_mean, 0.0),
                (module.running_var, 1.0 - module.eps),
                (module.weight, 1.0),
                (module.bias, 0.0),
            ):
                if tensor is not None:
                    tensor.fill_(value)


def fisher(
    model: nn.Module, chosen: list[nn.Parameter], data: list[Batch], rng: np.random.Generator
) -> Parts:
    """w^2 g^2 / 2 with g^2 the mean squared gradient by sample (Theis et al. 2018, eq. 8)."""
    squares = [torch.zeros_like(p) for p in chosen]
    total = sum(len(y) for _, y in data)
    for x, y in data:
        for i in range(len(y)):
            gradients = torch.autograd.grad(_loss(model(x[i : i + 1]), y[i : i + 1]), chosen)
            for square, g in zip(squares, gradients, strict=True):
                square.addcmul_(g, g, value=1 / total)
    return _numpy(p**2 * s / 2 for p, s in zip(chosen, squares, strict=True))


CRITERIA: Mapping[str, Criterion] = {
    "random": random,
    "magnitude": magnitude,
    "snip": snip,
    "saliency": snip,
    "grasp": grasp,
    "synflow": synflow,
    "fisher": fisher,
}
NEEDS_DATA = ("snip", "grasp", "fisher", "saliency")
