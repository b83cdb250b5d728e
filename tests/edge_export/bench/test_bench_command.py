"""`fedsparse bench`: what it prints, and each mistake in one line."""

import json

import pytest

from edge_export.bench import arm, arm_root, arm_setup, local
from edge_export.bench.arm import ArmCost
from edge_export.bench.arm_root import Root
from tests.command_line import error_line, invoke
from tests.edge_export.bench import tiny_files


@pytest.fixture(autouse=True)
def brief(monkeypatch):
    monkeypatch.setattr(local, "ROUNDS", 2)
    monkeypatch.setattr(local, "WARM_UP_SECONDS", 0.01)


@pytest.fixture
def files(tmp_path):
    return [tiny_files.dense(tmp_path, sidecar=True), tiny_files.sparse(tmp_path)]


@pytest.fixture
def counted(monkeypatch):
    """Counts of an emulator that is not there: 4 million, then 1 million."""

    def instructions(files, *, core, runtime, root, progress):
        costs = [(4_000_000, 100), (1_000_000, 900)]
        return [
            ArmCost(file, runtime, "2.3.0", core, one, setup, file.stat().st_size, ())
            for file, (one, setup) in zip(files, costs, strict=True)
        ]

    monkeypatch.setattr(arm, "instructions", instructions)


def test_json_has_a_row_for_each_file_in_order(files):
    done = invoke("bench", *files, "--json")
    assert done.exit_code == 0, done.output
    dense, sparse = json.loads(done.stdout)["results"]
    assert [dense["file"], sparse["file"]] == list(map(str, files))
    assert dense["ratio"] == 1
    assert sparse["ratio"] == pytest.approx(sparse["p50_ms"] / dense["p50_ms"])
    assert dense["target"] == "local"
    assert (dense["core"], dense["threads"], dense["runtime"]) == (None, 1, "litert")
    assert dense["file_bytes"] == files[0].stat().st_size
    assert dense["layout"] == "dense"
    assert sparse["layout"] is None  # export wrote nothing beside it
    for key in ("p90_ms", "p99_ms", "peak_memory_bytes", "cold_start_ms", "import_ms"):
        assert dense[key] > 0
    assert not any("instructions" in key for key in dense)


def test_counts_are_named_instructions_and_never_time(files, counted):
    done = invoke("bench", *files, "--on", "arm", "--core", "cortex-a76", "--json")
    dense, sparse = json.loads(done.stdout)["results"]
    assert dense["core"] == "cortex-a76"
    assert (sparse["instructions"], sparse["setup_instructions"]) == (1_000_000, 900)
    assert sparse["ratio"] == 0.25
    assert not any(key.endswith("_ms") for key in dense)


def test_a_table_compares_with_the_first(files, counted):
    done = invoke("bench", *files, "--on", "arm")
    assert "4.000 M" in done.stdout
    assert "4.00x fewer" in done.stdout
    assert "emulated cortex-a72" in done.stdout


def test_a_picture_shows_what_the_table_says(files, counted, tmp_path):
    pytest.importorskip("plotly")
    done = invoke("bench", *files, "--on", "arm", "--picture", tmp_path / "costs.html")
    assert f"picture {tmp_path / 'costs.html'}" in done.stdout
    assert "instructions on cortex-a72" in (tmp_path / "costs.html").read_text()


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ([], "give at least one"),
        (["FILE", "FILE"], "give each FILE once"),
        (["FILE", "--on", "amr"], "unknown place 'amr'; did you mean 'arm'?"),
        (["FILE", "--on", "arm", "--core", "cortex-a72x"], "did you mean 'cortex-a72'?"),
        (["FILE", "--core", "cortex-a72"], "--core and --root go with --on arm"),
        (["FILE", "--on", "arm", "--threads", "2"], "counts one thread"),
        (["FILE", "--on", "arm", "--runtime-python", "x"], "goes with --on local"),
        (["FILE", "--setup-arm"], "measures no files"),
        (["FILE", "--sources", "x"], "goes with --setup-arm"),
        (["FILE", "--runtime", "lietrt"], "did you mean 'litert'?"),
        (["FILE", "--picture", "x.gif"], "suffix '.gif'"),
        (["missing.tflite"], "'missing.tflite' cannot be read"),
    ],
)
def test_a_mistake_is_one_line(files, words, said):
    words = [files[0] if word == "FILE" else word for word in words]
    assert said in error_line(invoke("bench", *words))


def test_setting_up_says_what_is_there(tmp_path, monkeypatch):
    (tmp_path / "content").write_bytes(bytes(3_000_000))
    record = {"packages": {"litert": "2.3.0"}}
    monkeypatch.setattr(arm_setup, "set_up", lambda *_, **__: Root(tmp_path, "3.11"))
    monkeypatch.setattr(arm_root, "record", lambda folder: record)
    assert "Python 3.11, litert 2.3.0; 3 MB" in invoke("bench", "--setup-arm").stdout
    found = json.loads(invoke("bench", "--setup-arm", "--json").stdout)
    assert (found["bytes"], found["packages"]) == (3_000_000, {"litert": "2.3.0"})
