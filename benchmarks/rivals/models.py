"""The models of the comparison, for torch. `fedjax_job.py` has them for JAX.

Each takes (input_shape, classes, width) as fedsparse's models do; the shape is that of
Fashion-MNIST, whatever is asked.
"""

from collections import OrderedDict

from torch import nn


def tiny(input_shape: tuple[int, ...] = (), classes: int = 10, width: float = 1.0) -> nn.Module:
    """Two 3x3 convolutions (8, 16) with pooling, 32 hidden units: 26,698 parameters."""
    return _two_convolutions(8, 16, 3, 32, classes)


def leaf(input_shape: tuple[int, ...] = (), classes: int = 10, width: float = 1.0) -> nn.Module:
    """LEAF's two 5x5 convolutions (32, 64), here with 512 hidden units: 1,663,370 parameters."""
    return _two_convolutions(32, 64, 5, 512, classes)


def resnet18(input_shape: tuple[int, ...] = (), classes: int = 10, width: float = 1) -> nn.Module:
    """fedsparse's ResNet-18 with a quarter of its channels: 701,178 parameters."""
    from fedsparse.models import resnet

    return resnet.resnet18((1, 28, 28), classes, 0.25)


def _two_convolutions(first: int, second: int, kernel: int, hidden: int, classes: int) -> nn.Module:
    return nn.Sequential(
        OrderedDict(
            conv1=nn.Conv2d(1, first, kernel, padding=kernel // 2),
            relu1=nn.ReLU(),
            pool1=nn.MaxPool2d(2),
            conv2=nn.Conv2d(first, second, kernel, padding=kernel // 2),
            relu2=nn.ReLU(),
            pool2=nn.MaxPool2d(2),
            flatten=nn.Flatten(),
            fc1=nn.Linear(second * 7 * 7, hidden),
            relu3=nn.ReLU(),
            fc2=nn.Linear(hidden, classes),
        )
    )


MODELS = {"tiny": tiny, "leaf": leaf, "resnet18": resnet18}


def parameters(model: nn.Module) -> int:
    """Return a model's number of parameters."""
    return sum(parameter.numel() for parameter in model.parameters())
