"""Fleets: who has what device by seed, what it costs there, and when it can be asked."""

import math
from dataclasses import fields

import numpy as np
import pytest

from fedsparse import seeds
from fedsparse.config import FleetConfig
from fedsparse.devices import load, mixture
from fedsparse.devices.fleet import BLOCK, OWN_COLUMNS
from fedsparse.errors import ConfigError, UnknownNameError

OWN = """
name = "own"
[[device]]
name = "one"
share = 3
dense_flops = 2e9
sparse_efficiency = 0.25
memory_bytes = 1e6
storage_bytes = 1e9
up_bytes_per_second = 1e3
down_bytes_per_second = 4e3
latency_seconds = 0.5
compute_watts = 3
radio_watts = 2
battery_joules = 100
dropout = 0.2
availability = {fraction = 0.5, amplitude = 0.4, peak_hour = 6.0, window_seconds = 900.0}
[[device]]
base = "ideal"
name = "other"
share = 1
"""


def fleet(tmp_path, text=OWN, seed=7, clients=5000, **settings):
    path = tmp_path / "own.toml"
    path.write_text(text)
    return load(FleetConfig(profile=str(path), clients=clients, **settings), seed)


# -- costs worked out by hand ------------------------------------------------------------------


def test_seconds_and_joules_of_a_device(tmp_path):
    device = fleet(tmp_path, OWN.partition("[[device]]\nbase")[0]).device(0)
    assert (device.client, device.profile) == (0, "one")
    assert device.compute_seconds(1e9, 0.1) == pytest.approx(2.0, rel=1e-9)
    assert device.compute_seconds(1e9, 0.5) == pytest.approx(1.0, rel=1e-9)
    assert device.compute_seconds(0, 0.5) == 0
    assert device.download_seconds(6000, at=123.0) == pytest.approx(2.0, rel=1e-9)
    assert device.upload_seconds(6000, at=123.0) == pytest.approx(6.5, rel=1e-9)
    assert device.joules(10.0, 4.0) == pytest.approx(38.0, rel=1e-9)
    assert (device.memory_bytes, device.storage_bytes) == (1e6, 1e9)
    assert (device.battery_joules, device.dropout) == (100, 0.2)


def test_an_ideal_device_takes_no_time_and_no_energy():
    device = load(FleetConfig(profile="ideal"), 0).device(3)
    assert device.compute_seconds(1e15, 0.01) == 0
    assert device.download_seconds(10**12, 0.0) == device.upload_seconds(10**12, 0.0) == 0
    assert device.joules(5.0, 5.0) == 0
    assert device.battery_joules is None
    assert device.available(12345.6)


def test_factors_of_the_spread_scale_seconds(tmp_path):
    spread = "[spread]\ncompute = 0.5\nbandwidth = 0.5\nmemory = 0.5\nlatency = 0.5\n"
    text = OWN.partition("[[device]]\nbase")[0] + spread
    device = fleet(tmp_path, text).device(11)
    speed = device.dense_flops / 2e9
    assert speed != 1
    assert device.compute_seconds(1e9, 0.1) == pytest.approx(2.0 / speed, rel=1e-9)
    bandwidth = device.up_bytes_per_second / 1e3
    assert device.down_bytes_per_second / 4e3 == pytest.approx(bandwidth, rel=1e-12)
    expected = device.latency_seconds + 6.0 / bandwidth
    assert device.upload_seconds(6000, 0.0) == pytest.approx(expected, rel=1e-9)


# -- draws ---------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["mixed", "phones", "raspberry-pi-5"])
def test_one_client_and_all_clients_agree_to_the_bit(name):
    wanted = FleetConfig(profile=name, clients=2 * BLOCK + 10)
    alone, found = (load(wanted, 5) for _ in range(2))
    columns = found.columns()
    assert len(columns.profile) == 2 * BLOCK + 10
    keys = [f.name for f in fields(columns) if f.name not in OWN_COLUMNS]
    for client in (0, 1, BLOCK - 1, BLOCK, 2 * BLOCK - 1, 2 * BLOCK, 2 * BLOCK + 9):
        device = alone.device(client)
        assert device == found.device(client)
        assert device.presence.shift == columns.shift_hours[client]
        assert found.profiles[columns.profile[client]].name == device.profile
        for key in keys:
            assert getattr(columns, key)[client] == getattr(device, key), key
        battery = math.inf if device.battery_joules is None else device.battery_joules
        assert columns.battery_joules[client] == battery


