"""Pruned networks with lived-in BatchNorm, as training leaves them, and samples for them."""

import numpy as np
import torch
from torch import nn

from fedsparse import models

ZOO = {
    "linear": (1, 8, 8),
    "mlp": (1, 8, 8),
    "cnn": (1, 28, 28),
    "leaf-cnn": (1, 8, 8),
    "paper-cnn": (1, 28, 28),
    "resnet18": (3, 16, 16),
    "mobilenet-v1": (3, 32, 32),
}
"""Every model of the zoo that direct export covers, and a sample's shape."""


def pruned(name, shape, *, density=0.2, width=0.25, rows=1.0, seed=0):
    """Return a model in evaluation with this share of its weights, and of their rows."""
    generator = torch.Generator().manual_seed(seed)
    model = models.build_seeded(name, input_shape=shape, classes=10, width=width, seed=seed)
    return lived_in(model, density, rows, generator)


def lived_in(model, density, rows, generator):
    with torch.no_grad():
        for layer in model.modules():
            if isinstance(layer, nn.BatchNorm2d):
                for tensor, least in ((layer.running_mean, -1), (layer.bias, -1)):
                    tensor.uniform_(least, 1, generator=generator)
                for tensor in (layer.running_var, layer.weight):
                    tensor.uniform_(0.5, 2, generator=generator)
            if isinstance(layer, nn.Conv2d | nn.Linear):
                kept = torch.rand(layer.weight.shape, generator=generator) < density
                alive = torch.rand(len(layer.weight), generator=generator) < rows
                alive[0] = True
                layer.weight *= kept * alive.reshape(-1, *[1] * (layer.weight.ndim - 1))
    return model.eval()


def samples(shape, count=8, seed=0):
    rng = np.random.default_rng(seed)
    return rng.standard_normal((count, *shape)).astype(np.float32)
