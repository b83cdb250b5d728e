"""Masks, criteria, layer-wise allocation, patterns, schedules, adjustment and cost."""

from fedsparse.sparsity.adjust import grow_and_prune, prune_and_grow
from fedsparse.sparsity.allocation import check_density, er, erk, layer_counts, rescale, uniform
from fedsparse.sparsity.compose import mask_from_scores, static_mask, top_mask, top_mask_global
from fedsparse.sparsity.cost import LayerCost, MemoryCost, ModelCost
from fedsparse.sparsity.mask import Mask, State
from fedsparse.sparsity.patterns import UNSTRUCTURED, Pattern, top
from fedsparse.sparsity.schedules import Schedule, constant, cosine, cubic, linear

__all__ = [
    "UNSTRUCTURED",
    "LayerCost",
    "Mask",
    "MemoryCost",
    "ModelCost",
    "Pattern",
    "Schedule",
    "State",
    "check_density",
    "constant",
    "cosine",
    "cubic",
    "er",
    "erk",
    "grow_and_prune",
    "layer_counts",
    "linear",
    "mask_from_scores",
    "prune_and_grow",
    "rescale",
    "static_mask",
    "top",
    "top_mask",
    "top_mask_global",
    "uniform",
]
