"""The configuration: checked, complete, the same after every journey."""

import json
import tomllib

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import Field

from fedsparse import config
from fedsparse.config import StrategySettings, override, resolve
from fedsparse.errors import ConfigError, UnknownNameError
from simulations import presets
from simulations.variants import OWN

KEYS = config.keys(config.settings_of("fedtiny"))


def test_defaults_are_complete():
    found = resolve({}).model_dump()
    sections = {
        "run",
        "data",
        "model",
        "strategy",
        "client",
        "fleet",
        "engine",
        "forget",
        "attack",
    } | {"robust", "privacy", "secure"}
    assert set(found) == sections
    assert found["strategy"]["name"] == "fedtiny"
    assert {f"{s}.{k}" for s, values in found.items() for k in values} == set(KEYS)


@pytest.mark.parametrize("name", presets.names())
def test_presets_resolve_and_travel_unchanged(name):
    tree = presets.load(name)
    whole = resolve({section: tree[section] for section in tree if section not in OWN})
    assert resolve(tomllib.loads(whole.to_toml())) == whole
    assert config.from_json(whole.to_json()) == whole
    assert json.loads(whole.to_json()) == whole.model_dump()


def test_an_unknown_preset_names_the_nearest():
    with pytest.raises(UnknownNameError, match=r"unknown preset 'demmo'; did you mean 'demo'\?"):
        presets.load("demmo")


def test_what_came_from_the_server_is_checked_in_one_line():
    with pytest.raises(ConfigError, match=r"of the server is not valid: client\.lr = -1") as error:
        config.from_json('{"client": {"lr": -1}}')
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("assignment", "value"),
    [
        ("strategy.density=0.05", 0.05),
        ("strategy.density = 1", 1),
        ("data.path=some/where", "some/where"),
        ('data.path="some where"', "some where"),
        ("data.path=a=b#c", "a=b#c"),
        ("client.keep_optimizer=true", True),
        ("data.path=", ""),
    ],
)
def test_values_are_toml_or_plain_text(assignment, value):
    section, _, key = assignment.partition("=")[0].strip().partition(".")
    assert override({}, [assignment]) == {section: {key: value}}


def test_later_assignments_win_and_the_tree_is_left_alone():
    tree = {"run": {"rounds": 3}}
    assert override(tree, ["run.rounds=4", "run.rounds=5", "run.seed=1"]) == {
        "run": {"rounds": 5, "seed": 1}
    }
    assert tree == {"run": {"rounds": 3}}


def test_another_strategy_leaves_the_keys_of_the_one_before_behind():
    tree = {"strategy": {"name": "fedtiny", "density": 0.1, "candidates": 4, "values": "f16"}}
    static = override(tree, ["strategy.criterion=snip", "strategy.name=static"])["strategy"]
    assert static == {"name": "static", "density": 0.1, "values": "f16", "criterion": "snip"}
    dense = override(tree, ["strategy.name=fedavg"])["strategy"]
    assert dense == {"name": "fedavg", "values": "f16"}
    spaced = override(tree, ["strategy.density=1", "strategy.name = fedavg"])["strategy"]
    assert spaced == {"name": "fedavg", "values": "f16", "density": 1}


def test_another_strategy_hides_no_typing_error():
    tree = {"strategy": {"name": "fedtiny", "densty": 0.1}}
    with pytest.raises(ConfigError, match=r"strategy\.densty"):
        resolve(override(tree, ["strategy.name=static"]))


def test_a_strategy_of_others_takes_its_own_keys():
    name = "flwr.serverapp.strategy:FedAdam"
    tree = override({"strategy": {"candidates": 3}}, [f"strategy.name={name}", "strategy.eta=0.1"])
    assert tree["strategy"] == {"name": name, "eta": 0.1}
    assert resolve(tree).strategy == {"name": name, "density": 1.0, "values": "f32", "eta": 0.1}


class PluginSettings(StrategySettings):
    depth: int = Field(default=1, ge=1)


class Plugin:
    Settings = PluginSettings


def test_a_plug_in_s_keys_are_as_well_guarded():
    name = f"{__name__}:Plugin"
    assert resolve({"strategy": {"name": name, "depth": 2}}).strategy["depth"] == 2
    with pytest.raises(ConfigError, match=r"strategy\.depth = 0: must be greater than or equal"):
        resolve({"strategy": {"name": name, "depth": 0}})
    with pytest.raises(ConfigError, match=r"'strategy\.dept'; did you mean 'strategy\.depth'\?"):
        resolve({"strategy": {"name": name, "dept": 2}})


def test_how_clients_are_trained_can_be_said():
    found = resolve(override({}, ["client.precision=bf16", "client.sparse_conv_below=0"]))
    assert (found.client.backend, found.client.precision) == ("auto", "bf16")
    assert (found.client.sparse_linear_below, found.client.sparse_conv_below) == (None, 0)
    with pytest.raises(ConfigError, match=r"client\.sparse_linear_below = 1\.5: must be less"):
        resolve(override({}, ["client.sparse_linear_below=1.5"]))
    with pytest.raises(ConfigError, match=r"engine\.cohort = 0: must be greater"):
        resolve(override({}, ["engine.cohort=0"]))
    with pytest.raises(ConfigError, match=r"engine\.cohort = 8: .* set engine\.device = cuda"):
        resolve(override({}, ["engine.cohort=8"]))


def test_native_training_is_of_the_cpu():
    assert resolve(override({}, ["engine.device=cuda"])).engine.device == "cuda"
    with pytest.raises(ConfigError, match=r"set it to torch for engine\.device = cuda"):
        resolve(override({}, ["engine.device=cuda", "client.backend=native"]))


def test_a_byte_order_mark_is_no_mistake(tmp_path):
    path = tmp_path / "mine.toml"
    path.write_text("[run]\nseed = 4", encoding="utf-8-sig")
    assert config.read_toml(path) == {"run": {"seed": 4}}


@pytest.mark.parametrize("value", ["true", "[1]", "{a=1}", "2020-01-01", "nan", "'1'"])
@pytest.mark.parametrize("key", ["run.rounds", "client.lr", "fleet.clients_per_round"])
def test_no_value_is_bent_into_another_type(key, value):
    with pytest.raises(ConfigError, match=rf"^{key} = "):
        resolve(override({}, [f"{key}={value}"]))


@settings(max_examples=200, deadline=None)
@given(st.sampled_from(KEYS), st.text(max_size=20).filter(lambda text: ":" not in text))
def test_any_text_is_a_value_or_one_error(key, text):
    try:
        found = resolve(override({}, [f"{key}={text}"]))
    except ConfigError:
        return
    assert resolve(tomllib.loads(found.to_toml())) == found
