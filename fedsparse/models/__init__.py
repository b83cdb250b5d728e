"""The model zoo: networks small enough for the edge, and their states."""

import math

import torch
from torch import nn

from fedsparse import registry, seeds
from fedsparse.errors import ModelError
from fedsparse.models.parts import part, part_shapes
from fedsparse.models.state import blocks, get_state, load_state, pointwise, prunable, shapes

__all__ = [
    "blocks",
    "build",
    "build_seeded",
    "get_state",
    "load_state",
    "part",
    "part_shapes",
    "pointwise",
    "prunable",
    "shapes",
]


def build(
    name: str, *, input_shape: tuple[int, ...], classes: int, width: float = 1.0
) -> nn.Module:
    """Build a model of the zoo, or of a dotted path, with fresh weights.

    `input_shape` is that of one sample. Raises UnknownNameError, ConfigError for what is no
    such function, and ModelError for a width that is not positive or an input that the model
    cannot take.
    """
    if not (math.isfinite(width) and width > 0):
        raise ModelError(f"model.width = {width}: must be a positive number")
    if classes < 1:
        raise ModelError(f"a model with {classes} classes cannot be built; pass 1 or more")
    model = registry.call("models", name, input_shape, classes, width)
    if not isinstance(model, nn.Module):
        raise ModelError(f"model '{name}' returned a {type(model).__name__}, not a torch module")
    return model


def build_seeded(
    name: str, *, input_shape: tuple[int, ...], classes: int, width: float, seed: int
) -> nn.Module:
    """Build a model with the initial weights of a run's seed; raises as `build` does."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seeds.torch_seed(seed, 0, seeds.SERVER, "weights"))
        return build(name, input_shape=input_shape, classes=classes, width=width)
