"""Logs of benchmark_model: by the adb script, and by hand."""

import os
import subprocess
from pathlib import Path

import pytest

from edge_export import device_json, device_log, on_device
from fedsparse.errors import BenchError

SCRIPT = Path(on_device.__file__).with_name("adb_benchmark.sh")
HEADING = """\
INFO: STARTING!
INFO: Log parameter values verbosely: [0]
INFO: Num threads: [{threads}]
INFO: Graph: [{graph}]
INFO: Loaded model {graph}
INFO: Initialized session in 1.579ms.
INFO: Running benchmark for at least 1 iterations and at least 0.5 seconds
INFO: count=9 first=61000 curr=55000 min=50000 max=61000 avg=5.5e+04 std=9 p5=1 median=2 p95=3
"""
RUN = """\
INFO: count=40 first=12 curr=11 min=10 max=30 avg={mean} std=2 p5=10 median={median} p95=20
INFO: Inference timings in us: Init: 1579, First inference: 61000, Warmup (avg): 55000, \
Inference (avg): {mean}
INFO: Memory footprint delta from the start of the tool (MB): init=6.4 overall=19.8
"""
ADB = """\
#!/bin/sh
# An adb that answers as a phone would; it notes what was pushed and removed.
case "$1 $2" in
"get-state ") echo "$STATE" ;;
"shell getprop") echo "Phone 7" ;;
"push "*) echo "push $2" >>"$NOTES" ;;
"shell rm") echo "rm $4" >>"$NOTES" ;;
"shell dumpsys"*) echo "  Thermal Status: 0" ;;
"shell cat"*) echo "MemTotal: 4000 kB"; echo "MemAvailable: 3000 kB" ;;
"shell "*graph*)
  test -z "$BREAKS" || { echo "dlopen failed"; exit 1; }
  cat "$LOG" ;;
esac
"""


def run(graph="/data/local/tmp/dense.tflite", mean="1.24027e+06", median=1239807, threads=4):
    return HEADING.format(graph=graph, threads=threads) + RUN.format(mean=mean, median=median)


def read(folder, text):
    path = folder / "some.log"
    path.write_text(text)
    return device_json.from_mapping(device_log.read(path), str(path))


def test_a_log_by_hand_is_read(tmp_path):
    found = read(tmp_path, run() + run("/data/local/tmp/sparse.tflite", "900.5", 800))
    assert (found.name, found.threads, found.complete) == ("android", 4, True)
    assert found.machine.memory_bytes is None
    assert found.conditions.throttled is None
    dense, sparse = found.results
    assert (dense.file, dense.count, dense.sha256) == ("dense.tflite", 40, None)
    assert dense.seconds.p50 == pytest.approx(1.239807, abs=1e-12)
    assert dense.seconds.mean == pytest.approx(1.24027, abs=1e-12)
    assert (sparse.file, sparse.seconds.p50) == ("sparse.tflite", 800e-6)


def test_an_old_log_has_a_mean_alone(tmp_path):
    found = read(tmp_path, run().replace(" p5=10 median=1239807 p95=20", ""))
    assert found.results[0].seconds.typical == ("mean", 1.24027)


def test_a_log_of_the_android_system_is_read(tmp_path):
    lines = [f"I tflite  : {line.removeprefix('INFO: ')}\r" for line in run().splitlines()]
    assert read(tmp_path, "\n".join(lines)).results[0].seconds.p50 == 1.239807


def test_runs_in_turns_have_the_median_of_their_medians(tmp_path):
    own = "fedsparse: log 1\nfedsparse: name Phone 7\nfedsparse: before Thermal Status: 0\n"
    own += "MemTotal:  4000 kB\nMemAvailable:  3000 kB\n"
    file = "fedsparse: file my dense.tflite\nfedsparse: sha256 " + "ab" * 32 + "\n"
    runs = [file + run("/data/local/tmp/1.tflite", "7.0", m, 1) for m in (30, 10, 20)]
    found = read(tmp_path, own + "".join(runs) + "fedsparse: after   Thermal Status: 2\n")
    (result,) = found.results
    assert (result.file, result.sha256, result.count) == ("my dense.tflite", "ab" * 32, 120)
    assert result.seconds.p50 == pytest.approx(20e-6)
    assert found.machine.memory_available_bytes == 3000 * 1024
    assert (found.conditions.throttled, found.conditions.reasons) == (True, ["thermal status 2"])
    assert found.name == "Phone 7"


def test_a_log_that_breaks_off_is_not_complete(tmp_path):
    found = read(tmp_path, run() + HEADING.format(graph="/x/other.tflite", threads=4))
    assert [result.file for result in found.results] == ["dense.tflite"]
    assert found.complete is False


