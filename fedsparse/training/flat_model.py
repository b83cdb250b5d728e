"""A torch module called with one vector in the place of its parameters.

`torch.func.functional_call` does the same with some operations for each tensor more.
"""

from typing import cast

import torch
from torch import Tensor, nn


class FlatModel:
    """A module whose parameters another vector may stand for in a call."""

    def __init__(self, model: nn.Module) -> None:
        self.model = model
        self.parameters = list(model.parameters())
        self.sizes = [p.numel() for p in self.parameters]
        self.places = [
            (module, name)
            for module in model.modules()
            for name, _ in module.named_parameters(recurse=False)
        ]

    def call(self, values: Tensor, x: Tensor) -> Tensor:
        """Return the module's output on a batch, with other values for its parameters."""
        parts = torch.split(values, self.sizes)
        try:
            for (module, name), part, old in zip(self.places, parts, self.parameters, strict=True):
                module._parameters[name] = cast(nn.Parameter, part.view(old.shape))
            output: Tensor = self.model(x)
        finally:
            for (module, name), old in zip(self.places, self.parameters, strict=True):
                module._parameters[name] = old
        return output
