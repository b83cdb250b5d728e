"""Clients' tensors on their way to a device and back: of masked ones the kept values alone.

A copy to or from an accelerator's memory takes ten times as long where the host's end is not
page-locked; torch keeps what it has locked for the next cohort.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from fedsparse.sparsity import Mask, State


def joined(parts: Sequence[NDArray[Any]], device: torch.device) -> Tensor:
    """Return arrays, one after another along their first axis, on the device."""
    shape = (sum(len(part) for part in parts), *parts[0].shape[1:])
    room = _room(shape, torch.from_numpy(parts[0][:0]).dtype, device)
    np.concatenate(parts, out=room.numpy())
    return room.to(device, non_blocking=True)


def stacked(states: Sequence[State], name: str, device: torch.device) -> Tensor:
    """Return clients' tensors of one name, (clients, ...); one that all share is sent once."""
    first = states[0][name]
    if all(state[name] is first for state in states):
        sent = torch.from_numpy(np.array(first)).to(device)
        return sent.expand(len(states), *sent.shape).clone()
    return joined([state[name][None] for state in states], device)


def masks_by_name(masks: Sequence[Mask | None], device: torch.device) -> dict[str, Tensor]:
    """Return clients' masks by name, (clients, ...); (1, ...) where all have the same."""
    names = dict.fromkeys(name for mask in masks if mask is not None for name in mask.names)
    if all(mask == masks[0] for mask in masks):
        masks = masks[:1]
    shapes = {
        name: mask.shapes[name]
        for name in names
        for mask in masks
        if mask is not None and name in mask
    }
    return {
        name: torch.from_numpy(
            np.stack(
                [
                    np.ones(shape, bool) if mask is None or name not in mask else mask[name]
                    for mask in masks
                ]
            )
        ).to(device)
        for name, shape in shapes.items()
    }


def fetched(
    tensors: Mapping[str, Tensor], masks: Mapping[str, Tensor], own: Sequence[Mask | None]
) -> list[State]:
    """Return what each client's mask keeps of its tensors, (clients, ...), in the host's memory.

    `masks` are those of `masks_by_name`, `own` the clients' own: a tensor that a client's mask
    does not cover comes whole.
    """
    here: dict[str, Tensor] = {}
    for name, tensor in tensors.items():
        mask = masks.get(name)
        if mask is None:
            sent = tensor
        elif len(mask) == 1:
            sent = tensor[:, mask[0]]
        else:
            sent = tensor[mask]
        here[name] = _room(sent.shape, sent.dtype, sent.device)
        here[name].copy_(sent, non_blocking=True)
    for device in {tensor.device for tensor in tensors.values() if tensor.is_cuda}:
        torch.cuda.synchronize(device)
    states: list[State] = [{} for _ in own]
    for name, tensor in here.items():
        rows = _rows(tensor.numpy(), masks.get(name))
        for state, row, mine in zip(states, rows, own, strict=True):
            covered = mine is not None and name in mine
            state[name] = row if covered else row.reshape(tensors[name].shape[1:])
    return states


def _rows(values: NDArray[Any], mask: Tensor | None) -> Sequence[NDArray[Any]]:
    """Return each client's part of what was fetched."""
    if mask is None or len(mask) == 1:
        return list(values)
    counts = mask.flatten(1).sum(1).cpu().numpy()
    return np.split(values, np.cumsum(counts)[:-1])


def _room(shape: Sequence[int], dtype: torch.dtype, device: torch.device) -> Tensor:
    """Return memory of the host to copy from or to, page-locked for an accelerator."""
    return torch.empty(tuple(shape), dtype=dtype, pin_memory=device.type == "cuda")
