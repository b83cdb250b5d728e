"""Parts of a model that travel while the rest stays with its client, by name.

A rule looks at the modules alone, so that server and clients agree without a word. What travels
may also be several copies of the model, each with its number before its names.
"""

from collections.abc import Mapping
from typing import TypeVar

from torch import nn

from fedsparse.models.state import get_state, prunable
from fedsparse.parts import chosen, copies
from fedsparse.parts import copied as copied

T = TypeVar("T")
Shape = tuple[int, ...]


def part_shapes(model: nn.Module, rule: str) -> dict[str, Shape]:
    """Return names and shapes of what travels under a rule, as `part` orders them.

    `copies-M` is the whole model M times, with names such as `0.conv1.weight`. Raises
    ConfigError as `part` does.
    """
    shapes = {name: tuple(value.shape) for name, value in get_state(model).items()}
    if (several := copies(shapes, rule)) is not None:
        return several
    return {name: shapes[name] for name in part(model, rule)}


def copy_of(number: int, state: Mapping[str, T]) -> dict[str, T]:
    """Return one copy of the model from the state of all."""
    prefix = copied(number, "")
    return {
        name.removeprefix(prefix): value for name, value in state.items() if name.startswith(prefix)
    }


def part(model: nn.Module, rule: str) -> tuple[str, ...]:
    """Return the names of a part's tensors, in state-dict order; all of them for ''.

    `head` is the last linear or convolutional layer, `body` all before it; `unnormalised` is
    all but BatchNorm's parameters and statistics; `none` is nothing. Raises ConfigError for
    another rule, and for a part that the model does not have.
    """
    head = head_prefix(model) if rule in ("head", "body") else ""
    return chosen(tuple(get_state(model)), head, norm_prefixes(model), rule)


def head_prefix(model: nn.Module) -> str:
    """Return what the names of the last layer's tensors begin with."""
    return prunable(model)[-1].removesuffix("weight")


def norm_prefixes(model: nn.Module) -> tuple[str, ...]:
    """Return what the names of BatchNorm's tensors begin with."""
    norms = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d)
    return tuple(f"{name}." for name, module in model.named_modules() if isinstance(module, norms))
