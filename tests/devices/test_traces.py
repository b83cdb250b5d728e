"""Traces: transfers over a changing network, FedScale's devices and hours, bad files."""

import json

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from fedsparse.config import FleetConfig
from fedsparse.devices import load
from fedsparse.devices.traces import (
    PASSES,
    REFERENCE_FLOPS,
    Link,
    read_network,
    read_presence,
    read_speeds,
)
from fedsparse.errors import DataError

HEAD = "seconds,up_bytes_per_second,down_bytes_per_second\n"
NETWORK = HEAD + "0,100,1000\n10,0,500\n20,50,2000\n"


def written(tmp_path, name, text):
    path = tmp_path / name
    path.write_text(text)
    return path


# -- bandwidth over time ---------------------------------------------------------------------


@pytest.mark.parametrize(
    ("size", "at", "seconds"),
    [
        (0, 3.0, 0.0),
        (500, 0.0, 5.0),
        (1000, 0.0, 10.0),  # exactly what the first stretch carries
        (1001, 0.0, 20.02),  # the last byte waits for ten seconds at speed zero
        (1500, 0.0, 30.0),
        (700, 4.0, 18.0),  # 600 bytes until 10, then 100 at 50 from 20
        (50, 12.0, 9.0),  # begins while nothing goes
        (50, 20.0, 1.0),
        (5000, 1000.0, 100.0),  # the last speed holds for ever
    ],
)
def test_a_transfer_integrates_over_the_speeds(tmp_path, size, at, seconds):
    link = read_network(written(tmp_path, "net.csv", NETWORK)).of(0).up
    assert link.seconds(size, at) == pytest.approx(seconds, rel=1e-9, abs=1e-12)


def test_transfers_are_taken_together(tmp_path):
    link = read_network(written(tmp_path, "net.csv", NETWORK)).of(0).up
    sizes, starts = np.array([500, 1500, 50]), np.array([0.0, 0.0, 12.0])
    assert link.seconds(sizes, starts) == pytest.approx([5.0, 30.0, 9.0], rel=1e-9)
    assert link.seconds(np.array([[100], [200]]), starts).shape == (2, 3)


stretches = st.lists(
    st.tuples(st.floats(0.1, 50), st.one_of(st.just(0.0), st.floats(0.5, 1e4))), max_size=6
)


@given(stretches, st.floats(1, 1e4), st.floats(0, 1e5), st.floats(0, 300))
def test_what_went_through_in_the_time_is_the_size(stretches, last, size, at):
    times = np.concatenate([[0.0], np.cumsum([width for width, _ in stretches])])
    speeds = np.array([speed for _, speed in stretches] + [last])
    until = at + float(Link.of(times, speeds).seconds(size, at))
    ends = np.append(times[1:], np.inf)
    overlap = np.clip(np.minimum(ends, until) - np.maximum(times, at), 0, None)
    assert float(overlap @ speeds) == pytest.approx(size, rel=1e-9, abs=1e-6)


def test_a_device_adds_its_latency_to_the_trace(tmp_path):
    path = written(tmp_path, "net.csv", NETWORK)
    config = FleetConfig(profile="raspberry-pi-4", network_trace=str(path))
    device = load(config, 0).device(3)
    assert device.upload_seconds(1500, 0.0) == pytest.approx(30.02, rel=1e-9)
    assert device.download_seconds(12500, 0.0) == pytest.approx(15.02, rel=1e-9)
    assert (device.up_bytes_per_second, device.down_bytes_per_second) == (100, 1000)


def test_clients_are_dealt_by_modulo_in_the_order_of_ids(tmp_path):
    text = "client,seconds,up_bytes_per_second,down_bytes_per_second\n"
    text += "10,0,10,1\n9,0,9,1\n9,5,90,1\n100,0,100,1\n10,5,1,1\n"
    traces = read_network(written(tmp_path, "net.csv", text))
    assert [traces.of(client).up.speeds[0] for client in range(5)] == [9, 10, 100, 9, 10]
    up, _ = traces.at_start(np.arange(4))
    assert list(up) == [9, 10, 100, 9]


