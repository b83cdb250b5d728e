"""`fedsparse compare` on tiny runs: what is run, what is not run again, how it ends badly."""

import contextlib
import json
import os
import signal
import time

import pytest
import tomli_w

from fedsparse.errors import RunFolderError
from fedsparse.runs import RunFolder
from simulations.sweep import held
from tests.command_line import error_line, invoke, spawn
from tests.tiny_runs import BASE

SMALL = {
    **BASE,
    "run": {"rounds": 1},
    "data": {"name": "digits", "samples": 120, "public_samples": 30, "test_samples": 40},
    "fleet": {"clients": 2},
}
DIES = "dies: strategy.name=dying_strategy:Dies"


def toml(folder, **tables):
    path = folder / "small.toml"
    path.write_text(tomli_w.dumps({**SMALL, **tables}))
    return path


def identity(out):
    """Return what tells a file from one that was written again, for each finished run."""
    return {
        path.parent.name: (path.stat().st_ino, path.stat().st_mtime_ns)
        for path in out.glob("points/*/summary.json")
    }


@pytest.fixture(scope="module")
def compared(tmp_path_factory):
    """A whole comparison: its folder, its configuration, and what the command printed."""
    folder = tmp_path_factory.mktemp("compared")
    config = toml(
        folder,
        variant=[{"name": "slow", "set": ["strategy.name=static", "client.lr=0.001"]}],
        compare={"seeds": [0, 1], "densities": [0.2], "baseline": "static"},
    )
    out = folder / "out"
    done = invoke(
        "compare",
        config,
        "--strategies",
        "fedavg,static",
        "--variant",
        DIES,
        "--out",
        out,
        "--json",
    )
    return config, out, done


def test_one_object_on_stdout(compared):
    _, out, done = compared
    result = json.loads(done.stdout)
    assert result["out"] == str(out)
    assert [(p["variant"], p["asked_density"], p["seed"]) for p in result["points"]] == [
        (variant, density, seed)
        for variant, density in (("fedavg", 1), ("static", 0.2), ("dies", 1), ("slow", 0.2))
        for seed in (0, 1)
    ]
    assert [line["variant"] for line in result["table"]] == ["fedavg", "static", "dies", "slow"]
    kept = json.loads((out / "comparison.json").read_text())
    assert (kept["points"], kept["table"]) == (result["points"], result["table"])


def test_each_point_is_an_ordinary_run(compared):
    _, out, done = compared
    for point in json.loads(done.stdout)["points"]:
        if point["variant"] != "dies":
            summary = RunFolder.open(point["run"]).summary()
            assert {k: point[k] for k in summary} == summary
    assert json.loads(invoke("resume", out / "points/slow-d0.2-s1", "--json").stdout)["seed"] == 1


def test_a_point_that_dies_is_named_and_ends_no_other(compared):
    _, out, done = compared
    assert done.exit_code == 3
    result = json.loads(done.stdout)
    assert {p["variant"] for p in result["points"] if p["status"] == "failed"} == {"dies"}
    assert all(p["status"] == "finished" for p in result["points"] if p["variant"] != "dies")
    reasons = {p["reason"] for p in result["points"] if p["variant"] == "dies"}
    assert reasons == {"killed by signal 9 (SIGKILL)"}
    last = done.stderr.splitlines()[-1]
    assert last.startswith("fedsparse: error: 2 of 8 runs failed; the first, dies, density 1, ")
    assert "killed by signal 9" in (out / "comparison.html").read_text()


def test_started_again_no_finished_run_is_repeated(compared):
    _, out, done = compared
    before = identity(out)
    again = invoke("compare", "--out", out, "--json", "--quiet")
    assert again.exit_code == 3
    assert identity(out) == before
    assert json.loads(again.stdout) == json.loads(done.stdout)


def test_a_report_alone_runs_nothing_and_may_change_the_baseline(compared):
    _, out, _ = compared
    before = {p: p.stat().st_mtime_ns for p in out.glob("points/**/*")}
    page = (out / "comparison.html").stat().st_ino
    again = invoke("compare", "--out", out, "--report-only", "--baseline", "fedavg")
    assert {p: p.stat().st_mtime_ns for p in out.glob("points/**/*")} == before
    assert (out / "comparison.html").stat().st_ino != page
    assert "differences are to fedavg" in again.stdout
    assert [line.split()[0] for line in again.stdout.splitlines()[:5]] == [
        "Variant",
        "fedavg",
        "static",
        "dies",
        "slow",
    ]


def test_the_folder_of_another_comparison_is_refused(compared):
    config, out, _ = compared
    before = identity(out)
    line = error_line(invoke("compare", config, "--strategies", "fedavg,static", "--out", out))
    assert line.startswith(f"'{out}' holds another comparison (variants dies, fedavg, slow, static")
    assert identity(out) == before


