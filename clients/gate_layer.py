"""pFedGate's gating layer: from a batch of inputs to how much of each block is used.

x -> SwitchNorm -> flatten -> linear -> BatchNorm -> sigmoid, averaged over the batch and clipped
from below. With a second head, the first says which blocks are used and the second how much
(Chen et al., ICML 2023, section "gating layer").
"""

import math

import torch
from torch import Tensor, nn

EPSILON = 1e-5
MOMENTUM = 0.1


class SwitchNorm(nn.Module):
    """Normalisation by a learned mixture of a sample's, a channel's and a batch's statistics.

    Luo et al., ICLR 2019, eqs. 2 and 3. Inputs are (samples, channels, ...); vectors count as one
    channel. Single samples, and inputs in evaluation mode, take the running statistics of batches.
    """

    running_mean: Tensor
    running_var: Tensor

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(channels))
        self.bias = nn.Parameter(torch.zeros(channels))
        self.mean_weight = nn.Parameter(torch.ones(3))
        self.var_weight = nn.Parameter(torch.ones(3))
        self.register_buffer("running_mean", torch.zeros(channels))
        self.register_buffer("running_var", torch.ones(channels))

    def forward(self, x: Tensor) -> Tensor:
        """Normalise a batch."""
        flat = x.reshape(len(x), len(self.weight), -1)
        mean_in = flat.mean(2, keepdim=True)
        var_in = flat.var(2, correction=0, keepdim=True)
        mean_ln = mean_in.mean(1, keepdim=True)
        var_ln = (var_in + mean_in**2).mean(1, keepdim=True) - mean_ln**2
        mean_bn, var_bn = self._of_batch(mean_in, var_in)
        shares = torch.softmax(self.mean_weight, 0), torch.softmax(self.var_weight, 0)
        mean = shares[0][0] * mean_in + shares[0][1] * mean_ln + shares[0][2] * mean_bn
        var = shares[1][0] * var_in + shares[1][1] * var_ln + shares[1][2] * var_bn
        normal = (flat - mean) / torch.sqrt(var + EPSILON)
        scaled = normal * self.weight[:, None] + self.bias[:, None]
        return scaled.reshape(x.shape)

    def _of_batch(self, mean_in: Tensor, var_in: Tensor) -> tuple[Tensor, Tensor]:
        if not self.training or len(mean_in) < 2:
            return self.running_mean[None, :, None], self.running_var[None, :, None]
        mean = mean_in.mean(0, keepdim=True)
        var = (var_in + mean_in**2).mean(0, keepdim=True) - mean**2
        with torch.no_grad():
            self.running_mean.lerp_(mean[0, :, 0], MOMENTUM)
            self.running_var.lerp_(var[0, :, 0], MOMENTUM)
        return mean, var


class Gate(nn.Module):
    """The gating layer of one client, for inputs of one shape and a number of blocks.

    Gates begin around `start`, in (0, 1).
    """

    def __init__(
        self, input_shape: tuple[int, ...], blocks: int, heads: int = 1, start: float = 0.5
    ) -> None:
        super().__init__()
        inputs = math.prod(input_shape)
        self.norm = SwitchNorm(input_shape[0] if len(input_shape) == 3 else 1)
        self.linear = nn.ModuleList(nn.Linear(inputs, blocks) for _ in range(heads))
        norms = [nn.BatchNorm1d(blocks) for _ in range(heads)]
        for norm in norms:
            nn.init.constant_(norm.bias, math.log(start / (1 - start)))
        self.scale = nn.ModuleList(norms)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Return importance and weight of each block for a batch: means of sigmoids in [0, 1]."""
        flat = self.norm(x).flatten(1)
        gates = []
        for linear, norm in zip(self.linear, self.scale, strict=True):
            logits = linear(flat)
            if self.training and len(x) < 2:  # one sample has no variance over the batch
                norm.eval()
                logits = norm(logits)
                norm.train()
            else:
                logits = norm(logits)
            gates.append(torch.sigmoid(logits).mean(0))
        return gates[0], gates[-1]
