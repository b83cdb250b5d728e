"""The forms in which a layer is computed, of torch, SparseProp and fedsparse, for bench_layers.

A form runs forward and backward on tensors that are there already. `bench_layers.py` says what
each includes.
"""

from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from fedsparse.kernels import library
from fedsparse.kernels.nodes import Conv, Graph, Value
from fedsparse.kernels.program import Program
from fedsparse.kernels.rule import Rule
from fedsparse.sparsity import Mask
from fedsparse.training import sparse_linear

BATCH = 32


@dataclass(frozen=True)
class Case:
    """A layer: outputs, inputs, kernel (0: linear), pixels a side."""

    outputs: int
    inputs: int
    kernel: int = 0
    side: int = 1

    @property
    def name(self) -> str:
        """What the tables call it."""
        if not self.kernel:
            return f"fc {self.inputs} x {self.outputs}"
        kernel = f"{self.kernel}x{self.kernel}"
        return f"conv {self.inputs}-{self.outputs} {kernel} at {self.side}x{self.side}"

    def module(self) -> nn.Module:
        """Return it as torch has it."""
        if not self.kernel:
            return nn.Linear(self.inputs, self.outputs, bias=False)
        return nn.Conv2d(
            self.inputs, self.outputs, self.kernel, padding=self.kernel // 2, bias=False
        )

    def shape(self, channels: int) -> tuple[int, ...]:
        """Return the shape of a batch of so many channels."""
        return (BATCH, channels, self.side, self.side) if self.kernel else (BATCH, channels)


Form = Callable[[], tuple[Tensor, Tensor, Tensor]]
"""Runs forward and backward; returns output, input gradient, weight gradient, as it has them."""


@dataclass
class Layer:
    """One case at one density, with the tensors that all its forms work on."""

    case: Case
    weight: Tensor
    bits: Tensor
    x: Tensor
    dy: Tensor

    @classmethod
    def make(cls, case: Case, density: float) -> "Layer":
        """Draw weights, a mask with no empty row of it wanted, inputs and output gradients."""
        random = torch.Generator().manual_seed(0)
        shape = case.module().weight.shape
        bits = torch.rand(shape, generator=random) < density
        weight = torch.randn(shape, generator=random) * bits / (density * shape[1]) ** 0.5
        x = torch.randn(case.shape(case.inputs), generator=random)
        return cls(case, weight, bits, x, torch.randn(case.shape(case.outputs), generator=random))

    def dense(self) -> nn.Module:
        """Return the layer as a dense one."""
        module = self.case.module()
        module.weight.data.copy_(self.weight)
        return module


def innermost(data: Tensor) -> Tensor:
    """Return (N, C, H, W) or (N, C) as a contiguous (C, H, W, N) or (C, N)."""
    return data.permute(*range(1, data.ndim), 0).contiguous()


def outermost(data: Tensor) -> Tensor:
    """Undo `innermost`, as a view."""
    return data.permute(-1, *range(data.ndim - 1))


def through_autograd(
    module: Callable[[Tensor], Tensor], weight: Tensor, x: Tensor, dy: Tensor
) -> Form:
    """Return a form that lets autograd find both gradients."""
    x = x.detach().requires_grad_()

    def run() -> tuple[Tensor, Tensor, Tensor]:
        y = module(x)
        dx, dw = torch.autograd.grad(y, (x, weight), dy)
        return y, dx, dw

    return run


def torch_dense(layer: Layer, memory: torch.memory_format) -> Form:
    """A dense layer of torch in one memory layout."""
    module = layer.dense().to(memory_format=memory)
    x, dy = (t.contiguous(memory_format=memory) for t in (layer.x, layer.dy))
    return through_autograd(module, module.weight, x, dy)


def torch_masked(layer: Layer, memory: torch.memory_format) -> Form:
    """Torch with the weight multiplied by the mask in every forward pass."""
    module = layer.dense().to(memory_format=memory)
    bits = layer.bits.float().contiguous(memory_format=memory)
    x, dy = (t.contiguous(memory_format=memory) for t in (layer.x, layer.dy))
    padding = layer.case.kernel // 2

    def masked(x: Tensor) -> Tensor:
        weight = module.weight * bits
        if layer.case.kernel:
            return nn.functional.conv2d(x, weight, padding=padding)
        return nn.functional.linear(x, weight)

    return through_autograd(masked, module.weight, x, dy)


def torch_csr(layer: Layer, stack: ExitStack) -> Form:
    """Torch's sparse products by fedsparse's torch backend; the weight gradient is spread out."""
    model = nn.Sequential()
    model.add_module("fc", layer.dense())
    mask = Mask.from_arrays({"fc.weight": layer.bits.numpy()})
    fitted = stack.enter_context(sparse_linear.replaced(model, mask, 1.0))["fc.weight"]
    return through_autograd(model, fitted.values, layer.x, layer.dy)