@pytest.mark.parametrize("text", ["nothing of it", HEADING, RUN, "fedsparse: log 1\n"])
def test_a_log_without_a_finished_run_is_refused(tmp_path, text):
    (tmp_path / "some.log").write_text(text)
    with pytest.raises(BenchError, match="holds no finished run of benchmark_model"):
        device_log.read(tmp_path / "some.log")


@pytest.mark.parametrize("what", ["count=1 ", "Graph: [", "count=1 avg=1 "])
def test_no_more_of_a_line_is_looked_at_than_a_run_has(tmp_path, monkeypatch, what):
    seen, take = [], device_log._Log.take
    monkeypatch.setattr(device_log._Log, "take", lambda log, line: seen.append(len(line)))
    (tmp_path / "some.log").write_text(what * 10_000)
    with pytest.raises(BenchError, match="holds no finished run"):
        device_log.read(tmp_path / "some.log")
    assert max(seen) <= 4096
    monkeypatch.setattr(device_log._Log, "take", take)
    with pytest.raises(BenchError, match="holds no finished run"):
        device_log.read(tmp_path / "some.log")


def test_no_pattern_holds_two_parts_that_match_the_same_text():
    patterns = [each.pattern for each in vars(device_log).values() if hasattr(each, "pattern")]
    assert len(patterns) > 5
    for pattern in patterns:
        open_ended = [part for part in (".*", ".+") if part in pattern]
        assert not open_ended or pattern.startswith("^"), pattern


# -- the script, with an adb that only says what a phone would say ------------------------------


def adb_benchmark(folder, *arguments, state="device", breaks="", **environment):
    """Run the script beside such an adb."""
    tools = folder / "tools"
    tools.mkdir()
    (tools / "adb").write_text(ADB)
    (tools / "adb").chmod(0o755)
    (folder / "phone.log").write_text(run("/data/local/tmp/1.tflite", "7.0", 5, 2))
    for name in ("benchmark_model", "dense.tflite", "my sparse.tflite"):
        (folder / name).write_text(name)
    path = f"{tools}{os.pathsep}{os.environ['PATH']}"
    told = {
        "STATE": state,
        "BREAKS": breaks,
        "LOG": folder / "phone.log",
        "NOTES": folder / "notes",
    }
    return subprocess.run(
        ["sh", SCRIPT, *arguments],
        cwd=folder,
        env={"PATH": path, **{key: str(value) for key, value in {**told, **environment}.items()}},
        capture_output=True,
        text=True,
    )


def test_the_script_runs_files_in_turns_and_cleans_up(tmp_path):
    files = ("dense.tflite", "my sparse.tflite")
    done = adb_benchmark(tmp_path, "benchmark_model", "out.log", *files, ROUNDS=3, THREADS=2)
    assert done.returncode == 0, done.stderr
    text = (tmp_path / "out.log").read_text()
    order = [line[16:] for line in text.splitlines() if line.startswith("fedsparse: file ")]
    assert order == [*files] * 3
    found = read(tmp_path, text)
    assert (found.name, found.threads, found.complete) == ("Phone 7", 2, True)
    assert [(r.file, r.count) for r in found.results] == [(file, 120) for file in files]
    assert found.machine.memory_bytes == 4000 * 1024
    assert found.conditions.throttled is False
    notes = (tmp_path / "notes").read_text().splitlines()
    pushed = ("benchmark_model", *files)
    assert notes == [*(f"push {name}" for name in pushed), "rm /data/local/tmp/fedsparse-benchmark"]
    assert not list(tmp_path.glob("out.log.*"))


@pytest.mark.parametrize(
    ("arguments", "options", "message"),
    [
        (("benchmark_model", "out.log"), {}, "give the binary, the log to write"),
        (("benchmark_model", "out.log", "no.tflite"), {}, "no file 'no.tflite'"),
        (("none", "out.log", "dense.tflite"), {}, "no file 'none'"),
        (("benchmark_model", "no/out.log", "dense.tflite"), {}, "'no/out.log' cannot be written"),
        (("benchmark_model", "out.log", "dense.tflite"), {"state": ""}, "adb reaches no device"),
        (
            ("benchmark_model", "out.log", "dense.tflite"),
            {"breaks": "yes"},
            "benchmark_model fails on 'dense.tflite': dlopen failed",
        ),
    ],
)
def test_what_the_script_refuses_leaves_no_log(tmp_path, arguments, options, message):
    done = adb_benchmark(tmp_path, *arguments, **options)
    assert done.returncode == 2
    assert f"adb_benchmark.sh: error: {message}" in done.stderr.splitlines()[-1]
    assert not list(tmp_path.glob("out.log*"))
