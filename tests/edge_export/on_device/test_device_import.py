"""`fedsparse devices import`: profiles from measurements, and what is refused."""

import json
import math
import tomllib
from pathlib import Path

import pytest

pytest.importorskip("ai_edge_litert", reason="pip install 'fedsparse[export]'")

from edge_export.device_profile import check_place
from edge_export.storage import Storage
from fedsparse.devices import mixture
from fedsparse.devices.profile import shipped
from fedsparse.errors import ConfigError
from tests.command_line import error_line, invoke
from tests.device_files import profile_file
from tests.edge_export.on_device.exported_files import both, network, written
from tests.edge_export.on_device.test_device_log import run

MACS = network(0.0).macs()[0]
KEPT = network(0.9).macs()[1]


def result(file, seconds=1e-3, *, macs=MACS, kept=None, layout="dense", values="f32", **more):
    work = {"macs": macs, "kept_macs": kept or macs, "layout": layout, "values": values}
    return {"file": file, "seconds": {"p50": seconds}, "export": work, **more}


def device(*results, **changes):
    """Return the content of a device.json."""
    return {
        "format": "fedsparse-device",
        "version": 1,
        "name": "our-board",
        "made": "2026-01-02T03:04:05Z",
        "machine": {"memory_bytes": 4e9, "memory_available_bytes": 3e9},
        "runtime": {"name": "ai-edge-litert", "version": "2.3.0"},
        "results": list(results),
        **changes,
    }


def put(folder, content, name="device.json"):
    path = folder / name
    path.write_text(content if isinstance(content, str) else json.dumps(content))
    return path


def imported(folder, content, *options):
    """Import a device.json; return the profile and what was said on stderr."""
    found = invoke("devices", "import", put(folder, content), *options)
    assert found.exit_code == 0, found.output
    (profile,) = mixture.find(str(folder / "device.toml")).profiles
    return profile, found.stderr


def curve(profile):
    """The points of a profile's curve, one number after the other."""
    return [number for point in profile.sparse_curve for number in point]


# -- figures by hand ----------------------------------------------------------------------------


def test_speeds_are_two_flops_a_multiply_add_over_the_median(tmp_path):
    """2 * 1000 in 1 ms is 2 MFLOP/s; 2 * 100 kept ones in 0.25 ms are 0.8 MFLOP/s."""
    content = device(
        result("dense.tflite", 1e-3, macs=1000),
        result("tenth.tflite", 0.25e-3, macs=1000, kept=100, layout="sparse"),
        result("fifth.tflite", 0.5e-3, macs=1000, kept=200, layout="sparse", values="int8"),
    )
    profile, notes = imported(tmp_path, content, "--based-on", "phone-low")
    assert profile.name == "our-board"
    assert profile.dense_flops == pytest.approx(2e6)
    assert curve(profile) == pytest.approx([0.1, 8e5, 0.2, 8e5])
    assert profile.flops_per_second(0.1) == pytest.approx(8e5)
    assert profile.memory_bytes == 3e9
    assert "sparse_efficiency" not in profile.sources
    assert notes == ""
    dense = profile.sources["dense_flops"]
    assert dense.startswith("measured: p50 1 ms of dense.tflite for 1,000 multiply-adds of 2 FLOPs")
    assert "ai-edge-litert 2.3.0, 1 thread, 2026-01-02T03:04:05Z" in dense
    assert dense.endswith("assumption: training reaches the FLOP/s of inference")
    assert "tenth.tflite" in profile.sources["sparse_curve"]
    assert "fifth.tflite" in profile.sources["sparse_curve"]


def test_what_was_not_measured_is_the_base_with_its_sources(tmp_path):
    base = shipped("phone-low")
    profile, _ = imported(tmp_path, device(result("d.tflite")), "--based-on", "phone-low")
    measured = {"name", "description", "dense_flops", "memory_bytes", "sources"}
    for key in set(type(base).model_fields) - measured:
        assert getattr(profile, key) == getattr(base, key), key
        assert profile.sources.get(key) == base.sources.get(key), key
    assert profile.sparse_efficiency == base.sparse_efficiency  # no sparse file was measured
    assert profile.sources["memory_bytes"].startswith("measured: MemAvailable")


