"""Small models: linear, MLP, a CNN with BatchNorm, LEAF's CNN, and a test network.

Every factory takes (input_shape, classes, width) and returns logits, without an
activation on them; `width` scales hidden channels.
"""

from collections import OrderedDict

from torch import Tensor, nn

from fedsparse.errors import ModelError

Shape = tuple[int, ...]
Layers = dict[str, nn.Module]


def scaled(channels: int, width: float) -> int:
    """Return a number of channels times `width`, at least one."""
    return max(1, round(channels * width))


def image_shape(input_shape: Shape, least: int, name: str) -> tuple[int, int, int]:
    """Return (channels, height, width) of an image; raises ModelError when it is none."""
    if len(input_shape) != 3:
        raise ModelError(f"model '{name}' takes images, not inputs of shape {input_shape}")
    channels, height, side = input_shape
    if min(height, side) < least:
        raise ModelError(
            f"model '{name}' needs images of {least} pixels or more, not {input_shape}"
        )
    return channels, height, side


def _features(input_shape: Shape) -> int:
    size = 1
    for dimension in input_shape:
        size *= dimension
    return size


def linear(input_shape: Shape, classes: int, width: float = 1.0) -> nn.Module:
    """One linear layer: softmax or linear regression."""
    return _sequence({"flatten": nn.Flatten(), "fc": nn.Linear(_features(input_shape), classes)})


def mlp(input_shape: Shape, classes: int, width: float = 1.0) -> nn.Module:
    """Two hidden layers of 64 * width units."""
    hidden = scaled(64, width)
    return _sequence(
        {
            "flatten": nn.Flatten(),
            "fc1": nn.Linear(_features(input_shape), hidden),
            "relu1": nn.ReLU(),
            "fc2": nn.Linear(hidden, hidden),
            "relu2": nn.ReLU(),
            "fc3": nn.Linear(hidden, classes),
        }
    )


def _conv(number: int, cin: int, cout: int, kernel: int, stride: int = 1) -> Layers:
    """A convolution without bias, its BatchNorm and its activation, by name."""
    return {
        f"conv{number}": nn.Conv2d(cin, cout, kernel, stride, kernel // 2, bias=False),
        f"norm{number}": nn.BatchNorm2d(cout),
        f"relu{number}": nn.ReLU(),
    }


def _sequence(layers: Layers) -> nn.Sequential:
    return nn.Sequential(OrderedDict(layers))


def cnn(input_shape: Shape, classes: int, width: float = 1.0) -> nn.Module:
    """Two 3x3 convolutions with BatchNorm and a hidden layer; images from 8x8 up."""
    channels, height, side = image_shape(input_shape, 8, "cnn")
    first, second, hidden = (scaled(c, width) for c in (16, 32, 64))
    rows, columns = min(4, height // 2), min(4, side // 2)
    return _sequence(
        {
            **_conv(1, channels, first, 3),
            **_conv(2, first, second, 3),
            "pool": nn.MaxPool2d(2),
            "average": nn.AdaptiveAvgPool2d((rows, columns)),
            "flatten": nn.Flatten(),
            "fc1": nn.Linear(second * rows * columns, hidden),
            "relu3": nn.ReLU(),
            "fc2": nn.Linear(hidden, classes),
        }
    )


class _Leaf(nn.Module):
    def __init__(self, shape: tuple[int, int, int], classes: int, width: float) -> None:
        super().__init__()
        channels, height, side = shape
        first, second, hidden = (scaled(c, width) for c in (32, 64, 2048))
        self.conv1 = nn.Conv2d(channels, first, 5, padding=2)
        self.conv2 = nn.Conv2d(first, second, 5, padding=2)
        self.pool = nn.MaxPool2d(2)
        self.relu = nn.ReLU()
        self.fc1 = nn.Linear(second * (height // 4) * (side // 4), hidden)
        self.fc2 = nn.Linear(hidden, classes)

    def forward(self, x: Tensor) -> Tensor:
        x = self.pool(self.relu(self.conv1(x)))
        x = self.pool(self.relu(self.conv2(x)))
        logits: Tensor = self.fc2(self.relu(self.fc1(x.flatten(1))))
        return logits


def leaf_cnn(input_shape: Shape, classes: int, width: float = 1.0) -> nn.Module:
    """LEAF's CNN for FEMNIST: two 5x5 convolutions (32, 64), 2048 hidden units."""
    return _Leaf(image_shape(input_shape, 8, "leaf-cnn"), classes, width)


def paper_cnn(input_shape: Shape, classes: int, width: float = 1.0) -> nn.Module:
    """A strided CNN with BatchNorm throughout, 207k prunable weights on 28x28 images."""
    channels, height, side = image_shape(input_shape, 8, "paper-cnn")
    first, second, hidden = (scaled(c, width) for c in (16, 32, 128))
    rows, columns = (height + 3) // 4, (side + 3) // 4
    return _sequence(
        {
            **_conv(1, channels, first, 5, 2),
            **_conv(2, first, second, 3, 2),
            "flatten": nn.Flatten(),
            "fc1": nn.Linear(second * rows * columns, hidden, bias=False),
            "norm3": nn.BatchNorm1d(hidden),
            "relu3": nn.ReLU(),
            "fc2": nn.Linear(hidden, classes),
        }
    )
