"""Activations of a model's convolutions, channel by channel and class by class.

Of a convolution that BatchNorm follows, they are taken behind that: it is what the next layer sees.
"""

from itertools import pairwise

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from fedsparse.data import Dataset
from fedsparse.training import local

SAMPLES = "samples"
"""The entry that holds how many samples of each class there are."""


def convolutions(model: nn.Module) -> dict[str, int]:
    """Return the channels of each convolution by the name of its weight, in forward order."""
    return {
        f"{name}.weight": module.out_channels
        for name, module in model.named_modules()
        if isinstance(module, nn.Conv2d)
    }


def norms_behind(model: nn.Module) -> dict[str, str]:
    """Return the name of the BatchNorm that stands right behind a convolution, by its weight's."""
    leaves = [(n, m) for n, m in model.named_modules() if not list(m.children())]
    return {
        f"{name}.weight": behind
        for (name, module), (behind, norm) in pairwise(leaves)
        if isinstance(module, nn.Conv2d)
        and isinstance(norm, nn.BatchNorm2d)
        and norm.num_features == module.out_channels
    }


def shapes(model: nn.Module, classes: int) -> dict[str, tuple[int, ...]]:
    """Return the shapes of what `activations` finds, by name."""
    layers = {name: (classes, count) for name, count in convolutions(model).items()}
    return {**layers, SAMPLES: (classes,)}


@torch.no_grad()
def activations(model: nn.Module, data: Dataset) -> dict[str, NDArray[np.float32]]:
    """Return the mean positive activation of each channel by class: (classes, channels) a layer.

    Under running statistics. Classes without samples are zero; `SAMPLES` says how many there are.
    The model's mode is put back.
    """
    x, y = local.tensors(data)
    behind, modules = norms_behind(model), dict(model.named_modules())
    sums = {n: torch.zeros(data.classes, count) for n, count in convolutions(model).items()}
    labels: list[Tensor] = []

    def watch(name: str) -> object:
        def hook(module: nn.Module, given: object, output: Tensor) -> None:
            sums[name].index_add_(0, labels[-1], output.relu().mean((2, 3)).float())

        place = modules[behind.get(name, name.removesuffix(".weight"))]
        return place.register_forward_hook(hook)

    training, hooks = model.training, [watch(name) for name in sums]
    model.eval()
    try:
        for begin in range(0, len(y), local.EVALUATION_BATCH):
            labels.append(y[begin : begin + local.EVALUATION_BATCH])
            model(x[begin : begin + local.EVALUATION_BATCH])
    finally:
        model.train(training)
        for handle in hooks:
            handle.remove()  # type: ignore[attr-defined]
    counts = torch.bincount(y, minlength=data.classes)
    means = {name: total / counts.clamp(min=1)[:, None] for name, total in sums.items()}
    return {**{n: m.numpy() for n, m in means.items()}, SAMPLES: counts.float().numpy()}