def test_a_curve_of_the_base_keeps_its_shape_where_no_sparse_file_was_measured(tmp_path):
    base = profile_file(tmp_path, sparse_curve=[[0.1, 2e4], [0.5, 6e4]])
    base.write_text(base.read_text().replace("sparse_efficiency = 0.5\n", ""))
    content = device(result("d.tflite", 1e-3, macs=1000))
    profile, _ = imported(tmp_path, content, "--based-on", base)
    assert curve(profile) == pytest.approx([0.1, 4e5, 0.5, 1.2e6])
    assert profile.sources["sparse_curve"] == "assumption: as plain beside its dense speed"


def test_instructions_need_a_clock_and_give_its_seconds(tmp_path):
    """10,000 instructions at 1 GHz and 2 a cycle last 5 us: 2 * 1000 / 5 us = 400 MFLOP/s."""
    work = result("dense.tflite", macs=1000)["export"]
    ran = {"core": "cortex-a72", "runtime": "litert", "runtime_version": "2.3.0", "threads": 1}
    row = {"file": "exports/dense.tflite", **ran, "instructions": 10_000, "export": work}
    content = {"results": [row]}
    options = ("--clock", "1e9", "--instructions-per-cycle", "2", "--based-on", "phone-low")
    profile, _ = imported(tmp_path, content, *options)
    assert profile.name == "cortex-a72"
    assert profile.dense_flops == pytest.approx(4e8)
    assert profile.memory_bytes == shipped("phone-low").memory_bytes
    assert profile.sources["dense_flops"] == (
        "assumption: a clock of 1e+09 Hz and 2 instructions a cycle, counted on an emulated "
        "cortex-a72: 10,000 instructions of dense.tflite for 1,000 multiply-adds of 2 FLOPs; "
        "litert 2.3.0, 1 thread; assumption: training reaches the FLOP/s of inference"
    )
    one, _ = imported(tmp_path, content, "--clock", "1e9")
    assert one.dense_flops == pytest.approx(2e8)
    assert "1 instructions a cycle" in one.sources["dense_flops"]


def test_files_that_say_nothing_of_training_or_of_the_network_are_left_out(tmp_path):
    content = device(
        result("dense.tflite", 1e-3, macs=1000),
        result("static.tflite", 1e-4, macs=1000, values="int8"),
        result("small.tflite", 1e-4, macs=500),
        result("other.tflite", 1e-4, macs=500, kept=50, layout="sparse"),
        result("slow.tflite", 0.5e-3, macs=1000, kept=100, layout="sparse"),
        result("fast.tflite", 0.25e-3, macs=1000, kept=100, layout="sparse", values="f16"),
        complete=False,
        conditions={"throttled": True, "reasons": ["clock at 60% of its highest"]},
    )
    profile, notes = imported(tmp_path, content)
    assert profile.dense_flops == pytest.approx(2e6)
    assert curve(profile) == pytest.approx([0.1, 8e5])  # the faster of one density
    for line in (
        "'static.tflite' is left out: it computes in int8, and training in f32",
        "'small.tflite' is left out: 'dense.tflite' gives the dense speed",
        "'other.tflite' is left out: it is of another network than the dense file",
        "the measurement was interrupted; its figures are of fewer inferences",
        "the device was slowed down while it was measured: clock at 60% of its highest",
    ):
        assert f"fedsparse: {line}\n" in notes
    assert "slowed down meanwhile" in profile.sources["dense_flops"]


def test_no_speed_up_is_claimed_where_there_is_none(tmp_path):
    content = device(
        result("dense.tflite", 1e-3, macs=1000),
        result("sparse.tflite", 1e-3, macs=1000, kept=100, layout="sparse"),
    )
    profile, notes = imported(tmp_path, content)
    assert "no sparse kernels ran here" in notes
    assert profile.sparse_curve is None
    assert "sparse.tflite" in profile.sources["sparse_efficiency"]
    for density in (0.01, 0.1, 1.0):
        speed = profile.flops_per_second(density)
        assert speed == pytest.approx(density * profile.dense_flops)


# -- where the multiply-adds are from -----------------------------------------------------------


def bare(path, seconds=1e-3, digest=True):
    """A result without what export wrote, of a file that lies somewhere."""
    import hashlib

    sha256 = hashlib.sha256(path.read_bytes()).hexdigest() if digest else None
    return {"file": path.name, "sha256": sha256, "seconds": {"p50": seconds}}


