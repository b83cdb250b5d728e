"""ResNet-18 for small images: the network of the sparse federated papers.

The 32x32 variant of He et al. 2016: a 3x3 stem of stride 1 and no max-pooling, then
four stages of two basic blocks.
"""

from collections import OrderedDict

from torch import Tensor, nn

from fedsparse.models.small import Shape, image_shape, scaled

STAGES = ((64, 1), (128, 2), (256, 2), (512, 2))
"""Channels and first stride of each stage."""


class _Block(nn.Module):
    """Two 3x3 convolutions around which the input passes, projected where shapes differ."""

    def __init__(self, cin: int, cout: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(cin, cout, 3, stride, 1, bias=False)
        self.norm1 = nn.BatchNorm2d(cout)
        self.relu1 = nn.ReLU()
        self.conv2 = nn.Conv2d(cout, cout, 3, 1, 1, bias=False)
        self.norm2 = nn.BatchNorm2d(cout)
        self.shortcut: nn.Module = nn.Identity()
        if stride != 1 or cin != cout:
            conv, norm = nn.Conv2d(cin, cout, 1, stride, bias=False), nn.BatchNorm2d(cout)
            self.shortcut = nn.Sequential(OrderedDict(conv=conv, norm=norm))
        self.relu2 = nn.ReLU()

    def forward(self, x: Tensor) -> Tensor:
        inner = self.norm2(self.conv2(self.relu1(self.norm1(self.conv1(x)))))
        outer: Tensor = self.relu2(inner + self.shortcut(x))
        return outer


class _ResNet18(nn.Module):
    """Stem, four stages, global average, one linear layer.

    `block_prefixes` cuts the state dict into five blocks for adjustment in turn: the stem
    and each stage, the linear layer with the last.
    """

    def __init__(self, channels: int, classes: int, width: float) -> None:
        super().__init__()
        before = scaled(STAGES[0][0], width)
        self.conv = nn.Conv2d(channels, before, 3, 1, 1, bias=False)
        self.norm = nn.BatchNorm2d(before)
        self.relu = nn.ReLU()
        stages: dict[str, nn.Module] = {}
        for number, (wide, stride) in enumerate(STAGES, 1):
            after = scaled(wide, width)
            stages[f"stage{number}"] = nn.Sequential(
                _Block(before, after, stride), _Block(after, after, 1)
            )
            before = after
        self.stages = nn.Sequential(OrderedDict(stages))
        self.average = nn.AdaptiveAvgPool2d(1)
        self.flatten = nn.Flatten()
        self.fc = nn.Linear(before, classes)
        stems = [["conv.", "norm."], *([f"stages.{name}."] for name in stages)]
        self.block_prefixes: list[list[str]] = [*stems[:-1], [*stems[-1], "fc."]]

    def forward(self, x: Tensor) -> Tensor:
        x = self.stages(self.relu(self.norm(self.conv(x))))
        logits: Tensor = self.fc(self.flatten(self.average(x)))
        return logits


def resnet18(input_shape: Shape, classes: int, width: float = 1.0) -> nn.Module:
    """ResNet-18 for images from 8x8 up; 64 * width channels in the first stage.

    Raises ModelError for inputs that are no such images.
    """
    return _ResNet18(image_shape(input_shape, 8, "resnet18")[0], classes, width)
