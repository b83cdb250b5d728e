"""docs/devices.md: its example files are read as they stand there."""

import re
from pathlib import Path

import numpy as np
import pytest

from fedsparse.devices import mixture, traces
from fedsparse.devices.profile import Profile

PAGE = (Path(__file__).parents[2] / "docs" / "devices.md").read_text(encoding="utf-8")
BLOCKS = re.findall(r"```(?:toml)?\n(.*?)```", PAGE, re.DOTALL)


def example(tmp_path, start, name):
    (text,) = [block for block in BLOCKS if block.startswith(start)]
    path = tmp_path / name
    path.write_text(text)
    return path


def test_every_key_of_a_profile_is_explained():
    for key in Profile.model_fields:
        assert f"`{key}`" in PAGE, key


def test_the_examples_of_a_profile_and_a_fleet_are_read(tmp_path):
    (own,) = mixture.read(example(tmp_path, "base", "own.toml")).profiles
    assert own.sources["dense_flops"].startswith("measured: ")
    fleet = mixture.read(example(tmp_path, 'name = "ours"', "fleet.toml"))
    assert fleet.shares == (0.75, 0.25)
    assert fleet.profiles[1].dense_flops == 3e9


def test_the_examples_of_traces_are_read(tmp_path):
    network = traces.read_network(example(tmp_path, "client,seconds", "network.csv"))
    assert network.of(0).up.seconds(15_250_000, 0.0) == pytest.approx(90.5, rel=1e-9)
    speeds = traces.read_speeds(example(tmp_path, "client,computation", "devices.csv"))
    flops, bandwidth = speeds.of(np.array([0]))
    assert flops == pytest.approx(1.8e9 / (3 * 75.0 / 1000), rel=1e-9)
    assert bandwidth == pytest.approx(9600 * 1000 / 8, rel=1e-9)
    hours = traces.read_presence(example(tmp_path, "client,active", "hours.csv")).of(0)
    assert [hours.available(second) for second in (0, 28800, 79200, 86400)] == [1, 0, 1, 1]
