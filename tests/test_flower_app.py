"""`flwr run .` means the preset `demo`: the same keys, the same run, apps that load."""

import tomllib
from pathlib import Path

import pytest
from flwr.clientapp import ClientApp
from flwr.common.config import flatten_dict, validate_config
from flwr.serverapp import ServerApp

import fedsparse
from fedsparse import config
from fedsparse.errors import ConfigError
from simulations import presets
from strategies.server_app import nested

PYPROJECT = tomllib.loads((Path(__file__).parents[1] / "pyproject.toml").read_text())
APP = PYPROJECT["tool"]["flwr"]["app"]


def load(reference: str):
    module, _, attribute = reference.partition(":")
    return getattr(__import__(module, fromlist=[attribute]), attribute)


def test_flower_accepts_the_project():
    valid, errors, _ = validate_config(PYPROJECT)
    assert valid, errors


def test_components_are_apps():
    assert isinstance(load(APP["components"]["serverapp"]), ServerApp)
    assert isinstance(load(APP["components"]["clientapp"]), ClientApp)


def test_its_keys_are_the_demo_preset():
    flat = flatten_dict(APP["config"])
    assert all("." in key for key in flat)
    assert config.resolve(nested(flat)) == config.resolve(presets.load("demo"))


def test_every_set_key_stands_there_for_run_config_to_change():
    demo = config.resolve(presets.load("demo")).model_dump()
    del demo["engine"]  # Flower itself carries the messages
    keys = {f"{s}.{k}" for s, found in demo.items() for k, v in found.items() if v is not None}
    assert keys <= set(flatten_dict(APP["config"]))


def test_the_version_is_written_once_and_copied_right():
    assert PYPROJECT["project"]["version"] == fedsparse.__version__


def test_run_config_changes_one_key():
    flat = {**flatten_dict(APP["config"]), "strategy.density": 0.05}
    changed = config.resolve(nested(flat))
    expected = config.override(presets.load("demo"), ["strategy.density=0.05"])
    assert changed == config.resolve(expected)


def test_a_key_of_nobody_is_refused():
    flat = {**flatten_dict(APP["config"]), "strategy.densty": 0.05}
    with pytest.raises(ConfigError, match=r"strategy\.density"):
        config.resolve(nested(flat))
