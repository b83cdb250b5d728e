"""The thin app that `flwr run` ships: one pyproject.toml, the packages installed at both ends.

Flower ships at most 10 MiB of sources and lets a run change only keys that stand in the app,
so every key of the configuration that has a value is written out.
"""

import re
from collections.abc import Mapping
from importlib.resources import files
from pathlib import Path
from string import Template
from typing import Any

import tomli_w

from fedsparse.config import Config
from fedsparse.errors import ConfigError
from fedsparse.runs.atomic import new_folder, write_file, writing
from simulations.deployment.certificates import write_public

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


def init_app(folder: Path, config: Config) -> None:
    """Write an app of one's own to change: configuration, and where client and server are made.

    Whole or not at all; raises RunFolderError where something is there, ConfigError for a value
    that Flower cannot carry.
    """
    package = package_of(folder.name)
    tree = described(config)
    tree["project"]["name"] = package.replace("_", "-")
    tree["tool"]["flwr"]["app"]["components"] = {
        "serverapp": f"{package}.server:app",
        "clientapp": f"{package}.client:app",
    }
    words = {"PACKAGE": package, "FOLDER": folder.name, "CLIENTS": config.fleet.clients}
    with new_folder(folder) as made:
        (made / package).mkdir()
        made.chmod(0o755)
        write_public(made / "pyproject.toml", tomli_w.dumps(tree).encode())
        write_public(made / package / "__init__.py", b'"""What `flwr run` ships."""\n')
        for name, place in (("server.py", package), ("client.py", package), ("README.md", ".")):
            text = Template(template(f"app_{name}.txt")).substitute(words)
            write_public(made / place / name, text.encode())


def package_of(name: str) -> str:
    """Return the app's Python package: from the folder's name, with an end no library has."""
    word = re.sub(r"\W+", "_", name.lower(), flags=re.ASCII).strip("_")
    return f"{word or 'fedsparse'}_app" if not word[:1].isdigit() else f"fl_{word}_app"


def template(name: str) -> str:
    """Return the text of a template."""
    place = files("simulations.deployment") / "templates" / name
    return place.read_text(encoding="utf-8")


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
