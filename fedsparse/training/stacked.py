"""One model with the weights of many clients: a forward pass of all of them at once.

Weights carry a leading dimension, one entry a client, and `torch.func.vmap` turns the
model's operations into batched ones (grouped convolutions, batched products). BatchNorm is
replaced by one that leaves padded samples out of its statistics and hands the running
statistics back instead of writing them.
"""

import copy
from collections.abc import Callable
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn
from torch.func import functional_call, vmap

from fedsparse.config import ClientConfig
from fedsparse.errors import ModelError
from fedsparse.training.local import autocast

Tensors = dict[str, Tensor]
Step = Callable[[Tensors, Tensor, Tensor, Tensor], tuple[Tensor, Tensor, Tensors]]
"""Weights, x, y and sample weights to loss, right answers and new running statistics."""


@dataclass
class _Pass:
    """What BatchNorm layers share in one forward pass: weights in, new statistics out."""

    weight: Tensor = field(default_factory=lambda: torch.ones(0))
    statistics: Tensors = field(default_factory=dict)


class WeightedNorm(nn.Module):
    """BatchNorm in training mode whose samples carry weights 0 or 1.

    Equal to torch's over the samples of weight 1 (Ioffe and Szegedy 2015, algorithm 1).
    """

    def __init__(self, norm: nn.modules.batchnorm._BatchNorm, name: str, shared: _Pass) -> None:
        super().__init__()
        self.weight, self.bias = norm.weight, norm.bias
        self.register_buffer("running_mean", norm.running_mean)
        self.register_buffer("running_var", norm.running_var)
        self.eps, self.momentum = norm.eps, float(norm.momentum or 0)
        self.name, self.shared = name, shared

    def forward(self, x: Tensor) -> Tensor:
        """Normalise (samples, channels, ...)."""
        given, x = x.dtype, x.float()
        over = [0, *range(2, x.ndim)]
        along = (1, -1, *(1 for _ in over[1:]))
        weight = self.shared.weight.reshape(-1, *(1 for _ in x.shape[1:]))
        count = self.shared.weight.sum() * (x[0].numel() // x.shape[1])
        mean = (x * weight).sum(over) / count
        centred = x - mean.reshape(along)
        variance = (centred.square() * weight).sum(over) / count
        if self.running_mean is not None:
            self._note("running_mean", mean)
            self._note("running_var", variance * (count / (count - 1)))
        scale = (variance + self.eps).rsqrt()
        if self.weight is not None:
            scale = scale * self.weight
        out = centred * scale.reshape(along)
        return (out if self.bias is None else out + self.bias.reshape(along)).to(given)

    def _note(self, entry: str, measured: Tensor) -> None:
        before = getattr(self, entry)
        self.shared.statistics[f"{self.name}.{entry}" if self.name else entry] = torch.lerp(
            before, measured.detach(), self.momentum
        )


class Stacked:
    """A model whose weights are given by client at each pass; the model itself is not touched.

    Raises ModelError for a model whose training depends on more than weights and batch.
    """

    def __init__(self, model: nn.Module, classes: int, device: torch.device) -> None:
        self._shared = _Pass()
        self._model = _replace(copy.deepcopy(model).to(device).train(), "", self._shared)
        self._classes = classes
        self.parameters = [n for n, p in self._model.named_parameters() if p.requires_grad]
        aliases = _aliases(self._model)
        self.state_names = {
            name: aliases.get(name, name)
            for name, tensor in self._model.state_dict().items()
            if tensor.is_floating_point()
        }
        """By entry of a state, the name of its tensor: the first, where it has several."""
        self.entries = list(dict.fromkeys(self.state_names.values()))

    def step(self, settings: ClientConfig) -> Step:
        """Return the forward pass of all clients at once: every tensor has clients first.

        Its loss is the mean over a client's samples of weight 1.
        """

        def forward(
            weights: Tensors, x: Tensor, y: Tensor, weight: Tensor
        ) -> tuple[Tensor, Tensor, Tensors]:
            self._shared.weight, self._shared.statistics = weight, {}
            with autocast(settings, x.device.type):
                output = functional_call(self._model, weights, (x,))
            output = output.float()
            loss = (self._losses(output, y) * weight).sum() / weight.sum()
            right = ((output.detach().argmax(1) == y) * weight).sum()
            return loss, right, self._shared.statistics

        found: Step = vmap(forward, randomness="error")
        return found

    def _losses(self, output: Tensor, y: Tensor) -> Tensor:
        if self._classes == 1:
            return (output.squeeze(1) - y.float()).square()
        # `cross_entropy` under vmap is decomposed in Python, by way of a slow import of sympy.
        return -output.log_softmax(1).gather(1, y.unsqueeze(1)).squeeze(1)


def _replace(module: nn.Module, name: str, shared: _Pass) -> nn.Module:
    """Replace BatchNorm layers below, and refuse what a stacked pass cannot do as torch does."""
    if isinstance(module, nn.BatchNorm1d | nn.BatchNorm2d | nn.BatchNorm3d):
        if module.track_running_stats and module.momentum is None:
            raise ModelError(f"'{name}' averages its statistics over all steps; give it a momentum")
        return WeightedNorm(module, name, shared)
    if isinstance(module, nn.modules.batchnorm._NormBase) and module.track_running_stats:
        raise ModelError(f"'{name}' is a {type(module).__name__}, which no cohort can train")
    for child, layer in module.named_children():
        replaced = _replace(layer, f"{name}.{child}" if name else child, shared)
        if replaced is not layer:
            setattr(module, child, replaced)
    return module


def _aliases(model: nn.Module) -> dict[str, str]:
    """Return the first name of each parameter that stands under several."""
    first = {id(parameter): name for name, parameter in model.named_parameters()}
    every = model.named_parameters(remove_duplicate=False)
    return {name: first[id(parameter)] for name, parameter in every}
