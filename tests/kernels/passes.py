"""One pass, forward and back, of a program and of torch over the same samples, in like terms."""

from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np
import pytest
import torch
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode

from fedsparse.kernels import library
from fedsparse.kernels.program import Program
from fedsparse.sparsity import Mask, State

DENSE = (0.0, 0.0)
SPARSE = (2.0, 2.0)
"""Thresholds of a rule under which every layer is computed in this form."""
TOLERANCE = 1e-4
"""Of the largest value: sums of a few thousand products of floats err by 1e-6 or so of it."""


def _available() -> list[str]:
    found = []
    for name in ("baseline", "avx2", "avx512"):
        try:
            library.load(name)
        except library.Unavailable:
            continue
        found.append(name)
    return found


ISAS = _available()
needs_kernels = pytest.mark.skipif(not ISAS, reason="the kernels are not compiled here")
every_isa = pytest.mark.parametrize("isa", ISAS)


@dataclass(frozen=True)
class Pass:
    """Outputs (n, outputs), the gradient of the input (n, ...) and of each parameter.

    `largest` is the size of each parameter's gradient before anything of it was pruned.
    """

    output: np.ndarray
    input: np.ndarray
    gradients: State
    largest: Mapping[str, float] = field(default_factory=dict)


def native_pass(
    program: Program, state: State, x: np.ndarray, dy: np.ndarray, *, frozen: bool = False
) -> Pass:
    """Run a program made with `input_gradient`; gradients that it must write start as NaN."""
    values, samples, last = program.pack(state), len(x), program.plan.output
    source = program.activation(0, samples)
    source[..., :samples] = np.moveaxis(x.reshape(samples, *source.shape[:3]), 0, -1)
    program.forward(values, samples, frozen=frozen)
    target = program.activation(last, samples)
    output = np.moveaxis(target[..., :samples], -1, 0).reshape(samples, -1).copy()
    if program.plan.tensors[0]["gradient"] != program.plan.tensors[0]["value"]:
        program.activation(0, samples, gradient=True)[:] = np.nan
    given = program.activation(last, samples, gradient=True)
    given[:] = 0
    given[..., :samples] = np.moveaxis(dy.reshape(samples, *given.shape[:3]), 0, -1)
    program._room(samples, library.TRAINING).gradients[:] = np.nan
    gradients = program.whole(program.backward(values, samples, frozen=frozen))
    back = program.activation(0, samples, gradient=True)[..., :samples]
    return Pass(output, np.moveaxis(back, -1, 0).reshape(x.shape).copy(), gradients)


def torch_pass(
    model: nn.Module,
    x: np.ndarray,
    dy: np.ndarray,
    *,
    mask: Mask | None = None,
    frozen: bool = False,
) -> Pass:
    """Run a module in its own precision; gradients of pruned weights are left out."""
    like = next(model.parameters())
    given = torch.tensor(x, dtype=like.dtype, requires_grad=True)
    model.train(not frozen)
    model.zero_grad()
    output = model(1 * given)  # a layer in place may not change a leaf
    output.backward(torch.tensor(dy, dtype=like.dtype).reshape(output.shape))
    gradients = {n: p.grad.numpy().copy() for n, p in model.named_parameters()}
    largest = {n: float(np.abs(gradient).max()) for n, gradient in gradients.items()}
    if mask is not None:
        mask.apply_(gradients)
    flat = output.detach().numpy().reshape(len(x), -1)
    return Pass(flat, given.grad.numpy(), gradients, largest)


