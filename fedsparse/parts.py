"""Which of a model's tensors travel under a rule, by their names alone.

What travels may also be several copies of the model, each with its number before its names.
"""

from collections.abc import Mapping
from typing import TypeVar

from fedsparse.errors import ConfigError, did_you_mean

T = TypeVar("T")
COPIES = "copies-"


def copied(number: int, name: str) -> str:
    """Return the name of a tensor in one copy of the model."""
    return f"{number}.{name}"


def copies(whole: Mapping[str, T], rule: str) -> dict[str, T] | None:
    """Return what stands for a whole model, as often as a rule `copies-M` says; None for others."""
    if not rule.startswith(COPIES) or not rule.removeprefix(COPIES).isdecimal():
        return None
    count = int(rule.removeprefix(COPIES))
    return {copied(n, name): value for n in range(count) for name, value in whole.items()}


def chosen(names: tuple[str, ...], head: str, norms: tuple[str, ...], rule: str) -> tuple[str, ...]:
    """Return the names of a part's tensors, in state-dict order; all of them for ''.

    The last layer's begin with `head`, BatchNorm's with one of `norms`. Raises ConfigError for a
    rule that is none (`models.part` says which there are), or a part that the model lacks.
    """
    if rule == "":
        return names
    if rule == "none":
        return ()
    if rule in ("head", "body"):
        found = tuple(n for n in names if n.startswith(head) == (rule == "head"))
        if not found or len(found) == len(names):
            raise ConfigError(
                f"the model is all one layer and has no {rule} of its own; choose a deeper "
                "model.name, or another strategy"
            )
        return found
    if rule == "unnormalised":
        if not norms:
            raise ConfigError(
                "the model has no BatchNorm to keep personal; choose a model.name with one, such "
                "as cnn, or another strategy"
            )
        return tuple(n for n in names if not n.startswith(norms))
    rules = ("head", "body", "unnormalised", "none", f"{COPIES}2")
    raise ConfigError(f"unknown part of a model '{rule}'{did_you_mean(rule, rules)}")
