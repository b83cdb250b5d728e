"""MobileNet v1: depthwise-separable convolutions for edge devices (Howard et al. 2017).

A plain sequence of convolution, BatchNorm and ReLU, so that an exporter can fuse each
three and lay out the sparse 1x1 convolutions by themselves.
"""

from collections import OrderedDict
from collections.abc import Sequence

from torch import nn

from fedsparse.models.small import Shape, image_shape, scaled

STEM = 32
BLOCKS = (
    (64, 1),
    (128, 2),
    (128, 1),
    (256, 2),
    (256, 1),
    (512, 2),
    *[(512, 1)] * 5,
    (1024, 2),
    (1024, 1),
)
"""Output channels and stride of each depthwise-separable block (table 1 of the paper)."""
LARGE = 64
"""From this many pixels on the stem halves the image; below, it keeps what there is."""
SMALLEST = 4
"""Pixels a side that `mobilenet_edge` keeps to the end."""


def _conv(cin: int, cout: int, kernel: int, stride: int = 1, groups: int = 1) -> nn.Sequential:
    layers: dict[str, nn.Module] = {
        "conv": nn.Conv2d(cin, cout, kernel, stride, kernel // 2, groups=groups, bias=False),
        "norm": nn.BatchNorm2d(cout),
        "relu": nn.ReLU(),
    }
    return nn.Sequential(OrderedDict(layers))


def mobilenet_v1(input_shape: Shape, classes: int, width: float = 1.0) -> nn.Module:
    """MobileNet v1 for images from 8x8 up; `width` is the paper's width multiplier.

    The 3x3 stem has stride 2 as in the paper for images of 64 pixels or more a side, and
    stride 1 for smaller ones. Raises ModelError for inputs that are no such images.
    """
    channels, height, side = image_shape(input_shape, 8, "mobilenet-v1")
    stem = 2 if min(height, side) >= LARGE else 1
    return _network(channels, classes, width, stem, [stride for _, stride in BLOCKS])


def mobilenet_edge(input_shape: Shape, classes: int, width: float = 1.0) -> nn.Module:
    """MobileNet v1 as mobile runtimes compute it sparsely, also for small images, from 8x8 up.

    The stem has stride 2 whatever the size, without which XNNPACK begins no sparse chain. A block
    that would leave fewer than 4 pixels a side keeps them instead: a sparse kernel earns its
    index by many pixels. On images of 128 pixels or more it is `mobilenet_v1`. Raises ModelError
    for inputs that are no such images.
    """
    channels, height, side = image_shape(input_shape, 8, "mobilenet-edge")
    left, strides = _halved(min(height, side)), []
    for _, stride in BLOCKS:
        strides.append(stride if _halved(left) >= SMALLEST else 1)
        left = _halved(left) if strides[-1] == 2 else left
    return _network(channels, classes, width, 2, strides)


def _halved(pixels: int) -> int:
    """Return what a 3x3 convolution of stride 2, padded by 1, leaves of a side."""
    return (pixels + 1) // 2


def _network(
    channels: int, classes: int, width: float, stem: int, strides: Sequence[int]
) -> nn.Module:
    before = scaled(STEM, width)
    layers = {"stem": _conv(channels, before, 3, stem)}
    for number, ((wide, _), stride) in enumerate(zip(BLOCKS, strides, strict=True), 1):
        after = scaled(wide, width)
        layers[f"depthwise{number}"] = _conv(before, before, 3, stride, before)
        layers[f"pointwise{number}"] = _conv(before, after, 1)
        before = after
    head: dict[str, nn.Module] = {
        "average": nn.AdaptiveAvgPool2d(1),
        "flatten": nn.Flatten(),
        "fc": nn.Linear(before, classes),
    }
    return nn.Sequential(OrderedDict([*layers.items(), *head.items()]))
