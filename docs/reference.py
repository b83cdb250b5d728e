"""Pages that the code writes: every configuration key, every command.

mkdocs calls these hooks at each build, so neither page can go stale.
"""

from collections.abc import Iterator
from typing import Annotated, Any, Literal, get_args, get_origin

import annotated_types
import click
import tomli_w
from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files
from pydantic import BaseModel
from pydantic.fields import FieldInfo

from fedsparse import cli, registry
from fedsparse.config import StrategySettings, sections, settings_of

MARK = "<!-- every command -->"


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Add the page of configuration keys."""
    files.append(File.generated(config, "configuration.md", content=configuration()))
    return files


def on_page_markdown(markdown: str, **_: Any) -> str:
    """Write every command's help where the commands' page asks for it."""
    return markdown.replace(MARK, commands()) if MARK in markdown else markdown


def configuration() -> str:
    """Return the page of configuration keys, from the models that check them."""
    parts = [
        "# Configuration\n",
        "A configuration is TOML: sections with keys. `fedsparse run` takes it from a preset or "
        "a file, then `--set SECTION.KEY=VALUE` on top. Unknown keys and values out of range are "
        "errors. What a run used, with every default, stands in its `config.toml`.\n",
    ]
    for section, model in sections(StrategySettings).items():
        parts += [f"## `[{section}]`\n", *_about(model), *_table(model)]
        if section == "strategy":
            parts.append("The rest are the strategy's own:\n")
            for name in registry.BUILTIN["strategies"]:
                parts += [f'### `strategy.name = "{name}"`\n', *_table(settings_of(name), model)]
    return "\n".join(parts)


def _about(model: type[BaseModel]) -> Iterator[str]:
    text = " ".join((model.__doc__ or "").split())
    _head, colon, rest = text.partition(": ")
    if colon:
        yield f"{rest[0].upper()}{rest[1:]}\n"


def _table(model: type[BaseModel], base: type[BaseModel] | None = None) -> Iterator[str]:
    """Return a table of keys; with `base`, of those that differ from it."""
    yield "| key | values | default | |\n| --- | --- | --- | --- |"
    for name, field in model.model_fields.items():
        if base is None or name not in base.model_fields or _differs(field, base, name):
            cells = (f"`{name}`", _values(field), _default(field), field.description or "")
            yield "| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |"
    yield ""


def _differs(field: FieldInfo, base: type[BaseModel], name: str) -> bool:
    return bool(field.default != base.model_fields[name].default)


def _default(field: FieldInfo) -> str:
    if field.default is None:
        return "unset"
    return f"`{tomli_w.dumps({'': field.default}).partition(' = ')[2].strip()}`"


def _values(field: FieldInfo) -> str:
    """Return what a key takes: its choices, or its type and bounds."""
    kind = field.annotation
    choices = [c for each in (kind, *get_args(kind)) for c in _choices(each)]
    if choices:
        return ", ".join(f"`{choice}`" for choice in choices)
    names = {bool: "true or false", int: "integer", float: "number", str: "text"}
    bare = [get_args(k)[0] if get_origin(k) is Annotated else k for k in (kind, *get_args(kind))]
    kinds = [k for k in bare if k in names]
    words = " or ".join(names[k] for k in kinds)
    return ", ".join([words, *_bounds(field)])


def _choices(kind: Any) -> tuple[Any, ...]:
    return get_args(kind) if get_origin(kind) is Literal else ()


def _bounds(field: FieldInfo) -> Iterator[str]:
    for rule in _rules(field.metadata):
        if isinstance(rule, annotated_types.Ge):
            yield f"≥ {rule.ge}"
        elif isinstance(rule, annotated_types.Gt):
            yield f"> {rule.gt}"
        elif isinstance(rule, annotated_types.Le):
            yield f"≤ {rule.le}"
        elif isinstance(rule, annotated_types.Lt):
            yield f"< {rule.lt}"


def _rules(metadata: list[Any]) -> Iterator[Any]:
    """Yield single rules, also those inside a field that stands inside a type."""
    for rule in metadata:
        if isinstance(rule, FieldInfo):
            yield from _rules(rule.metadata)
        else:
            yield rule


def commands() -> str:
    """Return every command's own help."""
    parts = []
    for name in cli.COMMANDS:
        context = click.Context(cli.main, info_name="fedsparse")
        command = cli.main.get_command(context, name)
        assert command is not None
        own = click.Context(command, info_name=name, parent=context, max_content_width=88)
        parts.append(f"## {name}\n\n```text\n{command.get_help(own)}\n```\n")
    return "\n".join(parts)
