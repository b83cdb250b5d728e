"""Between torch modules and plain states: what travels, what can be pruned, in which order."""

from collections.abc import Sequence

import numpy as np
import torch
from torch import nn

from fedsparse.errors import ModelError
from fedsparse.sparsity.mask import State


def _tensors(model: nn.Module) -> dict[str, torch.Tensor]:
    """Return parameters and float buffers in state-dict order."""
    return {n: t for n, t in model.state_dict().items() if t.is_floating_point()}


def get_state(model: nn.Module) -> State:
    """Return a copy of every parameter and float buffer, float32, in state-dict order."""
    return {
        name: np.array(tensor.detach().numpy(), dtype=np.float32, order="C")
        for name, tensor in _tensors(model).items()
    }


def load_state(model: nn.Module, state: State) -> None:
    """Copy a state into a model; raises ModelError when names or shapes differ."""
    tensors = _tensors(model)
    missing = [name for name in tensors if name not in state]
    extra = [name for name in state if name not in tensors]
    if missing or extra:
        side, name = ("lacks", missing[0]) if missing else ("has an unknown", extra[0])
        raise ModelError(f"the state {side} '{name}'; it is of another model")
    with torch.no_grad():
        for name, tensor in tensors.items():
            value = state[name]
            if tuple(value.shape) != tuple(tensor.shape):
                raise ModelError(
                    f"'{name}' has shape {tuple(value.shape)}, the model's is {tuple(tensor.shape)}"
                )
            tensor.copy_(torch.tensor(value))


def prunable(model: nn.Module) -> list[str]:
    """Return the names of convolution and linear weights, in state-dict order."""
    weights = {
        f"{name}.weight" if name else "weight"
        for name, module in model.named_modules()
        if isinstance(module, nn.Linear | nn.Conv1d | nn.Conv2d | nn.Conv3d)
    }
    return [name for name in model.state_dict() if name in weights]


def pointwise(model: nn.Module) -> list[str]:
    """Return the names of the weights of 1x1 convolutions over all channels, in that order."""
    weights = {
        f"{name}.weight" if name else "weight"
        for name, module in model.named_modules()
        if isinstance(module, nn.Conv2d) and module.kernel_size == (1, 1) and module.groups == 1
    }
    return [name for name in prunable(model) if name in weights]


def shapes(model: nn.Module, names: Sequence[str]) -> dict[str, tuple[int, ...]]:
    """Return the shapes of the named parameters."""
    state = model.state_dict()
    return {name: tuple(state[name].shape) for name in names}


def blocks(model: nn.Module, names: Sequence[str], count: int = 5) -> list[list[str]]:
    """Group prunable weights, in forward order, into at most `count` contiguous blocks.

    A model that says `block_prefixes` (ResNet: its stages) is cut there; any other into
    runs of equal numbers of layers. Raises ModelError for a weight that no prefix is of.
    """
    prefixes: Sequence[Sequence[str]] = getattr(model, "block_prefixes", ())
    every = tuple(prefix for group in prefixes for prefix in group)
    outside = [name for name in names if prefixes and not name.startswith(every)]
    if outside:
        raise ModelError(
            f"'{outside[0]}' is in none of the model's blocks; add its prefix to block_prefixes"
        )
    if prefixes and len(prefixes) <= count:
        grouped = [[n for n in names if n.startswith(tuple(group))] for group in prefixes]
        return [group for group in grouped if group]
    parts = np.array_split(np.arange(len(names)), max(1, min(count, len(names))))
    return [[names[i] for i in part] for part in parts if len(part)]
