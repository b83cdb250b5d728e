"""What a masked model costs: arithmetic and training memory, layer by layer.

FLOPs are 2 per multiply-add; training is 3 forward passes (forward, gradient of the
input, gradient of the weight); a sparse layer costs its density. Memory is what the
method needs, counted as FedTiny's paper does, not what a dense backend allocates.
"""

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, fields
from typing import TYPE_CHECKING, Literal

from fedsparse.errors import MaskError
from fedsparse.sparsity.mask import Mask

if TYPE_CHECKING:
    from torch import Tensor, nn

VALUE_BYTES = 4
INDEX_BYTES = 4
ENTRY_BYTES = VALUE_BYTES + INDEX_BYTES


@dataclass(frozen=True)
class LayerCost:
    """One prunable weight: its name, entries, forward FLOPs and outputs per sample."""

    name: str
    weights: int
    forward_flops: int
    output_elements: int


@dataclass(frozen=True)
class MemoryCost:
    """Bytes that local training needs, by what they hold."""

    parameters: int
    gradients: int
    optimizer: int
    activations: int
    buffer: int

    @property
    def total(self) -> int:
        """All of it."""
        return sum(getattr(self, field.name) for field in fields(self))


SLOTS = {"sgd": 0, "momentum": 1, "adam": 2}


@dataclass(frozen=True)
class ModelCost:
    """Costs of a model: its prunable layers, its other entries, its activations."""

    layers: tuple[LayerCost, ...]
    other_parameters: int
    buffers: int
    activation_elements: int

    @classmethod
    def of(cls, model: "nn.Module", input_shape: tuple[int, ...]) -> "ModelCost":
        """Measure a model with one sample of zeros; the model is left as it was."""
        import torch
        from torch import Tensor, nn

        weighted = nn.Linear | nn.Conv1d | nn.Conv2d | nn.Conv3d  # as `models.prunable` has it
        seen: dict[str, LayerCost] = {}
        activations: list[int] = []
        names = {module: name for name, module in model.named_modules()}

        def watch(module: nn.Module, given: tuple[Tensor, ...], output: Tensor) -> None:
            if isinstance(output, Tensor):
                activations.append(output.numel())
            if isinstance(module, weighted):
                name = f"{names[module]}.weight" if names[module] else "weight"
                flops = 2 * _multiply_adds(module.weight, output)
                before = seen[name].forward_flops if name in seen else 0
                seen[name] = LayerCost(name, module.weight.numel(), before + flops, output.numel())

        leaves = [m for m in model.modules() if not list(m.children())]
        hooks = [leaf.register_forward_hook(watch) for leaf in leaves]
        modes = {module: module.training for module in model.modules()}
        try:
            with torch.no_grad():
                model.eval()(_zeros(model, input_shape))
        finally:
            for hook in hooks:
                hook.remove()
            for module, mode in modes.items():
                module.training = mode
        order = [name for name, _ in model.named_parameters() if name in seen]
        layers = tuple(seen[name] for name in order)
        prunable = sum(layer.weights for layer in layers)
        parameters = sum(p.numel() for p in model.parameters())
        buffers = sum(b.numel() for b in model.buffers() if b.is_floating_point())
        return cls(layers, parameters - prunable, buffers, sum(activations))

    def forward_flops(self, mask: Mask | None = None) -> float:
        """FLOPs of one sample's forward pass; layers outside the mask are dense."""
        density = self._densities(mask)
        return sum(density[layer.name] * layer.forward_flops for layer in self.layers)

    def flops_of(self, kept: Mapping[str, float] | None) -> float:
        """FLOPs of one sample's forward pass with `kept` weights by layer; others are dense."""
        kept = kept or {}
        return sum(
            kept.get(layer.name, layer.weights) / layer.weights * layer.forward_flops
            for layer in self.layers
        )

    def train_flops(self, samples: int, mask: Mask | None = None) -> float:
        """FLOPs of training on `samples` samples: three forward passes each."""
        return 3 * samples * self.forward_flops(mask)

    def dense_gradient_flops(self, samples: int, layers: Iterable[str]) -> float:
        """FLOPs of the dense weight gradient of some layers on `samples` samples."""
        wanted = set(layers)
        return float(samples * sum(c.forward_flops for c in self.layers if c.name in wanted))

    def growth_flops(
        self, samples: int, layers: Iterable[str], kept: Mapping[str, float] | None = None
    ) -> float:
        """FLOPs of looking for gradients of pruned weights on one batch after training.

        A forward pass and the gradients of the layers' inputs, both with `kept` weights by layer,
        and the dense weight gradient of the scheduled layers (FedTiny, progressive pruning).
        """
        passes = 2 * samples * self.flops_of(kept)
        return passes + self.dense_gradient_flops(samples, layers)

    def training_memory(
        self,
        mask: Mask | None = None,
        *,
        optimizer: Literal["sgd", "momentum", "adam"] = "sgd",
        batch_size: int,
        buffer_entries: int = 0,
        dense_gradient_entries: int = 0,
        kept: Mapping[str, int] | None = None,
    ) -> MemoryCost:
        """Bytes that training holds at its peak, under a mask or under its `kept` by layer.

        A kept weight takes 4 B and its position, as an index of 4 B or one bit of the
        tensor, whichever is less; gradients and optimizer slots 4 B a kept weight; an
        entry of the adjustment buffer 8 B; a dense gradient 4 B an entry.
        """
        self._densities(mask)
        kept = kept or (mask.layer_kept() if mask else {})
        counts = [(kept.get(layer.name, layer.weights), layer.weights) for layer in self.layers]
        values = sum(count for count, _ in counts)
        index = sum(
            min(INDEX_BYTES * count, math.ceil(weights / 8))
            for count, weights in counts
            if count < weights
        )
        trainable = (values + self.other_parameters) * VALUE_BYTES
        return MemoryCost(
            parameters=trainable + self.buffers * VALUE_BYTES + index,
            gradients=trainable,
            optimizer=SLOTS[optimizer] * trainable,
            activations=batch_size * self.activation_elements * VALUE_BYTES,
            buffer=buffer_entries * ENTRY_BYTES + dense_gradient_entries * VALUE_BYTES,
        )

    def _densities(self, mask: Mask | None) -> dict[str, float]:
        dense = {layer.name: 1.0 for layer in self.layers}
        if mask is None:
            return dense
        unknown = set(mask.names) - set(dense)
        if unknown:
            raise MaskError(f"the mask covers '{min(unknown)}', which is no layer of the model")
        return {**dense, **mask.layer_density()}


def gate_entries(input_shape: tuple[int, ...], blocks: int, heads: int) -> int:
    """Return the parameters of pFedGate's gating layer."""
    channels = input_shape[0] if len(input_shape) == 3 else 1
    head = (math.prod(input_shape) + 1) * blocks + 2 * blocks
    return heads * head + 2 * channels + 6


def gate_flops(input_shape: tuple[int, ...], blocks: int, heads: int) -> float:
    """Return the FLOPs of a gating layer's forward pass of one sample."""
    return 2.0 * heads * math.prod(input_shape) * blocks


def _multiply_adds(weight: "Tensor", output: "Tensor") -> int:
    """Multiply-adds of one sample: each output element takes one weight row."""
    return output[0].numel() * weight[0].numel()


def _zeros(model: "nn.Module", input_shape: tuple[int, ...]) -> "Tensor":
    import torch
    from torch import nn

    tokens = any(isinstance(m, nn.Embedding) for m in model.modules())
    return torch.zeros(1, *input_shape, dtype=torch.int64 if tokens else torch.float32)