def test_a_run_ignores_the_tables_of_a_comparison(compared, tmp_path):
    config, _, _ = compared
    done = invoke(
        "run",
        config,
        "--set",
        "strategy.name=static",
        "--no-report",
        "--json",
        "--out",
        tmp_path / "run",
    )
    assert json.loads(done.stdout)["strategy"] == "static"


def wait_for_run(out, name):
    """Wait until the run of a point is under way in a process that holds its folder."""
    place = out / "points" / name
    for _ in range(1200):
        with contextlib.suppress(OSError):
            if (place / ".lock").read_text():
                return place
        time.sleep(0.05)
    raise AssertionError(f"{name} was never begun")


def wait_until_free(place):
    """Wait until no process holds a run folder."""
    for _ in range(1200):
        try:
            with RunFolder.open(place).lock():
                return
        except RunFolderError:
            time.sleep(0.05)
    raise AssertionError(f"'{place}' is still held")


LONG = ("--set", "run.rounds=40", "--strategies", "static", "--seeds", "0,1,2", "--jobs", "1")


def test_killed_and_started_again_does_no_finished_run_twice(tmp_path):
    config, out = toml(tmp_path, run={"rounds": 2}), tmp_path / "out"
    asked = ["compare", config, "--strategies", "static", "--seeds", "0,1,2", "--jobs", "1"]
    process = spawn(*asked, "--out", out)
    place = wait_for_run(out, "static-d0.1-s1")
    process.send_signal(signal.SIGKILL)
    process.communicate()
    wait_until_free(place)
    before = identity(out)
    assert "static-d0.1-s0" in before
    assert not (out / "points/static-d0.1-s2").exists()
    again = invoke(*asked, "--out", out, "--json")
    assert again.exit_code == 0
    after = identity(out)
    assert {name: after[name] for name in before} == before
    assert set(after) == {f"static-d0.1-s{seed}" for seed in range(3)}


def test_interrupted_its_runs_end_and_it_says_how_to_go_on(tmp_path):
    config, out = toml(tmp_path), tmp_path / "out"
    process = spawn("compare", config, *LONG, "--out", out)
    place = wait_for_run(out, "static-d0.1-s0")
    process.send_signal(signal.SIGINT)
    stdout, stderr = process.communicate(timeout=60)
    assert process.returncode == 130
    assert stdout == ""
    assert stderr == f"fedsparse: interrupted; to go on: fedsparse compare --out {out}\n"
    with RunFolder.open(place).lock():
        assert not (place / "summary.json").exists()
    assert sorted(p.name for p in (out / "points").iterdir()) == ["static-d0.1-s0"]


def test_two_cannot_work_in_one_folder(compared):
    _, out, _ = compared
    with held(out):
        line = error_line(invoke("compare", "--out", out))
    assert line == f"'{out}' is in use by another process; wait for it to end or stop it"


@pytest.fixture
def place(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ([], "nothing to compare; give --strategies"),
        (["--strategies", "fedtinny"], "unknown strategy 'fedtinny'; did you mean 'fedtiny'?"),
        (["--strategies", ""], "--strategies ''"),
        (["--strategies", "static,static"], "'static' stands there twice"),
        (["--strategies", "static", "--densities", "0.1,1.5"], "--densities: '1.5' is wrong"),
        (["--strategies", "static", "--densities", ""], "--densities ''"),
        (["--strategies", "static", "--seeds", "0,1.5"], "--seeds: '1.5' is wrong"),
        (["--strategies", "static", "--seeds", "0,0"], "--seeds: 0 stands there twice"),
        (["--variant", "slow: client.lrr=1"], "variant 'slow': unknown key 'client.lrr'"),
        (["--variant", "slow"], "--variant 'slow' is not NAME: KEY=VALUE"),
        (["--strategies", "static", "--variant", "static: client.lr=1"], "twice"),
        (["--strategies", "static", "--baseline", "statc"], "did you mean 'static'?"),
        (["--strategies", "static", "--set", "client.lr=0"], "client.lr = 0"),
        (["--strategies", "static", "--jobs", "0"], "--jobs"),
        (["--strategies", "static", "--jobs", "2", "--engine", "ray"], "--jobs 2: each run on"),
        (["--strategies", "static", "--preset", "dem"], "preset 'dem'; did you mean 'demo'?"),
        (["--out", "nowhere", "--report-only"], "'nowhere' holds no comparison to report on"),
        (["gone.toml", "--strategies", "static"], "no configuration file 'gone.toml'"),
        (["demo", "--strategies", "static"], "did you mean '--preset demo'?"),
        (["a.toml", "--preset", "demo"], "give one"),
    ],
)
def test_mistakes_are_one_line_and_leave_nothing(place, options, said):
    assert said in error_line(invoke("compare", *options))
    assert list(place.iterdir()) == []


def test_a_folder_that_holds_something_else_is_refused(place):
    (place / "full").mkdir()
    (place / "full" / "notes.txt").write_text("mine")
    line = error_line(invoke("compare", "--strategies", "static", "--out", "full"))
    assert line == "'full' is not empty; choose another --out"
    assert os.listdir(place / "full") == ["notes.txt"]