def test_they_are_counted_from_the_files_beside_or_named(tmp_path):
    dense, sparse = both(tmp_path)
    content = device(bare(dense, 1e-3), bare(sparse, 0.5e-3))
    profile, _ = imported(tmp_path, content)
    assert profile.dense_flops == pytest.approx(2 * MACS / 1e-3)
    assert curve(profile) == pytest.approx([KEPT / MACS, 2 * KEPT / 0.5e-3])
    away = tmp_path / "away"
    away.mkdir()
    for path in (dense, sparse):
        path.rename(away / path.name)
    for options in (("--files", away), ("--files", away / dense.name, "--files", away)):
        again, _ = imported(tmp_path, content, *options)
        assert again.sparse_curve == profile.sparse_curve


def test_a_sidecar_is_taken_when_it_is_of_the_file(tmp_path):
    dense, _ = both(tmp_path, sidecar=True)
    beside = Path(f"{dense}.json")
    said = json.loads(beside.read_text()) | {"macs": 1000, "kept_macs": 1000}
    beside.write_text(json.dumps(said))
    profile, _ = imported(tmp_path, device(bare(dense, 1e-3)))
    assert profile.dense_flops == pytest.approx(2e6)
    beside.write_text(json.dumps(said | {"sha256": "0" * 64}))
    profile, _ = imported(tmp_path, device(bare(dense, 1e-3)))
    assert profile.dense_flops == pytest.approx(2 * MACS / 1e-3)


def test_a_log_of_benchmark_model_makes_a_profile(tmp_path):
    both(tmp_path)
    text = run("/x/dense.tflite", "1000.5", 1000, 2) + run("/x/sparse.tflite", "500.5", 500, 2)
    log, out = put(tmp_path, text, "phone.log"), tmp_path / "phone.toml"
    saved = tmp_path / "phone.json"
    options = ("--out", out, "--save-json", saved, "--name", "phone")
    found = invoke("devices", "import", "--benchmark-log", log, *options, "--json")
    assert found.exit_code == 0, found.output
    said = json.loads(found.stdout)
    assert said["dense_flops"] == pytest.approx(2 * MACS / 1e-3)
    assert said["sparse_curve"] == [[KEPT / MACS, pytest.approx(2 * KEPT / 0.5e-3)]]
    assert "2 threads" in said["sources"]["dense_flops"]
    assert tomllib.loads(out.read_text())["name"] == "phone"
    again = invoke("devices", "import", saved, "--out", tmp_path / "again.toml", "--json")
    assert json.loads(again.stdout)["sparse_curve"] == said["sparse_curve"]


def test_a_profile_is_shown_with_its_sources(tmp_path):
    imported(tmp_path, device(result("dense.tflite", 1e-3, macs=1000)))
    shown = invoke("devices", "show", tmp_path / "device.toml")
    assert "dense_flops = 2e+06\n    measured: p50 1 ms of dense.tflite" in shown.stdout
    figures = json.loads(invoke("devices", "show", "ideal", "--json").stdout)
    assert figures["dense_flops"] == "inf"


# -- what is refused ------------------------------------------------------------------------


GOOD = device(result("dense.tflite"))


