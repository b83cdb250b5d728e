"""On this machine: files take turns in processes of their own, and nothing is left of them."""

import os
import tempfile
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pytest
from ai_edge_litert.interpreter import Interpreter

from edge_export.bench import local
from edge_export.bench.worker import random_input
from fedsparse.errors import BenchError
from tests.edge_export.bench import tiny_files


@pytest.fixture(autouse=True)
def brief(monkeypatch, tmp_path):
    """Measure briefly, with temporary files where a test can see that none stays."""
    monkeypatch.setattr(local, "ROUNDS", 4)
    monkeypatch.setattr(local, "TURN_SECONDS", 0.001)
    monkeypatch.setattr(local, "WARM_UP_SECONDS", 0.01)
    temporary = tmp_path / "temporary"
    temporary.mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(temporary))
    yield
    assert list(temporary.iterdir()) == []


def test_each_file_has_its_figures(tmp_path):
    files = [tiny_files.sparse(tmp_path), tiny_files.dense(tmp_path)]
    found = local.measure(files)
    assert [cost.file for cost in found] == files
    for cost in found:
        assert 0 < cost.p50_ms <= cost.p90_ms <= cost.p99_ms
        assert cost.samples % 4 == 0
        assert cost.cold_start_ms > 0
        assert cost.import_ms > 0
        assert cost.peak_memory_bytes > 0
        assert cost.file_bytes == cost.file.stat().st_size
        assert cost.runtime == "litert"


def test_outputs_are_those_of_the_seeded_input(tmp_path):
    path = tiny_files.sparse(tmp_path)
    [cost] = local.measure([path])
    interpreter = Interpreter(model_path=str(path))
    interpreter.allocate_tensors()
    [wanted], [given] = interpreter.get_input_details(), interpreter.get_output_details()
    interpreter.set_tensor(wanted["index"], random_input(wanted["shape"], wanted["dtype"]))
    interpreter.invoke()
    np.testing.assert_allclose(cost.outputs[0], interpreter.get_tensor(given["index"]), rtol=1e-6)


def test_files_take_turns_and_every_other_round_goes_backwards(tmp_path, monkeypatch):
    turns, run = [], local.Worker.run
    monkeypatch.setattr(local.Worker, "run", lambda w, n: (turns.append(w.file.stem), run(w, n))[1])
    local.measure([tiny_files.dense(tmp_path), tiny_files.sparse(tmp_path)])
    assert turns == ["dense", "sparse", "sparse", "dense"] * 2


def test_an_open_size_of_an_onnx_file_is_one(tmp_path):
    [cost] = local.measure([tiny_files.onnx_file(tmp_path)])
    assert cost.runtime == "onnxruntime"
    np.testing.assert_array_equal(cost.outputs[0], random_input([1, 4], "float32"))


def test_an_input_that_cannot_be_made_up_is_told(tmp_path):
    with pytest.raises(BenchError, match=r"onnxruntime cannot run '.*same\.onnx'"):
        local.measure([tiny_files.onnx_file(tmp_path, "STRING")])


def test_a_truncated_file_is_told_in_one_line(tmp_path):
    path = tiny_files.dense(tmp_path)
    path.write_bytes(path.read_bytes()[:-400])
    with pytest.raises(BenchError, match=r"litert cannot run '.*dense\.tflite'"):
        local.measure([tiny_files.sparse(tmp_path), path])


def test_a_file_that_crashes_the_runtime_is_told_in_one_line(tmp_path):
    with pytest.raises(BenchError, match=r"crashing\.tflite': it crashed with SIG[A-Z]+;"):
        local.measure([tiny_files.dense(tmp_path), tiny_files.crashing(tmp_path)])


def test_a_crash_while_measuring_is_told(tmp_path):
    answers = '{"import_ns": 1, "cold_ns": 1, "version": "1"}'
    python = tiny_files.program(tmp_path, "python", f"echo '{answers}'; read line; kill -SEGV $$")
    with pytest.raises(BenchError, match="it crashed with SIGSEGV"):
        local.measure([tiny_files.dense(tmp_path)], python=python)


STARTED = '{"import_ns": 1, "cold_ns": 1, "version": "1"}'


@pytest.mark.parametrize(
    "text",
    [
        "echo hello",
        "echo '[1]'",
        "echo '{}'",
        """echo '{"import_ns": "x", "cold_ns": 1, "version": "1"}'""",
        """echo '{"failed": ["load"]}'""",
        f"echo '{STARTED}'; read line; echo 7",
        f"""echo '{STARTED}'; read line; echo '{{"ns": []}}'""",
    ],
)
def test_an_interpreter_that_answers_something_else_is_told(tmp_path, text):
    python = tiny_files.program(tmp_path, "python", text)
    with pytest.raises(BenchError, match="give another --runtime-python"):
        local.measure([tiny_files.dense(tmp_path)], python=python)


@pytest.mark.parametrize("last", ["", """echo '{"peak_memory_bytes": 1}';"""])
def test_a_worker_that_does_not_end_is_told(tmp_path, monkeypatch, last):
    monkeypatch.setattr(local, "PATIENCE_TO_END", 0.2)
    loop = f"""while read line; do
case $line in end) {last} exec sleep 60 >&- ;; esac; echo '{{"ns": [9000000]}}'; done"""
    python = tiny_files.program(tmp_path, "python", f"echo '{STARTED}'; {loop}")
    with pytest.raises(BenchError, match="does not end after"):
        local.measure([tiny_files.dense(tmp_path)], python=python)


@pytest.mark.skipif(find_spec("tflite_runtime") is not None, reason="tflite_runtime is here")
def test_a_missing_runtime_says_how_to_make_its_environment(tmp_path):
    with pytest.raises(BenchError, match=r"pip install tflite-runtime 'numpy<2'`, then --runtime-"):
        local.measure([tiny_files.dense(tmp_path)], runtime="tflite-runtime")


def test_an_interpreter_that_is_none_is_told(tmp_path):
    with pytest.raises(BenchError, match="cannot be started: No such file"):
        local.measure([tiny_files.dense(tmp_path)], python=Path("/nowhere/python"))


def test_more_threads_than_cores_are_refused(tmp_path):
    cores = len(os.sched_getaffinity(0))
    assert len(local.pinned(cores)) == cores
    with pytest.raises(BenchError, match=f"{cores + 1} threads need as many cores"):
        local.measure([tiny_files.dense(tmp_path)], threads=cores + 1)
