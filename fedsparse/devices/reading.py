"""Reading of files that describe devices, and refusals in one line.

TOML and JSON give the same mapping. Each complaint names the file, the key, the value
and the remedy.
"""

import json
import math
import tomllib
from collections.abc import Mapping
from pathlib import Path
from typing import Any, TypeVar

from pydantic import BaseModel, ConfigDict, ValidationError

from fedsparse.devices.units import remedy, unit_of
from fedsparse.errors import ConfigError, FedSparseError, did_you_mean

Model = TypeVar("Model", bound=BaseModel)

BOUNDS = {"greater_than", "greater_than_equal", "less_than", "less_than_equal"}
WORDING = {
    "dict_type": "must be a table of keys",
    "model_type": "must be a table of keys",
    "list_type": "must be a list of tables, such as [[device]]",
    "string_type": "must be a text",
    "string_too_short": "must not be empty",
}


class Described(BaseModel):
    """Base of what a file describes: unknown keys are errors, values never change."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)


def text_of(path: Path, what: str, error: type[FedSparseError]) -> str:
    """Return a file's text; raises `error` when it is missing, a folder, or no text."""
    try:
        text = path.read_text(encoding="utf-8-sig")
    except FileNotFoundError:
        raise error(f"no {what} '{path}'; give the path of a file that exists") from None
    except IsADirectoryError:
        raise error(f"'{path}' is a folder; give the path of a {what}") from None
    except UnicodeDecodeError:
        raise error(f"'{path}' is not a text file; give the path of a {what}") from None
    except (OSError, ValueError) as reason:
        raise error(f"'{path}' cannot be read: {reason}; check the path") from None
    if not text.strip():
        raise error(f"'{path}' is empty; give the path of a {what}")
    return text


def mapping_of(path: Path, what: str) -> dict[str, Any]:
    """Return what a TOML or JSON file holds; raises ConfigError when it is neither."""
    if path.suffix.lower() not in {".toml", ".json"}:
        raise ConfigError(f"'{path}' ends in '{path.suffix}'; a {what} ends in .toml or .json")
    text = text_of(path, what, ConfigError)
    if path.suffix.lower() == ".toml":
        try:
            return tomllib.loads(text)
        except (ValueError, RecursionError) as error:
            raise ConfigError(f"'{path}' is not valid TOML: {error}") from None
    return json_of(text, path, ConfigError)


def json_of(text: str, path: Path, error: type[FedSparseError]) -> dict[str, Any]:
    """Return the object of a JSON text; raises `error` for anything else."""
    try:
        found = json.loads(text, object_pairs_hook=_once)
    except (ValueError, RecursionError) as reason:
        raise error(f"'{path}' is not valid JSON: {reason}") from None
    if not isinstance(found, dict):
        raise error(f"'{path}' holds a {type(found).__name__}; it must be one JSON object")
    return found


def _once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        names = [name for name, _ in pairs]
        twice = next(name for name in names if names.count(name) > 1)
        raise ValueError(f"{twice!r} stands there twice; keep one")
    return found


def checked(model: type[Model], data: Mapping[str, Any], where: str) -> Model:
    """Return `data` as a `model`; raises ConfigError, one line that begins with `where`."""
    try:
        return model.model_validate(dict(data))
    except ValidationError as error:
        raise ConfigError(f"{where}: {_explained(error, model)}") from None


def _explained(error: ValidationError, model: type[BaseModel]) -> str:
    """Turn the complaint that explains most into one line: unknown keys come first."""
    complaints = error.errors(include_url=False)
    first = min(complaints, key=lambda each: each["type"] != "extra_forbidden")
    kind, value = first["type"], first["input"]
    path = [str(part) for part in first["loc"]]
    key = ".".join(path)
    name = next((part for part in reversed(path) if not part.isdigit()), "")
    if kind == "extra_forbidden":
        hint = did_you_mean(path[-1], _fields(model, path[:-1]))
        return f"unknown key {key!r}{hint}"
    if not key:
        return _plain(first["msg"])
    if kind in WORDING or (name == "sparse_curve" and kind != "value_error"):
        what = WORDING.get(kind, "must be a list of pairs [density, FLOP/s]")
        return f"{key} = {shown(value)}: {what}"
    unit = unit_of(name)
    if kind == "missing":
        return f"{key} is missing; give it{f' as a number of {unit}' if unit else ''}"
    if kind == "float_type" or (isinstance(value, float) and math.isnan(value)):
        return f"{key} = {shown(value)}: {remedy(name, value)}"
    tail = f" {unit}" if unit and kind in BOUNDS else ""
    return f"{key} = {shown(value)}: {_plain(first['msg'])}{tail}"


def shown(value: object) -> str:
    """Return a value as a message quotes it: on one line, and not too long."""
    text = repr(value)
    return text if len(text) <= 60 else f"{text[:57]}..."


def _plain(message: str) -> str:
    """Shorten pydantic's complaint to what the value must be."""
    plain = message.removeprefix("Value error, ").replace("Input should be", "must be")
    return plain[:1].lower() + plain[1:]


def _fields(model: type[BaseModel], path: list[str]) -> list[str]:
    """Return the keys of the table at `path` below a model."""
    for part in path:
        annotation = model.model_fields[part].annotation if part in model.model_fields else None
        if isinstance(annotation, type) and issubclass(annotation, BaseModel):
            model = annotation
    return list(model.model_fields)
