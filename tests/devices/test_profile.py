"""Profiles: figures worked out by hand, shipped ones with sources, files that are refused."""

import json
import math
import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fedsparse.devices import Availability, mixture, profile
from fedsparse.devices.profile import FIGURES, from_mapping
from fedsparse.devices.units import converted, unit_of
from fedsparse.errors import ConfigError, UnknownNameError

PLAIN = {
    "name": "plain",
    "dense_flops": 1e9,
    "memory_bytes": 1000,
    "storage_bytes": 2000,
    "up_bytes_per_second": 10.0,
    "down_bytes_per_second": 40.0,
    "latency_seconds": 0.5,
    "compute_watts": 3.0,
    "radio_watts": 2.0,
}
CURVE = [[0.01, 1e8], [0.1, 4e8], [1.0, 9e8]]


def plain(**changes):
    return from_mapping({**PLAIN, **changes}, "plain.toml")


# -- speed ----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("efficiency", "density", "flops"),
    [
        (0.5, 0.1, 5e8),  # sparse kernels
        (0.5, 0.8, 8e8),  # dense kernels are faster: 0.8 of their work is useful
        (0.5, 1.0, 1e9),
        (0.0, 0.25, 2.5e8),  # there are no sparse kernels
        (1.2, 0.3, 1.2e9),
    ],
)
def test_useful_speed_is_that_of_the_faster_kernels(efficiency, density, flops):
    device = plain(sparse_efficiency=efficiency)
    assert device.flops_per_second(density) == pytest.approx(flops, rel=1e-9)


def test_a_curve_is_linear_in_log_density_and_flat_outside():
    device = plain(sparse_curve=CURVE)
    assert device.flops_per_second(0.001) == pytest.approx(1e8, rel=1e-9)
    assert device.flops_per_second(0.01) == pytest.approx(1e8, rel=1e-9)
    half_way = math.sqrt(0.01 * 0.1)
    assert device.flops_per_second(half_way) == pytest.approx(2.5e8, rel=1e-9)
    assert device.flops_per_second(0.95) == pytest.approx(9.5e8, rel=1e-9)  # dense kernels


@given(density=st.floats(1e-6, 1.0), efficiency=st.floats(0.0, 1.0))
def test_useful_speed_lies_between_dense_fallback_and_dense(density, efficiency):
    device = plain(sparse_efficiency=efficiency)
    speed = device.flops_per_second(density)
    assert density * 1e9 * (1 - 1e-12) <= speed <= 1e9 * (1 + 1e-12)


@pytest.mark.parametrize("density", [0.0, -0.1, 1.1, math.nan])
def test_a_density_outside_its_range_is_refused(density):
    with pytest.raises(ConfigError, match=r"must be in \(0, 1\]"):
        plain().flops_per_second(density)


def test_an_infinite_speed_stays_infinite():
    assert plain(dense_flops=math.inf, sparse_efficiency=0.1).flops_per_second(0.01) == math.inf


# -- availability ----------------------------------------------------------------------------


def test_the_chance_follows_the_hour_and_is_cut_to_its_range():
    hours = Availability(fraction=0.4, amplitude=0.5, peak_hour=2.0)
    assert hours.chance(2.0) == pytest.approx(0.6, abs=1e-12)
    assert hours.chance(8.0) == pytest.approx(0.4, abs=1e-12)
    assert hours.chance(14.0) == pytest.approx(0.2, abs=1e-12)
    steep = Availability(fraction=0.8, amplitude=2.0, peak_hour=12.0)
    assert (steep.chance(12.0), steep.chance(0.0)) == (1.0, 0.0)


# -- shipped ones ----------------------------------------------------------------------------


def test_at_least_ten_profiles_are_shipped():
    assert len(profile.names()) >= 10
    assert {"microcontroller", "raspberry-pi-4", "phone-low", "laptop", "ideal"} <= set(
        profile.names()
    )
    assert not set(profile.names()) & set(mixture.names())


@pytest.mark.parametrize("name", profile.names())
def test_every_shipped_figure_has_a_source(name):
    device = profile.shipped(name)
    assert device.name == name
    assert device.description
    unused = "sparse_efficiency" if device.sparse_curve else "sparse_curve"
    assert set(device.sources) == set(FIGURES) - {unused}
    for key, source in device.sources.items():
        public = re.search(r"https?://\S+|arXiv:\d", source)
        assert public or re.match(r"assumption: \S", source), key