NETWORKS = {
    "hole": (HEAD + "0,1,1\n5,,1\n", r"line 3: up_bytes_per_second is empty; must be a number"),
    "short": (HEAD + "0,1,1\n5,1\n", r"line 3: 2 cells; the heading has 3"),
    "column gone": (
        "seconds,up_bytes_per_second\n0,1\n",
        r"line 1: column 'down_bytes_per_second' is missing",
    ),
    "column unknown": (
        HEAD.replace("down_", "dwn_") + "0,1,1\n",
        r"line 1: unknown column 'dwn_bytes_per_second'; did you mean 'down_bytes_per_second'",
    ),
    "column twice": ("seconds,seconds," + HEAD[8:] + "0,0,1,1\n", r"'seconds' is there twice"),
    "nan": (HEAD + "0,nan,1\n", r"line 2: up_bytes_per_second = nan: must be a number"),
    "infinite": (HEAD + "0,inf,1\n", r"line 2: up_bytes_per_second = inf: must be finite"),
    "negative": (HEAD + "0,-5,1\n", r"line 2: up_bytes_per_second = -5.0: .* not negative"),
    "mixed units": (
        HEAD + "0,10 Mbit,1\n",
        r"line 2: up_bytes_per_second = '10 Mbit': .* bytes a second, .* write 1250000",
    ),
    "no number": (HEAD + "0,fast,1\n", r"line 2: up_bytes_per_second = 'fast': must be a number"),
    "order": (HEAD + "0,1,1\n9,1,1\n5,1,1\n", r"line 4: seconds = 5.0 does not come after 9.0"),
    "same time": (HEAD + "0,1,1\n0,2,1\n", r"line 3: seconds = 0.0 does not come after 0.0"),
    "late start": (HEAD + "3,1,1\n", r"line 2: seconds = 3.0: the first must be 0"),
    "stops": (
        HEAD + "0,1,1\n5,1,0\n",
        r"line 3: down_bytes_per_second is 0 and stays so for ever; end with a positive speed",
    ),
    "no lines": (HEAD, r"has a heading and no line below it"),
    "empty": ("", r"is empty"),
    "client hole": ("client," + HEAD + ",0,1,1\n", r"line 2: client is empty"),
    "quotes": (HEAD + '0,"1,1\n', r"not valid CSV"),
}


@pytest.mark.parametrize("mistake", NETWORKS)
def test_a_bad_network_trace_is_refused_in_one_line(tmp_path, mistake):
    text, reason = NETWORKS[mistake]
    path = written(tmp_path, "net.csv", text)
    with pytest.raises(DataError, match=reason) as refused:
        read_network(path)
    assert "net.csv" in str(refused.value)
    assert "\n" not in str(refused.value)


# -- speeds by client ------------------------------------------------------------------------


SPEEDS = {"1": {"computation": 60.0, "communication": 8000.0}}
SPEEDS["0"] = {"computation": 120.0, "communication": 800.0}


def test_a_device_trace_replaces_speed_and_bandwidth(tmp_path):
    path = written(tmp_path, "devices.json", json.dumps(SPEEDS))
    config = FleetConfig(profile="phone-low", device_trace=str(path), clients=4)
    fleet = load(config, 0)
    columns = fleet.columns()
    assert columns.dense_flops == pytest.approx([5e9, 1e10, 5e9, 1e10], rel=1e-9)
    assert columns.up_bytes_per_second == pytest.approx([1e5, 1e6, 1e5, 1e6], rel=1e-9)
    assert np.array_equal(columns.up_bytes_per_second, columns.down_bytes_per_second)
    device = fleet.device(1)
    one_sample = PASSES * 60.0 / 1000
    assert device.compute_seconds(REFERENCE_FLOPS, 1.0) == pytest.approx(one_sample, rel=1e-9)
    assert device.upload_seconds(10**6, 0.0) == pytest.approx(1.035, rel=1e-9)
    assert device.memory_bytes == columns.memory_bytes[1] == 5e8


def test_csv_and_json_hold_the_same_speeds(tmp_path):
    text = "client,computation,communication\n1,60,8000\n0,120,800\n"
    table = read_speeds(written(tmp_path, "devices.csv", text))
    other = read_speeds(written(tmp_path, "devices.json", json.dumps(SPEEDS)))
    assert np.array_equal(table.dense_flops, other.dense_flops)
    assert np.array_equal(table.bytes_per_second, other.bytes_per_second)


def test_a_network_trace_goes_before_a_device_trace(tmp_path):
    network = written(tmp_path, "net.csv", NETWORK)
    speeds = written(tmp_path, "devices.json", json.dumps(SPEEDS))
    traces = {"network_trace": str(network), "device_trace": str(speeds)}
    device = load(FleetConfig(profile="phone-low", **traces), 0).device(0)
    assert device.up_bytes_per_second == 100
    assert device.dense_flops == pytest.approx(5e9, rel=1e-9)


DEVICE_HEAD = "client,computation,communication\n"
DEVICES = {
    "zero.csv": (DEVICE_HEAD + "0,0,5\n", r"line 2: computation is 0; it must be positive"),
    "units.csv": (DEVICE_HEAD + "0,5,10 Mbit\n", r"line 2: communication = '10 Mbit': .* 10000"),
    "seconds.csv": (DEVICE_HEAD + "0,2 s,5\n", r"milliseconds, .* write 2000"),
    "twice.csv": (DEVICE_HEAD + "0,5,5\n0,5,5\n", r"line 3: client '0' is there twice"),
    "hole.json": ('{"7": {"computation": 3}}', r"client '7': communication is missing"),
    "null.json": (
        '{"7": {"computation": 3, "communication": null}}',
        r"client '7': communication is missing",
    ),
    "text.json": (
        '{"7": {"computation": "3", "communication": 5}}',
        r"client '7': computation = '3': must be a number",
    ),
    "nan.json": (
        '{"7": {"computation": NaN, "communication": 5}}',
        r"client '7': computation = nan: must be a number",
    ),
    "huge.json": (
        '{"7": {"computation": 1' + "0" * 400 + ', "communication": 5}}',
        r"computation = 1000*\.\.\.: must be finite",
    ),
    "list.json": ('{"7": [1, 2]}', r"client '7': \[1, 2\] must be an object"),
    "nobody.json": ("{}", r"names no client"),
    "unknown.txt": ("x", r"ends in '.txt'; a device trace is .csv or .json"),
    "device.pkl": ("x", r"never a pickle"),
}