class _Bends(TorchDispatchMode):
    """Watches how near ReLUs' inputs come to a bend, and a maximum to the next; ties are none."""

    gap = np.inf

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        name = str(function)
        if "relu" in name or "hardtanh" in name or "clamp" in name:
            self._see(torch.stack([args[0].abs(), (args[0] - 6).abs()]))
        elif "max_pool" in name:
            x, kernel, stride, padding = (*args, [0, 0])[:4]
            x = nn.functional.pad(x, (padding[1], padding[1], padding[0], padding[0]), value=-1e9)
            windows = x.unfold(2, kernel[0], stride[0]).unfold(3, kernel[1], stride[1]).flatten(4)
            first, second = windows.topk(2).values.unbind(-1)
            self._see(first - second)
        return function(*args, **(kwargs or {}))

    def _see(self, distance: torch.Tensor) -> None:
        apart = distance[distance > 0]
        self.gap = min(self.gap, float(apart.min())) if apart.numel() else self.gap


GAP = 1e-6
"""Of activations of size 1: several times what sums of single precision err by."""


def clear_of_bends(
    model: nn.Module, shape: tuple[int, ...], samples: int, outputs: int, **of
) -> tuple[np.ndarray, np.ndarray, Pass]:
    """Return samples and gradients of outputs, and the pass in double precision.

    Rounding sends no gradient another way there: no activation is near to where it would.
    """
    model.double()
    buffers = {name: value.clone() for name, value in model.named_buffers()}
    for seed in range(100):
        rng = np.random.default_rng(seed)
        x = rng.normal(size=(samples, *shape)).astype(np.float32)
        with torch.no_grad(), _Bends() as bends:
            model.train(not of.get("frozen"))(torch.from_numpy(x).double())
            for name, value in model.named_buffers():
                value.copy_(buffers[name])
        if bends.gap > GAP:
            dy = rng.normal(size=(samples, outputs)).astype(np.float32)
            expected = torch_pass(model, x, dy, **of)
            for name, value in model.named_buffers():
                value.copy_(buffers[name])
            return x, dy, expected
    raise AssertionError("no draw is clear of all bends")


def error(found: np.ndarray, expected: np.ndarray, scale: float = 0.0) -> float:
    """Return the largest difference over the largest expected value, or over `scale`."""
    assert found.shape == expected.shape
    apart = float(np.abs(found - expected).max(initial=0))
    return apart / (scale or float(np.abs(expected).max())) if apart else 0.0


def errors(found: Pass, expected: Pass) -> dict[str, float]:
    """Return the error of outputs and of each gradient, by each array's own largest value.

    A gradient that is nothing but rounding, as of a bias before a BatchNorm, is measured by a
    hundredth of the largest of all.
    """
    assert list(found.gradients) == list(expected.gradients)
    least = 1e-2 * max(expected.largest.values())
    return {
        "output": error(found.output, expected.output),
        "input": error(found.input, expected.input),
        **{
            name: error(found.gradients[name], gradient, max(least, expected.largest[name]))
            for name, gradient in expected.gradients.items()
        },
    }


def assert_near(found: Pass, expected: Pass) -> None:
    """Assert that outputs and all gradients agree."""
    apart = errors(found, expected)
    assert all(each <= TOLERANCE for each in apart.values()), apart


def random_mask(shapes: Mapping[str, tuple[int, ...]], density: float, seed: int = 0) -> Mask:
    """Return a mask that keeps each weight with this probability."""
    rng = np.random.default_rng(seed)
    return Mask.from_arrays({n: np.asarray(rng.random(s) < density) for n, s in shapes.items()})


def set_randomly(model: nn.Module, mask: Mask | None = None) -> State:
    """Give norms weights and statistics of their own, prune, and return the float32 state."""
    for module in model.modules():
        if isinstance(module, nn.BatchNorm1d | nn.BatchNorm2d):
            nn.init.uniform_(module.weight, 0.5, 1.5)
            nn.init.normal_(module.bias, 0.2)
            nn.init.normal_(module.running_mean, 0.1)
            nn.init.uniform_(module.running_var, 0.5, 2)
    state = {n: t.numpy().copy() for n, t in model.state_dict().items() if t.is_floating_point()}
    if mask is not None:
        mask.apply_(state)
        with torch.no_grad():
            for name in mask.names:
                model.get_parameter(name).copy_(torch.from_numpy(state[name]))
    return state
