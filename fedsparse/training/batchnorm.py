"""BatchNorm statistics: measured on data, merged over clients, kept still while scoring.

FedTiny sends these statistics between clients and server; every strategy that changes
a mask may measure them anew.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import numpy as np
import torch
from torch import Tensor, nn

from fedsparse.errors import DataError
from fedsparse.sparsity import State

_Norm = nn.modules.batchnorm._BatchNorm


def norms(model: nn.Module) -> dict[str, nn.modules.batchnorm._BatchNorm]:
    """Return the model's BatchNorm layers that keep running statistics, by name."""
    return {
        name: layer
        for name, layer in model.named_modules()
        if isinstance(layer, _Norm) and layer.track_running_stats
    }


@contextmanager
def statistics_momentum(model: nn.Module, momentum: float) -> Iterator[None]:
    """Put BatchNorm layers into training mode with another momentum, then as before.

    Momentum 0 leaves the running statistics untouched; 1 replaces them by the batch's.
    """
    layers = norms(model)
    before = {name: (layer.momentum, layer.training) for name, layer in layers.items()}
    counters = {name: layer.num_batches_tracked for name, layer in layers.items()}
    for layer in layers.values():
        layer.num_batches_tracked = None
        layer.momentum = momentum
        layer.train()
    try:
        yield
    finally:
        for name, layer in layers.items():
            layer.momentum, layer.training = before[name]
            layer.num_batches_tracked = counters[name]


@torch.no_grad()
def measure(model: nn.Module, x: Tensor) -> State:
    """Set the running statistics to those of one batch and return them.

    `x` is a batch of at least two samples. Returns `running_mean` and `running_var`
    of each layer by state-dict name. Raises DataError for fewer samples. FedTiny, adaptive
    BatchNorm selection, step 2.
    """
    if len(x) < 2:
        raise DataError(
            "BatchNorm statistics need two samples; raise data.public_samples or "
            "data.min_per_client"
        )
    training = model.training
    model.eval()
    with statistics_momentum(model, 1.0):
        model(x)
    model.train(training)
    return statistics(model)


def statistics(model: nn.Module) -> State:
    """Return copies of the running statistics by state-dict name."""
    found: State = {}
    for name, layer in norms(model).items():
        assert layer.running_mean is not None
        assert layer.running_var is not None
        found[f"{name}.running_mean"] = layer.running_mean.numpy().copy()
        found[f"{name}.running_var"] = layer.running_var.numpy().copy()
    return found


def merge(parts: Sequence[State], weights: Sequence[float], rule: str = "average") -> State:
    """Return the weighted mean of clients' statistics.

    Rule "average": means and variances are each averaged, as FedTiny does. Rule
    "total": the law of total variance, which adds the spread of the clients' means,
    sum_k p_k (mu_k - mu)^2.
    """
    share = np.asarray(weights, dtype=np.float64) / np.sum(weights)
    merged = {
        name: np.tensordot(share, np.stack([part[name] for part in parts]).astype(np.float64), 1)
        for name in parts[0]
    }
    if rule == "total":
        for name in list(merged):
            if name.endswith("running_var"):
                mean = name.removesuffix("var") + "mean"
                apart = np.stack([part[mean] for part in parts]) - merged[mean]
                merged[name] = merged[name] + np.tensordot(share, apart**2, 1)
    return {name: value.astype(np.float32) for name, value in merged.items()}
