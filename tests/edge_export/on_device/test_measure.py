"""The script that measures on a device: what it writes, and what it makes of each system."""

import ast
import hashlib
import json
import signal
import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("ai_edge_litert", reason="pip install 'fedsparse[export]'")

from edge_export.on_device import measure
from tests.edge_export.on_device.exported_files import both

SCRIPT = Path(measure.__file__)
PI = """\
processor\t: 0
BogoMIPS\t: 108.00
CPU implementer\t: 0x41
CPU architecture: 8
CPU part\t: {0}

processor\t: 1
CPU implementer\t: 0x41
CPU part\t: {1}

Hardware\t: BCM2835
Model\t\t: Raspberry Pi 4 Model B Rev 1.4
"""


def script(*arguments: object, folder: Path) -> subprocess.CompletedProcess[str]:
    """Run the script alone, in a folder where nothing of fedsparse is in reach."""
    command = [sys.executable, "-P", SCRIPT, *arguments]
    return subprocess.run(
        list(map(str, command)), cwd=folder, capture_output=True, text=True, timeout=120
    )


def test_it_stands_alone():
    """Python 3.9 reads it, and it imports nothing but what Python has, numpy when it is used."""
    tree = ast.parse(SCRIPT.read_text(), feature_version=(3, 9))
    for node in tree.body:
        names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
        names += [node.module or ""] if isinstance(node, ast.ImportFrom) else []
        assert {name.split(".")[0] for name in names} <= set(sys.stdlib_module_names)
    assert "fedsparse." not in SCRIPT.read_text()
    assert all(not isinstance(node, ast.Match) for node in ast.walk(tree))


def test_each_file_is_measured_and_told_of(tmp_path):
    dense, sparse = both(tmp_path, sidecar=True)
    Path(f"{sparse}.json").write_text(json.dumps({"sha256": "of another file"}))
    done = script(dense, sparse, "--seconds", 0.1, "--name", "here", folder=tmp_path)
    assert done.returncode == 0, done.stderr
    found = json.loads((tmp_path / "device.json").read_text())
    assert (found["format"], found["version"]) == ("fedsparse-device", 1)
    assert (found["name"], found["threads"], found["complete"]) == ("here", 1, True)
    assert found["runtime"]["name"] == "ai-edge-litert"
    assert found["machine"]["memory_bytes"] > found["peak_memory_bytes"] > 0
    first, second = found["results"]
    assert [first["file"], second["file"]] == [dense.name, sparse.name]
    assert first["export"] == json.loads(Path(f"{dense}.json").read_text())
    assert second["export"] is None  # what lies beside it is of another file
    for result, path in ((first, dense), (second, sparse)):
        assert result["sha256"] == hashlib.sha256(path.read_bytes()).hexdigest()
        assert result["count"] >= measure.ROUNDS
        assert result["setup_seconds"] > 0
        assert result["peak_memory_bytes"] > result["added_memory_bytes"] >= 0
        seconds = result["seconds"]
        order = [seconds[key] for key in ("min", *measure.QUANTILES, "max")]
        assert order == sorted(order)
        assert order[0] > 0


def test_an_interrupt_keeps_what_was_measured(tmp_path):
    dense, _ = both(tmp_path)
    process = subprocess.Popen(
        [sys.executable, "-P", SCRIPT, dense, "--seconds", "20"],
        cwd=tmp_path,
        stderr=subprocess.PIPE,
        text=True,
    )
    assert process.stderr is not None
    with process:
        while not process.stderr.readline().startswith("round 1 "):
            assert process.poll() is None
        process.send_signal(signal.SIGINT)
    assert process.returncode == measure.INTERRUPTED
    found = json.loads((tmp_path / "device.json").read_text())
    assert found["complete"] is False
    assert found["results"][0]["count"] >= 1
    assert not list(tmp_path.glob(".*"))


def test_files_take_turns_and_each_begins_a_round():
    order, times = [], [[], [], []]
    infers = [lambda place=place: order.append(place) for place in range(3)]
    measure.rounds(infers, 0.0, times, lambda number: order.append("|"))
    assert order[:12] == [0, 1, 2, "|", 1, 2, 0, "|", 2, 0, 1, "|"]
    assert [len(each) for each in times] == [measure.ROUNDS] * 3