# -- SparseProp ------------------------------------------------------------------------------


def sparseprop_dropped_in(layer: Layer, over_width: bool = False) -> Form:
    """SparseProp's own module on batch-first data."""
    from sparseprop.modules import SparseConv2d, SparseLinear

    if layer.case.kernel:
        module = SparseConv2d.from_dense(layer.dense(), vectorizing_over_on=over_width)
    else:
        module = SparseLinear.from_dense(layer.dense())
    return through_autograd(module, module.W_val, layer.x, layer.dy)


class _SparsePropLinear(torch.autograd.Function):
    """SparseProp's linear kernels, (inputs, N) to (outputs, N), as its own function calls them."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, values: Tensor, places: Any, outputs: int) -> Tensor:
        from sparseprop import backend

        y = torch.zeros(outputs, x.shape[1])
        backend.sparse_linear_vectorized_forward(x, *places, values, y)
        ctx.save_for_backward(x, values)
        ctx.places = places
        return y

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        from sparseprop import backend

        x, values = ctx.saved_tensors
        dx, dw = torch.zeros_like(x), torch.zeros_like(values)
        backend.sparse_linear_vectorized_backward(x, *ctx.places, values, gradients[0], dx, dw)
        return dx, dw, None, None


def sparseprop_innermost(layer: Layer) -> Form:
    """SparseProp through autograd, data batch innermost; its convolution finds nothing to move."""
    from sparseprop.modules import SparseConv2d, SparseLinear

    if layer.case.kernel:
        module = SparseConv2d.from_dense(layer.dense(), vectorizing_over_on=False)
        x, dy = outermost(innermost(layer.x)), outermost(innermost(layer.dy))
        return through_autograd(module, module.W_val, x, dy)
    module = SparseLinear.from_dense(layer.dense())

    def apply(x: Tensor) -> Tensor:
        return _SparsePropLinear.apply(x, module.W_val, module.W_idx, layer.case.outputs)

    return through_autograd(apply, module.W_val, innermost(layer.x), innermost(layer.dy))


def sparseprop_bare(layer: Layer) -> Form:
    """SparseProp's kernels alone, into memory that is cleared first."""
    from sparseprop import backend
    from sparseprop.modules import SparseConv2d, SparseLinear

    case, x, dy = layer.case, innermost(layer.x), innermost(layer.dy)
    y, dx = torch.zeros_like(dy), torch.zeros_like(x)
    more: tuple[int, ...] = ()
    if case.kernel:
        module = SparseConv2d.from_dense(layer.dense(), vectorizing_over_on=False)
        forward = backend.sparse_conv2d_vectorized_forward_stride_1
        backward = backend.sparse_conv2d_vectorized_backward_stride_1
        more = (case.kernel, case.kernel // 2)
    else:
        module = SparseLinear.from_dense(layer.dense())
        forward = backend.sparse_linear_vectorized_forward
        backward = backend.sparse_linear_vectorized_backward
    values = module.W_val.detach()
    dw = torch.zeros_like(values)

    def run() -> tuple[Tensor, Tensor, Tensor]:
        y.zero_()
        forward(x, *module.W_idx, values, y, *more)
        dx.zero_()
        dw.zero_()
        backward(x, *module.W_idx, values, dy, dx, dw, *more)
        return y, dx, dw

    return run


# -- fedsparse -------------------------------------------------------------------------------


def compiled(layer: Layer, density: float) -> tuple[Program, Any]:
    """Return the layer for the native kernels, sparse below a density of 1, and its values."""
    case, kernel = layer.case, max(1, layer.case.kernel)
    node = Conv(
        inputs=(0,),
        output=1,
        weight="weight",
        bias=None,
        out_channels=case.outputs,
        in_channels=case.inputs,
        kernel=(kernel, kernel),
        stride=(1, 1),
        padding=(kernel // 2, kernel // 2),
        dilation=(1, 1),
        groups=1,
        weight_shape=tuple(layer.weight.shape),
    )
    planes = [Value(channels, case.side, case.side) for channels in (case.inputs, case.outputs)]
    graph = Graph(tuple(planes), (node,), ("weight",), (), case.outputs)
    mask = None if density == 1 else Mask.from_arrays({"weight": layer.bits.numpy()})
    rule = Rule(0.0, 0.0) if density == 1 else Rule(1.0, 1.0)
    program = Program(graph, mask, rule, input_gradient=True)
    return program, program.pack({"weight": layer.weight.numpy()})


def views(program: Program, tensor: int, shape: torch.Size) -> tuple[Tensor, Tensor]:
    """Return an activation and its gradient in the arena, shaped like batch-innermost data."""
    value, gradient = (program.activation(tensor, BATCH, gradient=g) for g in (False, True))
    if len(shape) == 2:
        value, gradient = value[:, 0, 0], gradient[:, 0, 0]
    return torch.from_numpy(value), torch.from_numpy(gradient)


@dataclass(frozen=True, eq=False)
class _Bare:
    """Both passes, their arguments made once; it holds what the kernels know addresses of."""

    program: Program
    values: Any
    work: library.Work
    results: tuple[Tensor, Tensor, Tensor]

    def __call__(self) -> tuple[Tensor, Tensor, Tensor]:
        self.program.api.forward(self.program._model, self.work, None, BATCH)
        self.program.api.backward(self.program._model, self.work, BATCH)
        return self.results


def fedsparse_bare(layer: Layer, density: float) -> Form:
    """fedsparse's kernels alone, over the arena that a native trainer works in."""
    program, values = compiled(layer, density)
    x, dx = views(program, 0, innermost(layer.x).shape)
    y, dy = views(program, program.plan.output, innermost(layer.dy).shape)
    x.copy_(innermost(layer.x))
    dy.copy_(innermost(layer.dy))
    room = program._room(BATCH, library.TRAINING)
    work = program._work(values, room, None, None, frozen=False)
    dw = torch.from_numpy(room.gradients[: program.plan.parameters])
    return _Bare(program, values, work, (y, dx, dw))


@dataclass
class _Arena:
    """A layer's memory: what lies in it, and whether tensors are copied in and out."""

    program: Program
    values: Any
    x: Tensor
    dx: Tensor
    y: Tensor
    dy: Tensor
    copied: bool

    def put(self, place: Tensor, data: Tensor) -> None:
        """Make sure that data stands in its place."""
        if self.copied:
            place.copy_(data)

    def take(self, place: Tensor) -> Tensor:
        """Return what stands in a place, as a tensor of its own or as a view."""
        return place.clone(memory_format=torch.contiguous_format) if self.copied else place.detach()


class _Native(torch.autograd.Function):
    """fedsparse's kernels as one operation of autograd."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, arena: _Arena) -> Tensor:
        ctx.arena = arena
        arena.put(arena.x, x)
        arena.program.forward(arena.values, BATCH)
        return arena.take(arena.y)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        arena: _Arena = ctx.arena
        arena.put(arena.dy, gradients[0])
        dw = torch.from_numpy(arena.program.backward(arena.values, BATCH))
        return arena.take(arena.dx), arena.take(dw), None


def fedsparse_autograd(layer: Layer, density: float, copied: bool) -> Form:
    """fedsparse through autograd, batch innermost: in its arena, or plain tensors on both sides."""
    program, values = compiled(layer, density)
    x, dy = innermost(layer.x), innermost(layer.dy)
    inside = views(program, 0, x.shape), views(program, program.plan.output, dy.shape)
    arena = _Arena(program, values, *inside[0], *inside[1], copied)
    weight = torch.from_numpy(values.parameters[: program.plan.parameters]).requires_grad_()
    if not copied:
        arena.x.copy_(x)
        arena.dy.copy_(dy)
        x, dy = arena.x, arena.dy
    return through_autograd(lambda x: _Native.apply(x, weight, arena), weight, x, dy)


def forms(layer: Layer, density: float, stack: ExitStack) -> Iterator[tuple[str, Form]]:
    """Yield every form of a layer by name; those in brackets are variants of one."""
    kernel = layer.case.kernel
    layouts = {"NCHW": torch.contiguous_format}
    if kernel:
        layouts["channels_last"] = torch.channels_last
    for name, memory in layouts.items():
        yield f"torch [{name}]", torch_dense(layer, memory)
        yield f"masked [{name}]", torch_masked(layer, memory)
    if not kernel:
        yield "CSR", torch_csr(layer, stack)
    yield "SparseProp, dropped in [batch]", sparseprop_dropped_in(layer)
    if kernel:
        yield "SparseProp, dropped in [width]", sparseprop_dropped_in(layer, over_width=True)
    yield "SparseProp, autograd", sparseprop_innermost(layer)
    yield "SparseProp, bare", sparseprop_bare(layer)
    yield "fedsparse, autograd", fedsparse_autograd(layer, density, copied=False)
    yield "fedsparse, autograd, copied", fedsparse_autograd(layer, density, copied=True)
    yield "fedsparse, bare", fedsparse_bare(layer, density)
    yield "fedsparse dense, bare", fedsparse_bare(layer, 1.0)