def test_the_microcontroller_cannot_train_and_ideal_has_no_limits():
    assert profile.shipped("microcontroller").memory_bytes == 0
    ideal = profile.shipped("ideal")
    assert ideal.dense_flops == ideal.memory_bytes == ideal.up_bytes_per_second == math.inf
    assert (ideal.latency_seconds, ideal.compute_watts, ideal.battery_joules) == (0, 0, None)
    assert ideal.availability.chance(5.0) == 1.0


# -- files -----------------------------------------------------------------------------------


def test_toml_and_json_give_the_same_profile(tmp_path):
    toml, text = tmp_path / "own.toml", tmp_path / "own.json"
    toml.write_text(
        'name = "own"\ndense_flops = inf\nmemory_bytes = 1e6\nstorage_bytes = 1_000\n'
        "up_bytes_per_second = 10\ndown_bytes_per_second = 20\nlatency_seconds = 0\n"
        "compute_watts = 1\nradio_watts = 1\nsparse_curve = [[0.1, 5], [0.5, 7.0]]\n"
    )
    figures = {**PLAIN, "name": "own", "dense_flops": "inf", "memory_bytes": 1e6}
    figures |= {"storage_bytes": 1000, "up_bytes_per_second": 10, "down_bytes_per_second": 20}
    figures |= {"latency_seconds": 0, "compute_watts": 1, "radio_watts": 1}
    text.write_text(json.dumps({**figures, "sparse_curve": [[0.1, 5], [0.5, 7.0]]}))
    assert mixture.read(toml).profiles == mixture.read(text).profiles


def test_a_base_lends_the_figures_that_are_not_given():
    device = from_mapping({"base": "phone-low", "name": "slow", "dense_flops": 1e9}, "x")
    low = profile.shipped("phone-low")
    assert (device.name, device.dense_flops) == ("slow", 1e9)
    assert device.availability == low.availability
    assert device.sources == {k: v for k, v in low.sources.items() if k != "dense_flops"}


def test_a_curve_takes_the_place_of_the_bases_efficiency():
    device = from_mapping({"base": "phone-low", "name": "own", "sparse_curve": CURVE}, "x")
    assert device.sparse_curve == ((0.01, 1e8), (0.1, 4e8), (1.0, 9e8))
    assert "sparse_efficiency" not in device.sources


def test_own_sources_come_on_top_of_the_bases():
    changes = {"memory_bytes": 5, "sources": {"memory_bytes": "measured"}}
    device = from_mapping({"base": "phone-low", "name": "own", **changes}, "x")
    assert device.sources["memory_bytes"] == "measured"
    assert device.sources["radio_watts"] == profile.shipped("phone-low").sources["radio_watts"]


MISTAKES = {
    "negative": ({"memory_bytes": -1}, r"memory_bytes = -1: must be greater than or equal to 0"),
    "nan": ({"dense_flops": math.nan}, r"dense_flops = nan: must be a number of FLOP/s"),
    "zero speed": ({"up_bytes_per_second": 0}, r"up_bytes_per_second = 0: must be greater than 0"),
    "unknown": ({"memory_byte": 5}, r"unknown key 'memory_byte'; did you mean 'memory_bytes'\?"),
    "unknown below": (
        {"availability": {"fractoin": 0.5}},
        r"unknown key 'availability.fractoin'; did you mean 'fraction'\?",
    ),
    "text": (
        {"memory_bytes": "4 GB"},
        r"memory_bytes = '4 GB': the unit of memory_bytes is bytes, .* write 4000000000$",
    ),
    "mixed units": (
        {"up_bytes_per_second": "10 Mbit/s"},
        r"the unit of up_bytes_per_second is bytes a second, .* write 1250000$",
    ),
    "other unit": ({"dense_flops": "4 GB"}, r"dense_flops = '4 GB': must be a number of FLOP/s$"),
    "truth": ({"dense_flops": True}, r"dense_flops = True: must be a number of FLOP/s$"),
    "infinite cost": ({"compute_watts": math.inf}, r"compute_watts = inf: must be a finite number"),
    "dropout": ({"dropout": 1.0}, r"dropout = 1.0: must be less than 1"),
    "both": (
        {"sparse_efficiency": 0.5, "sparse_curve": CURVE},
        r"sparse_efficiency and sparse_curve are both given; keep one of them",
    ),
    "curve at zero": (
        {"sparse_curve": [[0.0, 1e8]]},
        r"sparse_curve = .*: density 0.0 must be in \(0, 1\]",
    ),
    "curve falls": (
        {"sparse_curve": [[0.2, 1e8], [0.1, 1e8]]},
        r"densities must rise from pair to pair; sort them",
    ),
    "curve stops": ({"sparse_curve": [[0.2, 0.0]]}, r"speed 0.0 must be a positive number"),
    "curve of nan": ({"sparse_curve": [[0.2, math.nan]]}, r"speed nan must be a positive number"),
    "curve of one": ({"sparse_curve": [[0.1]]}, r"must be a list of pairs \[density, FLOP/s\]"),
    "curve in units": ({"sparse_curve": [[0.1, "5 GFLOPS"]]}, r"'5 GFLOPS': must be a list of"),
    "huge": ({"memory_bytes": 10**400}, r"memory_bytes = 1000*\.\.\.: must be a number of bytes"),
    "no table": ({"availability": "always"}, r"availability = 'always': must be a table of keys"),
    "no name": ({"name": ""}, r"name = '': must not be empty"),
    "two lines": ({"a\nb": 1}, r"unknown key 'a\\nb'; choose one of: "),
    "hours": (
        {"availability": {"peak_hour": "2 h"}},
        r"availability.peak_hour = '2 h': the unit of peak_hour is hours, .* write 2$",
    ),
    "empty curve": ({"sparse_curve": []}, r"must hold at least one pair \[density, FLOP/s\]"),
    "source of nothing": (
        {"sources": {"memory": "a page"}},
        r"sources.memory is the source of no figure; did you mean 'memory_bytes'\?",
    ),
    "base": ({"base": "phone-lo"}, r"unknown profile 'phone-lo'; did you mean 'phone-low'\?"),
}


