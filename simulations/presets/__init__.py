"""Presets: whole configurations by name, each a commented TOML file in this folder."""

import tomllib
from importlib.resources import files
from typing import Any

from fedsparse.errors import UnknownNameError


def names() -> list[str]:
    """Return the presets' names."""
    found = (entry.name for entry in files(__package__).iterdir())
    return sorted(name.removesuffix(".toml") for name in found if name.endswith(".toml"))


def text(name: str) -> str:
    """Return a preset's TOML; raises UnknownNameError for a name that is none."""
    if name not in names():
        raise UnknownNameError("preset", name, names())
    return (files(__package__) / f"{name}.toml").read_text(encoding="utf-8")


def load(name: str) -> dict[str, Any]:
    """Return a preset as a nested mapping; raises UnknownNameError for a name that is none."""
    return tomllib.loads(text(name))