def changed(key, value):
    first = GOOD["results"][0]
    return {**GOOD, "results": [{**first, key: value}]}


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("{", "is not valid JSON"),
        ("[]", "it must be one JSON object"),
        ("", "is empty; give the path of a device.json"),
        ({}, "is no device.json: its format is None, not 'fedsparse-device'"),
        ({**GOOD, "format": "other"}, "its format is 'other'"),
        ({**GOOD, "version": 2}, "is of version 2 and only 1 is read; measure again"),
        ({**GOOD, "version": True}, "is of version True and only 1 is read"),
        ({**GOOD, "results": []}, "results = []: "),
        ({k: v for k, v in GOOD.items() if k != "runtime"}, "runtime is missing"),
        (changed("file", ""), "results.0.file = '': must not be empty"),
        (changed("sha256", "abc"), "results.0.sha256 = 'abc': "),
        (changed("seconds", None), "'dense.tflite': give either seconds or instructions"),
        (changed("instructions", 5), "'dense.tflite': give either seconds or instructions"),
        (changed("seconds", {"p50": 0.0}), "results.0.seconds.p50 = 0.0: "),
        (changed("seconds", {"p50": -1.0}), "results.0.seconds.p50 = -1.0: "),
        (changed("seconds", {"p50": math.nan}), "results.0.seconds.p50 = nan: "),
        (changed("seconds", {"p50": math.inf}), "results.0.seconds.p50 = inf: "),
        (changed("seconds", {"p50": "1 ms"}), "results.0.seconds.p50 = '1 ms': "),
        (changed("seconds", {}), "p50 is missing; give the median"),
        (changed("export", {"macs": 0}), "results.0.export."),
        (
            changed("export", {**GOOD["results"][0]["export"], "kept_macs": 10**9}),
            f"kept_macs 1000000000 is more than macs {MACS}",
        ),
        ({**GOOD, "results": GOOD["results"] * 2}, "results hold 'dense.tflite' twice"),
        (changed("export", None), "the multiply-adds of 'dense.tflite' are not known"),
        (
            device(result("s.tflite", kept=5, layout="sparse")),
            "no dense f32 file among 's.tflite'; measure one, too",
        ),
        (
            device(result("i.tflite", values="int8")),
            "no dense f32 file among 'i.tflite'; measure one, too",
        ),
        ({"results": [{"file": "x", "p50_ms": 1}]}, "holds no counts of instructions"),
        ({"results": [{"file": "x", "instructions": 1}]}, "state the core's clock with --clock"),
        (
            {"results": [{"file": f"{c}", "instructions": 1, "core": c} for c in "ab"]},
            "holds counts of several cores or runtimes",
        ),
    ],
)
def test_a_bad_device_json_is_one_line_and_leaves_nothing(tmp_path, content, message):
    path = put(tmp_path, content)
    line = error_line(invoke("devices", "import", path))
    assert message in line
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--based-on", "raspbery-pi-4"], "did you mean 'raspberry-pi-4'?"),
        (["--based-on", "phones"], "'phones' is a fleet; name one of its profiles: phone-low"),
        (["--based-on", "none.toml"], "no device profile or fleet 'none.toml'"),
        (["--clock", "1e9"], "--clock is for counts of instructions; here seconds were measured"),
        (["--instructions-per-cycle", "1"], "--instructions-per-cycle is for --clock HZ"),
        (["--out", "profile.json"], "the name of a profile ends in .toml"),
        (["--out", "none/profile.toml"], "choose a file in a folder that exists"),
        (["--name", ""], "--name '' is empty"),
        (["--save-json", "x.json"], "--save-json is for --benchmark-log"),
        (["--benchmark-log", "x.log"], "give either a device.json or --benchmark-log LOG"),
    ],
)
def test_a_wrong_option_is_one_line_and_leaves_nothing(tmp_path, monkeypatch, options, message):
    monkeypatch.chdir(tmp_path)
    put(tmp_path, GOOD)
    assert message in error_line(invoke("devices", "import", "device.json", *options))
    assert [path.name for path in tmp_path.iterdir()] == ["device.json"]


@pytest.mark.parametrize("clock", ["nan", "inf", "0", "-1e9"])
def test_a_clock_is_a_positive_number(tmp_path, clock):
    rows = [{"file": "x", "instructions": 5, "export": GOOD["results"][0]["export"]}]
    path = put(tmp_path, {"results": rows})
    line = error_line(invoke("devices", "import", path, "--clock", clock))
    assert line == f"--clock {float(clock)}: must be a positive number"


@pytest.mark.parametrize("each", ["nan", "0", "-1"])
def test_instructions_a_cycle_are_a_positive_number(tmp_path, each):
    rows = [{"file": "x", "instructions": 5, "export": GOOD["results"][0]["export"]}]
    options = ("--clock", "1e9", "--instructions-per-cycle", each)
    line = error_line(invoke("devices", "import", put(tmp_path, {"results": rows}), *options))
    assert line == f"--instructions-per-cycle {float(each)}: must be a positive number"