def test_percentiles_are_measured_values():
    found = measure.summary([float(n) for n in range(100, -1, -1)])
    assert (found["min"], found["p5"], found["p50"], found["p99"], found["max"]) == (
        0.0, 5.0, 50.0, 99.0, 100.0,
    )  # fmt: skip
    assert measure.summary([3.0])["p95"] == 3.0


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (["none.tflite"], "no file 'none.tflite'; give the path of a .tflite file"),
        (["text.tflite"], "'text.tflite' is no .tflite file"),
        (["cut.tflite"], "'cut.tflite' is not run by this runtime: "),
        (["dense.tflite", "./dense.tflite"], "two files are called 'dense.tflite'"),
        (["dense.tflite", "--out", "no/device.json"], "'no/device.json' cannot be written"),
        (["dense.tflite", "--out", "."], "'.' cannot be written; choose another --out"),
        (["dense.tflite", "--seconds", "nan"], "--seconds nan: must be above 0"),
        (["dense.tflite", "--threads", "0"], "--threads 0: must be 1 to 1024"),
    ],
)
def test_a_mistake_is_one_line_and_leaves_nothing(tmp_path, monkeypatch, capsys, change, message):
    dense, sparse = both(tmp_path)
    sparse.rename(tmp_path / "cut.tflite").write_bytes(dense.read_bytes()[:900])
    (tmp_path / "text.tflite").write_text("no model")
    monkeypatch.chdir(tmp_path)
    before = sorted(tmp_path.iterdir())
    assert measure.main(change) == measure.MISTAKE
    errors = [line for line in capsys.readouterr().err.splitlines() if "cold start" not in line]
    assert len(errors) == 1
    assert errors[0].startswith(f"measure.py: error: {message}")
    assert sorted(tmp_path.iterdir()) == before


def test_a_runtime_that_is_missing_or_broken_is_named(tmp_path, monkeypatch):
    monkeypatch.setattr(measure, "RUNTIMES", {"gone": "no_such_runtime.interpreter"})
    with pytest.raises(measure.Mistake, match=r"no runtime is installed: .*ai-edge-litert"):
        measure.find_runtime()
    (tmp_path / "broken_runtime.py").write_text("raise SystemError('numpy 2 is too new')\n")
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setattr(measure, "RUNTIMES", {"old": "broken_runtime"})
    with pytest.raises(measure.Mistake, match=r"old cannot be imported: numpy 2 is too new"):
        measure.find_runtime()


# -- what systems say -----------------------------------------------------------------------


def test_cores_are_named_by_their_part_numbers():
    assert measure.cores_of(PI.format("0xd08", "0xd08")) == [{"name": "Cortex-A72", "count": 2}]
    assert measure.cores_of(PI.format("0xd03", "0xd0b")) == [
        {"name": "Cortex-A53", "count": 1},
        {"name": "Cortex-A76", "count": 1},
    ]
    unknown = measure.cores_of(PI.format("0xfff", "0xfff"))
    assert unknown == [{"name": "implementer 0x41 part 0xfff", "count": 2}]
    assert measure.core_name(0x51, 0x804) == "Kryo 4xx Gold"
    x86 = "processor\t: 0\nmodel name\t: Some x86 @ 2 GHz\n"
    assert measure.cores_of(x86) == [{"name": "Some x86 @ 2 GHz", "count": 1}]


def put(root, path, text):
    (root / path).parent.mkdir(parents=True, exist_ok=True)
    (root / path).write_text(text)


def test_a_boards_memory_heat_and_clock_are_read(tmp_path):
    put(tmp_path, "proc/cpuinfo", PI.format("0xd08", "0xd08"))
    put(
        tmp_path, "proc/meminfo", "MemTotal:  3884360 kB\nMemFree: 1 kB\nMemAvailable: 3000000 kB\n"
    )
    put(tmp_path, "proc/device-tree/model", "Raspberry Pi 4 Model B Rev 1.4\0")
    for number, degrees in enumerate(("45277", "61822", "not read", "-273000")):
        put(tmp_path, f"sys/class/thermal/thermal_zone{number}/temp", f"{degrees}\n")
    for number, clock in enumerate((600000, 1200000)):
        cpu = f"sys/devices/system/cpu/cpu{number}/cpufreq"
        put(tmp_path, f"{cpu}/scaling_cur_freq", f"{clock}\n")
        put(tmp_path, f"{cpu}/cpuinfo_max_freq", "1500000\n")
    found = measure.machine(tmp_path)
    assert found["model"] == "Raspberry Pi 4 Model B Rev 1.4"
    assert found["memory_bytes"] == 3884360 * 1024
    assert found["memory_available_bytes"] == 3000000 * 1024
    assert measure.temperature(tmp_path) == 61.822
    assert measure.clock_fraction(tmp_path) == 0.8


def test_a_system_that_tells_nothing_gives_none(tmp_path):
    found = measure.machine(tmp_path)
    assert (found["cores"], found["memory_bytes"]) == ([], None)
    assert measure.temperature(tmp_path) is None
    assert measure.clock_fraction(tmp_path) is None
    assert measure.throttling([], None, None)["throttled"] is None


def test_throttling_is_told_by_flags_and_by_clocks():
    assert measure.power_flags("throttled=0x50005\n") == 0x50005
    assert measure.power_flags("VCHI initialization failed") is None
    assert measure.throttling([1.0, 1.0, 1.0], 0, 0)["throttled"] is False
    assert measure.throttling([1.0, 1.0, 0.5], None, None)["throttled"] is False  # at rest once
    slow = measure.throttling([0.4, 0.4, 1.0], None, None)
    assert slow["reasons"] == ["clock at 40% of its highest"]
    # Bit 2 and 16 are set: throttled now; the voltage was too low before we began.
    assert measure.throttling([], 0x10000, 0x10004)["reasons"] == ["throttled"]
    assert measure.throttling([], 0, 0x80000)["reasons"] == ["soft temperature limit"]