def test_a_client_keeps_its_device_in_a_larger_fleet():
    few = load(FleetConfig(profile="mixed", clients=10), 5).columns()
    many = load(FleetConfig(profile="mixed", clients=3000), 5).columns()
    assert np.array_equal(few.dense_flops, many.dense_flops[:10])


def test_another_seed_draws_another_fleet():
    one, other = (load(FleetConfig(profile="mixed", clients=100), seed) for seed in (1, 2))
    assert not np.array_equal(one.columns().profile, other.columns().profile)


def test_shares_are_those_of_the_file(tmp_path):
    columns = fleet(tmp_path, clients=20_000).columns()
    assert np.bincount(columns.profile) / 20_000 == pytest.approx([0.75, 0.25], abs=0.01)
    assert set(columns.battery_joules) == {100, math.inf}


def test_factors_are_log_normal_with_median_one(tmp_path):
    spread = "[spread]\ncompute = 0.3\nbandwidth = 0.8\nmemory = 0.1\nlatency = 0.5\n"
    text = OWN.partition("[[device]]\nbase")[0] + spread
    columns = fleet(tmp_path, text, clients=20_000).columns()
    for values, median, sigma in (
        (columns.dense_flops, 2e9, 0.3),
        (columns.up_bytes_per_second, 1e3, 0.8),
        (columns.memory_bytes, 1e6, 0.1),
        (columns.latency_seconds, 0.5, 0.5),
    ):
        logarithms = np.log(values / median)
        assert np.mean(logarithms) == pytest.approx(0.0, abs=0.03 * sigma)
        assert np.std(logarithms) == pytest.approx(sigma, rel=0.02)
    assert set(columns.storage_bytes) == {1e9}


def test_columns_of_a_million_clients():
    columns = load(FleetConfig(profile="mixed", clients=1_000_000), 0).columns()
    assert all(len(getattr(columns, f.name)) == 1_000_000 for f in fields(columns))
    assert not columns.memory_bytes.flags.writeable


def test_the_runs_dropout_goes_before_the_devices(tmp_path):
    found = fleet(tmp_path, dropout=0.0)
    assert found.device(0).dropout == 0
    assert not found.columns().dropout.any()


# -- availability --------------------------------------------------------------------------


def test_a_device_is_there_by_its_own_draw_of_the_window(tmp_path):
    text = OWN.partition("[[device]]\nbase")[0]
    device = fleet(tmp_path, text, start_hour=22.0).device(4)
    seen = set()
    for window in range(40):
        hour = 22.0 + window * 900 / 3600
        chance = 0.5 * (1 + 0.4 * math.cos(2 * math.pi * (hour - 6.0) / 24))
        there = seeds.stream(7, window, 4, "availability").random() < chance
        assert device.available(window * 900.0) == device.available(window * 900 + 899.9) == there
        seen.add(there)
    assert seen == {True, False}


def test_the_fraction_that_is_there_follows_the_hour(tmp_path):
    found = fleet(tmp_path, OWN.partition("[[device]]\nbase")[0], clients=4000, start_hour=6.0)
    devices = [found.device(client) for client in range(4000)]
    peak = np.mean([device.available(0.0) for device in devices])
    low = np.mean([device.available(12 * 3600.0) for device in devices])
    assert peak == pytest.approx(0.7, abs=0.03)
    assert low == pytest.approx(0.3, abs=0.03)


def test_hours_move_the_peak_of_each_client(tmp_path):
    text = OWN.partition("[[device]]\nbase")[0] + "[spread]\nhours = 3.0\n"
    found = fleet(tmp_path, text, clients=2000)
    shifts = [found.device(client).presence.shift for client in range(2000)]
    assert min(shifts) == pytest.approx(-3.0, abs=0.05)
    assert max(shifts) == pytest.approx(3.0, abs=0.05)
    assert np.mean(shifts) == pytest.approx(0.0, abs=0.15)


