"""MobileNet v1: depthwise-separable convolutions for edge devices (Howard et al. 2017).

A plain sequence of convolution, BatchNorm and ReLU, so that an exporter can fuse each
three and lay out the sparse 1x1 convolutions by themselves.
"""

from collections import OrderedDict

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
    before = scaled(STEM, width)
    layers = {"stem": _conv(channels, before, 3, 2 if min(height, side) >= LARGE else 1)}
    for number, (wide, stride) in enumerate(BLOCKS, 1):
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
