"""The thin app that `flwr run` ships: one pyproject.toml, the packages installed at both ends.

Flower ships at most 10 MiB of sources and lets a run change only keys that stand in the app,
so every key of the configuration that has a value is written out.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import tomli_w

from fedsparse.config import Config
from fedsparse.errors import ConfigError
from fedsparse.runs.atomic import write_file, writing

NAME, VERSION = "fedsparse-app", "1.0.0"


def write_app(folder: Path, config: Config) -> Path:
    """Write an app that runs `config` and return its pyproject.toml; one there is refused."""
    path = folder / "pyproject.toml"
    if path.exists():
        raise ConfigError(f"'{path}' is there already; choose another folder or remove it")
    with writing(folder):
        folder.mkdir(parents=True, exist_ok=True)
        write_file(path, tomli_w.dumps(described(config)).encode())
    return path


def described(config: Config) -> dict[str, Any]:
    """Return the content of the app's pyproject.toml."""
    app = {
        "publisher": "fedsparse",
        "components": {
            "serverapp": "strategies.server_app:app",
            "clientapp": "clients.client_app:app",
        },
        "config": sayable(config.model_dump()),
    }
    project = {
        "name": NAME,
        "version": VERSION,
        "description": "A run of fedsparse, which is installed at the server and at every node",
        "license": "Apache-2.0",
        "dependencies": ["fedsparse"],
    }
    return {"project": project, "tool": {"flwr": {"app": app}}}


def sayable(tree: Mapping[str, Mapping[str, Any]]) -> dict[str, dict[str, Any]]:
    """Return the keys that have a value; raises ConfigError for one that Flower cannot carry."""
    found: dict[str, dict[str, Any]] = {}
    for section, values in tree.items():
        known = {key: value for key, value in values.items() if value is not None}
        for key, value in known.items():
            if not isinstance(value, bool | int | float | str):
                raise ConfigError(
                    f"{section}.{key} = {value!r}: Flower carries numbers, texts and yes or no; "
                    "leave it out, or simulate with `fedsparse run`"
                )
        if known:
            found[section] = known
    return found