@pytest.mark.parametrize("name", DEVICES)
def test_a_bad_device_trace_is_refused_in_one_line(tmp_path, name):
    text, reason = DEVICES[name]
    with pytest.raises(DataError, match=reason) as refused:
        read_speeds(written(tmp_path, name, text))
    assert name in str(refused.value)
    assert "\n" not in str(refused.value)


# -- hours by client -------------------------------------------------------------------------


HOURS = {
    "5": {"active": [10, 50], "inactive": [20, 60], "finish_time": 100, "model": "X"},
    "12": {"active": [], "inactive": [], "finish_time": 100, "duration": 0},
}


def test_a_client_is_there_between_active_and_inactive_again_and_again(tmp_path):
    trace = read_presence(written(tmp_path, "hours.json", json.dumps(HOURS)))
    there = {9.9: False, 10: True, 19.9: True, 20: False, 50: True, 60: False, 99: False}
    for second, expected in there.items():
        for repeat in (0, 100, 1700):
            assert trace.of(0).available(second + repeat) is expected, second
    assert not any(trace.of(1).available(second) for second in range(100))
    assert trace.of(2) is trace.of(0)


def test_csv_and_json_hold_the_same_hours(tmp_path):
    text = "client,active,inactive,finish_time\n5,10,20,100\n5,50,60,100\n"
    table = read_presence(written(tmp_path, "hours.csv", text))
    assert table.of(0) == read_presence(written(tmp_path, "h.json", json.dumps(HOURS))).of(0)


def test_a_trace_of_hours_replaces_the_profiles(tmp_path):
    path = written(tmp_path, "hours.json", json.dumps(HOURS))
    config = FleetConfig(profile="phones", availability_trace=str(path), start_hour=9.0)
    fleet = load(config, 0)
    assert [fleet.device(client).available(15.0) for client in range(4)] == [True, False] * 2


HOUR_HEAD = "client,active,inactive,finish_time\n"
PRESENCE = {
    "order.csv": (HOUR_HEAD + "0,20,10,100\n", r"line 2: inactive = 10.0 comes before active"),
    "overlap.csv": (
        HOUR_HEAD + "0,10,30,100\n0,20,40,100\n",
        r"line 3: active = 20.0 comes before the end of the interval before, 30.0",
    ),
    "unsorted.csv": (
        HOUR_HEAD + "0,50,60,100\n0,10,20,100\n",
        r"line 3: active = 10.0 comes before the end",
    ),
    "beyond.csv": (HOUR_HEAD + "0,10,200,100\n", r"inactive = 200.0 comes after finish_time"),
    "two ends.csv": (
        HOUR_HEAD + "0,10,20,100\n0,30,40,90\n",
        r"line 3: finish_time = 90.0 and 100.0 for client '0'",
    ),
    "no end.csv": (HOUR_HEAD + "0,0,0,0\n", r"line 2: finish_time is 0; it must be positive"),
    "hole.csv": (HOUR_HEAD + "0,10,,100\n", r"line 2: inactive is empty"),
    "uneven.json": (
        '{"3": {"active": [1, 5], "inactive": [2], "finish_time": 9}}',
        r"client '3': 2 times in active and 1 in inactive",
    ),
    "no list.json": (
        '{"3": {"active": 1, "inactive": [2], "finish_time": 9}}',
        r"client '3': active = 1: must be a list of seconds",
    ),
    "nobody.json": (
        '{"3": {"active": [], "inactive": [], "finish_time": 9}}',
        r"no client is ever there",
    ),
    "hours.pickle": ("x", r"ends in '.pickle'; .* never a pickle"),
}


@pytest.mark.parametrize("name", PRESENCE)
def test_a_bad_availability_trace_is_refused_in_one_line(tmp_path, name):
    text, reason = PRESENCE[name]
    with pytest.raises(DataError, match=reason) as refused:
        read_presence(written(tmp_path, name, text))
    assert name in str(refused.value)
    assert "\n" not in str(refused.value)


@pytest.mark.parametrize("key", ["network_trace", "device_trace", "availability_trace"])
def test_a_missing_trace_is_named(tmp_path, key):
    gone = str(tmp_path / "gone.csv")
    with pytest.raises(DataError, match=r"no .* trace '.*gone.csv'; give the path"):
        load(FleetConfig(profile="phones", **{key: gone}), 0)
