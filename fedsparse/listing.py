"""`fedsparse list`: what can be named in a configuration, with a line on each.

Lines are the first of a docstring, read from source without importing it, so that a
list is quick and a package that cannot be imported is listed all the same.
"""

import ast
import importlib
import importlib.util
import json
import tomllib
from functools import cache
from pathlib import Path
from typing import Any

import click

from fedsparse import registry
from fedsparse.errors import UnknownNameError

TABLES = {
    "criteria": "fedsparse.sparsity.criteria:CRITERIA",
    "allocations": "fedsparse.sparsity.allocation:ALLOCATIONS",
}
"""Kinds that are a table {name: function} in a module of fedsparse."""

GLOBAL = {"global": "All layers ranked together; no share is fixed beforehand."}
DEVICES = Path(__file__).parent / "devices"
KINDS = (*registry.BUILTIN, "presets", *TABLES, "devices")


class _Kind(click.Choice[str]):
    """A kind; of one that is not known, the nearest is proposed."""

    def get_invalid_choice_message(self, value: Any, ctx: click.Context | None) -> str:
        return str(UnknownNameError("kind", str(value), KINDS))


@click.command(
    "list",
    short_help="List the names that a configuration can use.",
    epilog="\b\nExamples:\n  fedsparse list\n  fedsparse list strategies\n"
    "  fedsparse list devices\n  fedsparse list models --json\n",
)
@click.argument("kind", type=_Kind(KINDS), required=False, metavar="[KIND]")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")
def list_(kind: str | None, as_json: bool) -> None:
    """List the names that a configuration can use, of one KIND or of all.

    Kinds: strategies, methods (of unlearning), programs, models, datasets, presets,
    criteria, allocations, devices. Of devices, a list of their own shows the figures,
    and --json their sources too.
    """
    if as_json:
        everything = {each: _for_json(each) for each in ([kind] if kind else KINDS)}
        click.echo(json.dumps(everything[kind] if kind else everything, allow_nan=False))
        return
    if kind == "devices":
        click.echo("\n".join(importlib.import_module("fedsparse.devices.table").lines()))
        return
    found = {each: describe(each) for each in ([kind] if kind else KINDS)}
    for each, lines in found.items():
        if not kind:
            click.echo(f"{each}:")
        width = max(map(len, lines), default=0)
        for name, line in lines.items():
            click.echo(f"{'' if kind else '  '}{name:<{width}}  {line}".rstrip())


def _for_json(kind: str) -> dict[str, Any]:
    """Return what is told of a kind's names: a line each, or all figures of devices."""
    if kind == "devices":
        figures: dict[str, Any] = importlib.import_module("fedsparse.devices.table").figures()
        return figures
    return {**describe(kind)}


def describe(kind: str) -> dict[str, str]:
    """Return every name of a kind with a line on it, without importing what it names."""
    if kind == "presets":
        presets = importlib.import_module("simulations.presets")
        return {name: _first_comment(presets.text(name)) for name in presets.names()}
    if kind == "devices":
        files = sorted(DEVICES.glob("profiles/*.toml")) + sorted(DEVICES.glob("fleets/*.toml"))
        texts = {path.stem: path.read_text(encoding="utf-8") for path in files}
        return {name: tomllib.loads(text)["description"] for name, text in texts.items()}
    if kind in TABLES:
        return _table(TABLES[kind]) | (GLOBAL if kind == "allocations" else {})
    return {name: _docstring(path) for name, path in sorted(registry.names(kind).items())}


def _first_comment(text: str) -> str:
    return text.splitlines()[0].removeprefix("#").strip()


@cache
def _tree(module: str) -> ast.Module | None:
    """Return the source of a module, parsed; None when it is not to be found."""
    top, *rest = module.split(".")
    spec = importlib.util.find_spec(top)
    if spec is None or not spec.origin:
        return None
    place = Path(spec.origin)
    if rest:
        place = place.parent.joinpath(*rest)
        place = place / "__init__.py" if place.is_dir() else place.with_suffix(".py")
    return ast.parse(place.read_text(encoding="utf-8")) if place.is_file() else None


def _docstring(path: str) -> str:
    """Return the first line of the docstring of `module:attribute`."""
    module, _, attribute = path.partition(":")
    tree = _tree(module)
    return f"not installed ({module})" if tree is None else _line_of(tree, attribute)


def _line_of(tree: ast.Module, name: str) -> str:
    for node in tree.body:
        if isinstance(node, ast.ClassDef | ast.FunctionDef) and node.name == name:
            return (ast.get_docstring(node) or "").partition("\n")[0]
    return ""


def _table(path: str) -> dict[str, str]:
    """Return the names of a table `NAME = {"name": function}` with the functions' lines."""
    module, _, attribute = path.partition(":")
    tree = _tree(module)
    if tree is None:
        return {}
    for node in tree.body:
        if (
            isinstance(node, ast.AnnAssign)
            and isinstance(node.target, ast.Name)
            and node.target.id == attribute
            and isinstance(node.value, ast.Dict)
        ):
            entries = zip(node.value.keys, node.value.values, strict=True)
            return {
                str(key.value): _line_of(tree, value.id)
                for key, value in entries
                if isinstance(key, ast.Constant) and isinstance(value, ast.Name)
            }
    return {}
