"""Parts of a model that travel while the rest stays with its client, by name.

A rule looks at the modules alone, so that server and clients agree without a word.
"""

from torch import nn

from fedsparse.errors import ConfigError, did_you_mean
from fedsparse.models.state import get_state, prunable


def part(model: nn.Module, rule: str) -> tuple[str, ...]:
    """Return the names of a part's tensors, in state-dict order; all of them for ''.

    `head` is the last linear or convolutional layer, `body` all before it; `unnormalised` is
    all but BatchNorm's parameters and statistics; `none` is nothing. Raises ConfigError for
    another rule, and for a part that the model does not have.
    """
    names = tuple(get_state(model))
    if rule == "":
        return names
    if rule == "none":
        return ()
    if rule in ("head", "body"):
        prefix = head_prefix(model)
        found = tuple(n for n in names if n.startswith(prefix) == (rule == "head"))
        if not found:
            raise ConfigError(
                f"the model is all one layer and has no {rule} of its own; choose a deeper "
                "model.name, or another strategy"
            )
        return found
    if rule == "unnormalised":
        norms = norm_prefixes(model)
        if not norms:
            raise ConfigError(
                "the model has no BatchNorm to keep personal; choose a model.name with one, such "
                "as cnn, or another strategy"
            )
        return tuple(n for n in names if not n.startswith(norms))
    rules = ("head", "body", "unnormalised", "none")
    raise ConfigError(f"unknown part of a model '{rule}'{did_you_mean(rule, rules)}")


def head_prefix(model: nn.Module) -> str:
    """Return what the names of the last layer's tensors begin with."""
    return prunable(model)[-1].removesuffix("weight")


def norm_prefixes(model: nn.Module) -> tuple[str, ...]:
    """Return what the names of BatchNorm's tensors begin with."""
    norms = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d)
    return tuple(f"{name}." for name, module in model.named_modules() if isinstance(module, norms))
