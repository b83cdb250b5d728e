"""A torch module whose parameters are one vector, for methods that change all of them at once.

Other values can stand for the parameters in a call, as `torch.func.functional_call` does, by a few
operations in the place of some for each tensor.
"""

from typing import cast

import torch
from torch import Tensor, nn


class FlatModel:
    """A module whose parameters are one vector, which other values may stand for in a call."""

    def __init__(self, model: nn.Module) -> None:
        self.model = model
        self.parameters = list(model.parameters())
        self.sizes = [p.numel() for p in self.parameters]
        with torch.no_grad():
            whole = torch.cat([p.reshape(-1) for p in self.parameters])
        self.vector = nn.Parameter(whole)
        self.places = [
            (module, name)
            for module in model.modules()
            for name, parameter in module.named_parameters(recurse=False)
            if parameter is not None
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

    @torch.no_grad()
    def store(self) -> None:
        """Put the vector into the module's parameters."""
        for parameter, part in zip(
            self.parameters, torch.split(self.vector, self.sizes), strict=True
        ):
            parameter.copy_(part.view(parameter.shape))
