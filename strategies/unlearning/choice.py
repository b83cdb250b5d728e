"""Which methods can forget what, and the few that are tried where none was named.

A method says of itself what it can forget; names are those of `fedsparse list methods`.
"""

from collections.abc import Sequence
from functools import cache
from typing import Any

from fedsparse import registry

TRIED: dict[str, tuple[str, ...]] = {
    "client": ("fine-tuning", "l1-sparse", "prune-finetune"),
    "class": ("l1-sparse", "prune-finetune", "neggrad"),
    "samples": ("fine-tuning", "l1-sparse", "prune-finetune"),
}
"""What `auto` tries, by what is forgotten: methods on retained data alone, and of a class, which
such methods forget last, one that works on the data to be forgotten."""


def fitting(kind: str) -> list[str]:
    """Return the methods that can forget a client, a class or samples, in alphabetical order."""
    return [name for name in sorted(registry.names("methods")) if fits(_method(name), kind)]


def fits(method: Any, kind: str | None) -> bool:
    """Tell whether a method can forget such a target; a forgotten client is never contacted."""
    return kind in method.targets and not (kind == "client" and method.needs_forgotten)


def tried(kind: str) -> Sequence[str]:
    """Return the methods that `auto` tries for a kind of target, cheapest first."""
    return TRIED[kind]


@cache
def _method(name: str) -> Any:
    return registry.load("methods", name)