@pytest.mark.parametrize(("clock", "each"), [("1e300", "1e300"), ("1e-300", "1e-300"), ("1", "1")])
def test_a_clock_is_that_of_a_core(tmp_path, clock, each):
    rows = [{"file": "x", "instructions": 10**9, "export": GOOD["results"][0]["export"]}]
    options = ("--clock", clock, "--instructions-per-cycle", each)
    line = error_line(invoke("devices", "import", put(tmp_path, {"results": rows}), *options))
    assert "an inference of 'x' would take" in line
    assert not (tmp_path / "device.toml").exists()


@pytest.mark.parametrize("place", [".", "/"])
def test_a_folder_is_no_device_json(place, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert "is a folder; give the path of a" in error_line(invoke("devices", "import", place))


@pytest.mark.parametrize("out", ["n" * 300 + ".toml", "n" * 300 + "/a.toml"])
def test_a_name_that_no_system_takes_is_refused(out, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    put(tmp_path, GOOD)
    line = error_line(invoke("devices", "import", "device.json", "--out", out))
    assert line.startswith("--out '")
    assert [path.name for path in tmp_path.iterdir()] == ["device.json"]


def test_a_name_with_a_zero_byte_is_refused(tmp_path):
    with pytest.raises(ConfigError, match="embedded null byte"):
        check_place(tmp_path / "a\0b.toml")


@pytest.mark.parametrize("name", ["n" * 300, "b" * 300])
@pytest.mark.parametrize("key", ["file", "path"])
def test_a_measured_name_that_no_system_takes_lies_nowhere(tmp_path, name, key):
    content = changed(key, name)
    content["results"][0]["export"] = None
    line = error_line(invoke("devices", "import", put(tmp_path, content)))
    assert "give the file or its folder with --files" in line


@pytest.mark.parametrize("text", ["a\nb", "a\x1b[31m", "a\ud800", "a\0", "\u2028", "a" * 1001])
@pytest.mark.parametrize(
    ("key", "change"),
    [
        ("name", lambda text: {"name": text}),
        ("made", lambda text: {"made": text}),
        ("runtime.name", lambda text: {"runtime": {"name": text}}),
        ("runtime.version", lambda text: {"runtime": {"name": "x", "version": text}}),
        ("conditions.reasons.0", lambda text: {"conditions": {"reasons": [text]}}),
        ("results.0.file", lambda text: changed("file", text)),
        ("results.0.path", lambda text: changed("path", text)),
    ],
)
def test_a_text_is_one_line_that_can_be_shown(tmp_path, text, key, change):
    line = error_line(invoke("devices", "import", put(tmp_path, {**GOOD, **change(text)})))
    assert f"{key} = " in line
    assert line.isprintable()


def test_work_that_export_does_not_know_is_counted_from_the_file(tmp_path):
    dense, _ = both(tmp_path, sidecar=True)
    beside = Path(f"{dense}.json")
    said = json.loads(beside.read_text()) | {"macs": None, "kept_macs": None}
    beside.write_text(json.dumps(said))
    profile, _ = imported(tmp_path, device(bare(dense)))
    assert profile.dense_flops == pytest.approx(2 * MACS / 1e-3)
    profile, _ = imported(tmp_path, device({**bare(dense), "export": said}))
    assert profile.dense_flops == pytest.approx(2 * MACS / 1e-3)


def test_a_truncated_file_is_not_the_one_that_was_measured(tmp_path):
    dense = written(tmp_path / "dense.tflite", Storage())
    path = put(tmp_path, device(bare(dense)))
    dense.write_bytes(dense.read_bytes()[:700])
    line = error_line(invoke("devices", "import", path))
    assert "is not the file that was measured, its SHA-256 differs" in line
    put(tmp_path, device(bare(dense, digest=False)))  # as a log by hand has it
    assert "is damaged" in error_line(invoke("devices", "import", path))
    assert not (tmp_path / "device.toml").exists()


def test_a_folder_that_cannot_be_written_keeps_what_was_there(tmp_path, monkeypatch):
    path = put(tmp_path, GOOD)
    (tmp_path / "device.toml").write_text("as it was")

    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("fedsparse.runs.atomic.os.replace", full)
    assert "is full" in error_line(invoke("devices", "import", path))
    assert (tmp_path / "device.toml").read_text() == "as it was"
    assert sorted(p.name for p in tmp_path.iterdir()) == ["device.json", "device.toml"]
