"""A small transformer encoder over bytes, for text and other sequences.

Projections are plain linear layers, so each is a prunable weight of its own; embeddings,
positions and norms stay dense.
"""

import math

import torch
from torch import Tensor, nn

from fedsparse.errors import ModelError
from fedsparse.models.small import Shape, scaled

VOCABULARY = 256
HEADS = 4
DEPTH = 2


class _Attention(nn.Module):
    """Multi-head self-attention over (batch, length, dimension)."""

    def __init__(self, dimension: int) -> None:
        super().__init__()
        self.query = nn.Linear(dimension, dimension)
        self.key = nn.Linear(dimension, dimension)
        self.value = nn.Linear(dimension, dimension)
        self.out = nn.Linear(dimension, dimension)

    def forward(self, x: Tensor) -> Tensor:
        query, key, value = (_heads(layer(x)) for layer in (self.query, self.key, self.value))
        # Written out: the fused kernel has no second derivative, which GraSP takes.
        weights = (query @ key.transpose(-2, -1) / math.sqrt(query.shape[-1])).softmax(-1)
        mixed: Tensor = self.out((weights @ value).transpose(1, 2).flatten(2))
        return mixed


def _heads(x: Tensor) -> Tensor:
    """Cut (batch, length, dimension) into (batch, heads, length, dimension / heads)."""
    return x.reshape(*x.shape[:2], HEADS, -1).transpose(1, 2)


class _Layer(nn.Module):
    """Attention and a feed-forward network, each on the normed input and added to it."""

    def __init__(self, dimension: int) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(dimension)
        self.attention = _Attention(dimension)
        self.norm2 = nn.LayerNorm(dimension)
        self.fc1 = nn.Linear(dimension, 4 * dimension)
        self.relu = nn.ReLU()
        self.fc2 = nn.Linear(4 * dimension, dimension)

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.attention(self.norm1(x))
        inner: Tensor = self.fc2(self.relu(self.fc1(self.norm2(x))))
        return x + inner


class _Transformer(nn.Module):
    def __init__(self, length: int, classes: int, dimension: int) -> None:
        super().__init__()
        self.embedding = nn.Embedding(VOCABULARY, dimension)
        self.position = nn.Parameter(torch.randn(length, dimension) * 0.02)
        self.layers = nn.Sequential(*(_Layer(dimension) for _ in range(DEPTH)))
        self.norm = nn.LayerNorm(dimension)
        self.fc = nn.Linear(dimension, classes)

    def forward(self, tokens: Tensor) -> Tensor:
        length = len(self.position)
        if tokens.dtype not in (torch.int64, torch.int32) or tokens.shape[1:] != (length,):
            raise ModelError(
                f"model 'transformer' takes whole-number tokens of shape (n, {length}), "
                f"not {tokens.dtype} of shape {tuple(tokens.shape)}"
            )
        try:
            x = self.embedding(tokens) + self.position
        except IndexError:
            raise ModelError(
                f"model 'transformer' takes tokens from 0 to {VOCABULARY - 1}; "
                "encode the text as bytes"
            ) from None
        logits: Tensor = self.fc(self.norm(self.layers(x)).mean(1))
        return logits


def transformer(input_shape: Shape, classes: int, width: float = 1.0) -> nn.Module:
    """Two encoder layers of four heads, 64 * width channels, over (length,) byte tokens.

    Positions are learned, the norm comes first (Xiong et al. 2020), and the classifier
    sees the mean over positions. Raises ModelError for inputs that are no sequences, and
    in the forward pass for tokens outside 0..255.
    """
    if len(input_shape) != 1 or input_shape[0] < 1:
        raise ModelError(f"model 'transformer' takes tokens (length,), not shape {input_shape}")
    dimension = HEADS * scaled(64 // HEADS, width)
    return _Transformer(input_shape[0], classes, dimension)
