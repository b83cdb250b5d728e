"""Runs torch.fx over a module, and refuses what a trace would not show.

Hooks, tied or frozen weights, regions without gradients and layers that ignore train() leave
no mark in fx's graph; a module that has them is left to torch.
"""

import operator
import random
import re
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from torch import Tensor, fx, nn

from fedsparse.kernels.nodes import Drawn, Uncovered

SAMPLES = 2
"""Samples in the forward pass that finds the shapes."""


def refuse(model: nn.Module) -> None:
    """Raise Uncovered for hooks, and for parameters that are not those of plain layers."""
    _refuse_layers(model)
    _refuse_parameters(model)


def trace(
    model: nn.Module, input_shape: tuple[int, ...], training: bool
) -> tuple[fx.Graph, dict[Any, tuple[int, ...]]]:
    """Return a module's trace in one mode, and the shape of each tensor in it.

    A node that gives several tensors has shape (); one that gives none is left out. Changes
    the module's mode and whatever its forward pass changes. Raises Uncovered.
    """
    model.train(training)
    still = [name for name, layer in model.named_modules() if layer.training != training]
    if still:
        raise Uncovered(f"layer '{still[0]}' does not follow train() and eval()")
    try:
        with torch.enable_grad(), undrawn():
            traced = _Tracer().trace(model)
        runner = _Shapes(model.eval(), traced)
        with torch.no_grad():
            runner.run(torch.zeros(SAMPLES, *input_shape, dtype=torch.float32, device="cpu"))
    except Uncovered:
        raise
    except Exception as error:  # the model's own code ran, and may raise anything
        raise Uncovered(f"torch.fx cannot trace the model: {first_line(error)}") from None
    return traced, runner.shapes


@contextmanager
def undrawn() -> Iterator[None]:
    """Raise Drawn if anybody drew from a global random generator; the draws are undone.

    A branch on a draw is traced one way, and would then be taken that way in every pass.
    """
    of_torch, of_python = torch.get_rng_state(), random.getstate()
    of_numpy = np.random.get_state(legacy=False)
    try:
        yield
        if (
            not torch.equal(torch.get_rng_state(), of_torch)
            or random.getstate() != of_python
            or repr(np.random.get_state(legacy=False)) != repr(of_numpy)
        ):
            raise Drawn("the model draws random numbers")
    finally:
        torch.set_rng_state(of_torch)
        random.setstate(of_python)
        np.random.set_state(of_numpy)


def where(node: fx.Node) -> str:
    """Return how a message names a traced node."""
    if node.op == "call_module":
        return f"layer '{node.target}'"
    if node.op == "placeholder":
        return f"the input '{node.target}'"
    return f"operation '{re.sub(r'_[0-9]+$', '', node.name)}'"


def a(layer: nn.Module) -> str:
    """Return a layer's kind with its article."""
    name = type(layer).__name__
    return f"{'an' if name[0] in 'AEIOU' else 'a'} {name}"


def first_line(error: Exception) -> str:
    """Return the first line of what an error says, or its kind when it says nothing."""
    return (str(error).strip() or type(error).__name__).splitlines()[0]


def _refuse_layers(model: nn.Module) -> None:
    hooks = ("forward", "forward_pre", "backward", "backward_pre")
    (_, root), *inner = model.named_modules()
    for name, layer in [*inner, ("", root)]:  # a layer makes the plainer reason than the model
        what = f"layer '{name}'" if name else "the model"
        if any(getattr(layer, f"_{kind}_hooks") for kind in hooks) or "forward" in vars(layer):
            raise Uncovered(f"{what} has hooks or a forward of its own")
        if name and type(layer) in (nn.Conv2d, nn.Linear, nn.BatchNorm1d, nn.BatchNorm2d):
            continue
        for own, _ in layer.named_parameters(recurse=False):
            detail = "" if type(layer).__module__.startswith("torch.nn") else f" with '{own}'"
            raise Uncovered(f"{what} is {a(layer)}{detail}")


def _refuse_parameters(model: nn.Module) -> None:
    seen: dict[int, str] = {}
    for name, parameter in model.named_parameters(remove_duplicate=False):
        if not parameter.requires_grad:
            raise Uncovered(f"parameter '{name}' is frozen")
        if parameter.dtype != torch.float32:
            raise Uncovered(f"parameter '{name}' is of {parameter.dtype}")
        if parameter._backward_hooks or getattr(parameter, "_post_accumulate_grad_hooks", None):
            raise Uncovered(f"parameter '{name}' has hooks")
        other = seen.setdefault(parameter.data_ptr(), name)
        if other != name:
            raise Uncovered(f"parameters '{other}' and '{name}' share their values")


class _Proxy(fx.Proxy):
    """Stands for a value while a module is traced; fx's own takes `x += y` for `x = x + y`."""

    def __iadd__(self, other: Any) -> fx.Proxy:
        return self.tracer.create_proxy("call_function", operator.iadd, (self, other), {})


class _Tracer(fx.Tracer):
    """Traces a module; refuses the modes that fx would leave out."""

    def proxy(self, node: fx.Node) -> fx.Proxy:
        return _Proxy(node, self)

    def create_node(self, *args: Any, **kwargs: Any) -> fx.Node:
        node = super().create_node(*args, **kwargs)
        if not torch.is_grad_enabled() or torch.is_autocast_enabled("cpu"):
            raise Uncovered(f"{where(node)} runs without gradients or under autocast")
        return node


class _Shapes(fx.Interpreter):
    """Runs a traced module; keeps the shape of each node's tensor, () where it has several."""

    def __init__(self, model: nn.Module, graph: fx.Graph) -> None:
        super().__init__(model, graph=graph)
        self.shapes: dict[Any, tuple[int, ...]] = {}

    def run_node(self, n: fx.Node) -> Any:
        result = super().run_node(n)
        if isinstance(result, Tensor):
            self.shapes[n] = tuple(result.shape)
        elif isinstance(result, tuple | list) and any(isinstance(r, Tensor) for r in result):
            self.shapes[n] = ()
        return result