def test_what_is_always_there_is_not_drawn(monkeypatch):
    device = load(FleetConfig(profile="raspberry-pi-4"), 0).device(0)
    monkeypatch.setattr(seeds, "stream", None)
    assert device.available(1e6)


# -- what is refused -------------------------------------------------------------------------


def test_a_run_without_a_profile_has_no_fleet():
    with pytest.raises(ConfigError, match=r"fleet\.profile is not set; name a device or a fleet"):
        load(FleetConfig(), 0)


def test_a_file_that_was_changed_is_read_anew_and_is_another_fleet(tmp_path):
    before = fleet(tmp_path)
    assert fleet(tmp_path).digest == before.digest
    after = fleet(tmp_path, OWN.replace("dropout = 0.2", "dropout = 0.3"))
    assert after.digest != before.digest


def test_a_client_that_is_not_there_is_refused():
    found = load(FleetConfig(profile="phones", clients=12), 1)
    for client in (-1, 12):
        with pytest.raises(ConfigError, match=f"client {client}: .* clients 0 to 11"):
            found.device(client)


MEMBER = '[[device]]\nprofile = "laptop"\nshare = 1\n'
MISTAKES = {
    "no name": (MEMBER, r"name is missing"),
    "no share": ('name = "x"\n[[device]]\nprofile = "laptop"\n', r"device 1: share is missing"),
    "zero share": (f'name = "x"\n{MEMBER}'.replace("= 1", "= 0"), r"share = 0: must be greater"),
    "unknown profile": (
        f'name = "x"\n{MEMBER}'.replace("laptop", "lapptop"),
        r"device 1: unknown profile 'lapptop'; did you mean 'laptop'",
    ),
    "twice": (f'name = "x"\n{MEMBER}{MEMBER}', r"profile 'laptop' is there twice"),
    "change beside profile": (
        f'name = "x"\n{MEMBER}dense_flops = 5.0\n',
        r"'dense_flops' beside profile; .* base = \"laptop\"",
    ),
    "unknown spread": (
        f'name = "x"\n{MEMBER}[spread]\nmemoy = 1.0\n',
        r"unknown key 'spread.memoy'; did you mean 'memory'",
    ),
    "negative spread": (
        f'name = "x"\n{MEMBER}[spread]\nmemory = -1.0\n',
        r"spread.memory = -1.0: must be greater than or equal to 0",
    ),
    "inline figures": (
        f'name = "x"\n{MEMBER}[[device]]\nname = "y"\nshare = 1\nbase = "laptop"\n'
        'memory_bytes = "1 GiB"\n',
        r"device 2: memory_bytes = '1 GiB': .* write 1073741824",
    ),
    "misspelt list": (
        f'name = "x"\n{MEMBER}'.replace("[[device]]", "[[devices]]"),
        r"unknown key 'devices'; did you mean 'device'",
    ),
    "no list": ('name = "x"\ndevice = 3\n', r"device = 3: must be a list of tables"),
    "none": ('name = "x"\ndevice = []\n', r"device = \[\]: "),
}


@pytest.mark.parametrize("mistake", MISTAKES)
def test_a_bad_fleet_is_refused_in_one_line(tmp_path, mistake):
    text, reason = MISTAKES[mistake]
    path = tmp_path / "own.toml"
    path.write_text(text)
    with pytest.raises(ConfigError, match=reason) as refused:
        mixture.find(str(path))
    assert str(refused.value).startswith(f"{path}: ")
    assert "\n" not in str(refused.value)


def test_a_fleet_can_name_a_profiles_file_beside_it(tmp_path):
    (tmp_path / "own.toml").write_text('base = "laptop"\nname = "mine"\n')
    (tmp_path / "fleet.toml").write_text(
        'name = "x"\n[[device]]\nprofile = "own.toml"\nshare = 1\n'
    )
    assert [p.name for p in mixture.find(str(tmp_path / "fleet.toml")).profiles] == ["mine"]


def test_an_unknown_fleet_proposes_the_nearest():
    with pytest.raises(UnknownNameError, match="did you mean 'boards'"):
        load(FleetConfig(profile="bords"), 0)