@pytest.mark.parametrize("mistake", MISTAKES)
def test_a_bad_figure_is_refused_in_one_line(mistake):
    changes, reason = MISTAKES[mistake]
    with pytest.raises(ConfigError, match=reason) as refused:
        plain(**changes)
    assert str(refused.value).startswith("plain.toml: ")
    assert "\n" not in str(refused.value)


@pytest.mark.parametrize("key", [key for key in PLAIN if key != "name"])
def test_a_missing_figure_is_named_with_its_unit(key):
    figures = {name: value for name, value in PLAIN.items() if name != key}
    with pytest.raises(ConfigError, match=f"{key} is missing; give it as a number of") as refused:
        from_mapping(figures, "plain.toml")
    assert str(refused.value).endswith(str(unit_of(key)))


FILES = {
    "own.yaml": ("name: x", r"ends in '.yaml'; .* ends in .toml or .json"),
    "own.toml": ("name = ", r"is not valid TOML"),
    "own.json": ("{", r"is not valid JSON"),
    "list.json": ("[1]", r"holds a list; it must be one JSON object"),
    "twice.json": ('{"name": "a", "name": "b"}', r"'name' stands there twice; keep one"),
    "empty.toml": (" \n", r"is empty"),
}


@pytest.mark.parametrize("name", FILES)
def test_a_bad_file_is_refused_in_one_line(tmp_path, name):
    text, reason = FILES[name]
    (tmp_path / name).write_text(text)
    with pytest.raises(ConfigError, match=reason) as refused:
        mixture.find(str(tmp_path / name))
    assert name in str(refused.value)
    assert "\n" not in str(refused.value)


def test_a_file_that_is_no_file_is_refused(tmp_path):
    (tmp_path / "binary.toml").write_bytes(b"\xff\xfe\x00")
    (tmp_path / "folder.toml").mkdir()
    for name, reason in (
        ("gone.toml", "no device profile or fleet"),
        ("binary.toml", "is not a text file"),
        ("folder.toml", "is a folder"),
    ):
        with pytest.raises(ConfigError, match=reason):
            mixture.find(str(tmp_path / name))


@pytest.mark.parametrize(
    ("name", "near"), [("fone-low", "phone-low"), ("phons", "phones"), ("lapptop", "laptop")]
)
def test_an_unknown_name_proposes_the_nearest(name, near):
    with pytest.raises(UnknownNameError, match=f"'{name}'; did you mean '{near}'"):
        mixture.find(name)


@pytest.mark.parametrize(
    ("text", "unit", "value"),
    [
        ("512 MiB", "bytes", 512 * 2**20),
        ("1.5GFLOPS", "FLOP/s", 1.5e9),
        ("20 GFLOP/s", "FLOP/s", 2e10),
        ("50 ms", "seconds", 0.05),
        ("2 s", "milliseconds", 2000),
        ("1 Wh", "joules", 3600),
        ("10 Mbps", "kilobits a second", 10000),
        ("fast", "bytes", None),
        ("4 W", "bytes", None),
    ],
)
def test_a_text_with_a_unit_is_converted_for_the_message(text, unit, value):
    assert converted(text, unit) == (None if value is None else pytest.approx(value))
