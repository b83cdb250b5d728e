"""`fedsparse export`, from a run to a verified file, and every mistake in one line."""

import hashlib
import json
import os
import shutil
from dataclasses import replace

import numpy as np
import pytest
import safetensors.numpy

from edge_export import export as exporting
from edge_export import reading, verify
from fedsparse.errors import VerificationError
from tests import tiny_runs
from tests.command_line import invoke


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    path = tmp_path_factory.mktemp("runs") / "run"
    tiny_runs.run(path, "run.rounds=2")
    return path


def test_a_run_becomes_a_verified_file_with_its_figures(folder, tmp_path):
    out = tmp_path / "model.tflite"
    result = invoke("export", str(folder), "--out", str(out), "--json")
    assert result.exit_code == 0, result.stderr
    said = json.loads(result.stdout)
    beside = json.loads((tmp_path / "model.tflite.json").read_text())
    assert {k: v for k, v in said.items() if k != "out"} == beside
    assert beside["sha256"] == hashlib.sha256(out.read_bytes()).hexdigest()
    assert beside["file_bytes"] == out.stat().st_size < beside["dense_bytes"]
    assert beside["accuracy"] == beside["accuracy_torch"]
    assert beside["samples"] == 100
    assert beside["relative_difference"] < 1e-5
    assert 0 < beside["kept_macs"] < beside["macs"]


@pytest.mark.parametrize("values", ["f16", "int8", "int8-weights", "int8-dynamic", "auto"])
def test_other_values_take_less_room_and_are_verified(folder, tmp_path, values):
    out = tmp_path / "model.tflite"
    result = invoke("export", str(folder), "--out", str(out), "--values", values, "--quiet")
    assert result.exit_code == 0, result.stderr
    assert "verified     100 test samples" in result.stdout
    row = json.loads((tmp_path / "model.tflite.json").read_text())
    assert row["file_bytes"] < 0.5 * row["dense_bytes"]


def test_the_plan_names_every_layer_and_writes_nothing(folder, tmp_path):
    result = invoke("export", str(folder), "--explain")
    assert result.exit_code == 0, result.stderr
    for text in ("conv1", "conv2", "fc1", "fc2", "no sparse kernel", "f32 sparse", "f32 dense"):
        assert text in result.stdout
    plan = json.loads(invoke("export", str(folder), "--explain", "--json").stdout)
    assert [row["layer"] for row in plan["layers"]] == ["conv1", "conv2", "fc1", "fc2"]
    assert sum(option["chosen"] for option in plan["candidates"]) == 1


def test_a_file_of_weights_outside_of_a_run_says_what_it_is(folder, tmp_path):
    shutil.copy(folder / "model.safetensors", tmp_path / "w.safetensors")
    known = ("--model", "cnn", "--input-shape", "1,8,8", "--classes", "10", "--width", "0.5")
    out = tmp_path / "model.tflite"
    result = invoke("export", str(tmp_path / "w.safetensors"), "--out", str(out), *known)
    assert result.exit_code == 0, result.stderr
    assert "random samples" in result.stdout
    inside = tmp_path / "inside.tflite"
    assert invoke("export", str(folder / "model.safetensors"), "--out", str(inside)).exit_code == 0
    assert inside.read_bytes() == out.read_bytes()


def test_over_its_tolerance_it_leaves_with_3_and_no_file(folder, tmp_path, monkeypatch):
    zeros = lambda content, samples, track: np.zeros((len(samples), 10), np.float32)
    monkeypatch.setattr(verify, "run", zeros)
    result = invoke("export", str(folder), "--out", str(tmp_path / "model.tflite"))
    assert result.exit_code == 3
    assert "differ from the model's" in result.stderr
    assert list(tmp_path.iterdir()) == []


def test_auto_takes_the_next_when_one_does_not_hold(folder, tmp_path, monkeypatch):
    plain, seen = verify.verify, []

    def first_fails(*arguments):
        seen.append(arguments[0])
        if len(seen) == 1:
            raise VerificationError("does not hold")
        return plain(*arguments)

    monkeypatch.setattr(exporting.verify, "verify", first_fails)
    result = invoke("export", str(folder), "--out", str(tmp_path / "m.tflite"), "--values", "auto")
    assert result.exit_code == 0, result.stderr
    assert "does not hold" in result.stderr
    assert (tmp_path / "m.tflite").read_bytes() == seen[1] != seen[0]


@pytest.mark.parametrize("last", [1, 2])
def test_a_full_disk_leaves_what_was_there(folder, tmp_path, monkeypatch, last):
    plain, seen = os.fsync, []

    def full(descriptor):
        seen.append(descriptor)
        if len(seen) == last:
            raise OSError(28, "No space left on device")
        plain(descriptor)

    for name in ("m.tflite", "m.tflite.json"):
        (tmp_path / name).write_bytes(b"before")
    monkeypatch.setattr(os, "fsync", full)
    result = invoke("export", str(folder), "--out", str(tmp_path / "m.tflite"))
    assert result.exit_code == 2
    assert "No space left on device; free some space" in result.stderr
    assert {p.name: p.read_bytes() for p in tmp_path.iterdir()} == {
        "m.tflite": b"before",
        "m.tflite.json": b"before",
    }


@pytest.mark.parametrize("labelled", [True, False])
def test_a_loss_of_accuracy_allows_no_file_of_zeros(folder, tmp_path, monkeypatch, labelled):
    zeros = lambda content, samples, track: np.zeros((len(samples), 10), np.float32)
    monkeypatch.setattr(verify, "run", zeros)
    what = [str(folder)]
    if not labelled:
        shutil.copy(folder / "model.safetensors", tmp_path / "w.safetensors")
        what = [str(tmp_path / "w.safetensors"), "--model", "cnn", "--input-shape", "1,8,8"]
        what += ["--classes", "10", "--width", "0.5"]
    out = tmp_path / "m.tflite"
    result = invoke("export", *what, "--out", str(out), "--accuracy-loss", "1.0")
    assert result.exit_code == (3 if labelled else 2)
    assert ("differ from the model's" if labelled else "no labelled samples") in result.stderr
    assert not out.exists()


def test_answers_that_are_lost_refuse_a_file_whose_outputs_are_near(folder, tmp_path, monkeypatch):
    plain = verify.run

    def wrong_by_little(content, samples, track):
        found = plain(content, samples, track)
        best = found.argmax(1)
        found[np.arange(len(found)), best] = found.min(1) - 1e-3
        return found

    monkeypatch.setattr(verify, "run", wrong_by_little)
    near = verify.Tolerance(10.0, 0.01)
    monkeypatch.setattr(verify, "tolerance_of", lambda storage: near)
    result = invoke("export", str(folder), "--out", str(tmp_path / "m.tflite"))
    assert result.exit_code == 3
    assert "accuracy falls from" in result.stderr


def test_a_sparse_tensor_that_is_read_back_otherwise_refuses_the_file(
    folder, tmp_path, monkeypatch
):
    plain = reading.sparse_tensors

    def changed(content, name):
        first, *others = plain(content, name)
        values = first.csr.values.copy()
        values[0] += 1
        return [replace(first, csr=replace(first.csr, values=values)), *others]

    monkeypatch.setattr(reading, "sparse_tensors", changed)
    out = tmp_path / "m.tflite"
    result = invoke("export", str(folder), "--out", str(out), "--layout", "sparse")
    assert result.exit_code == 3
    assert "not those that were written" in result.stderr
    assert not out.exists()


MISTAKES = {
    "neither a run folder nor a file": ("nothing", "--out", "m.tflite"),
    "--out FILE is missing": ("RUN",),
    "must end in one of .tflite, .onnx, .pte, .h": ("RUN", "--out", "m.bin"),
    "a .onnx file has no --values int8; choose one of: f32, f16, int8-weights": (
        *("RUN", "--out", "m.onnx", "--values", "int8"),
    ),
    "a .onnx file has no sparse layout (onnxruntime computes densely)": (
        *("RUN", "--out", "m.onnx", "--layout", "sparse"),
    ),
    "a .pte file has no --values f16; choose one of: f32": (
        *("RUN", "--out", "m.pte", "--values", "f16"),
    ),
    "a .h file has no --values int8-dynamic; choose one of: int8, f32": (
        *("RUN", "--out", "m.h", "--values", "int8-dynamic"),
    ),
    "does not exist; make it first": ("RUN", "--out", "no/m.tflite"),
    "is a folder": ("RUN", "--out", "."),
    "unknown target 'cortex-a71'; did you mean 'cortex-a7": (
        "RUN",
        "--out",
        "m.tflite",
        "--target",
        "cortex-a71",
    ),
    "has no sparse layout": (
        *("RUN", "--out", "m.tflite", "--values", "int8-dynamic", "--layout", "sparse"),
    ),
    "holds no model of client 2": ("RUN", "--out", "m.tflite", "--client", "2"),
    "lies in no run folder": ("w.safetensors", "--out", "m.tflite"),
    "say what a file outside of a run is": ("RUN", "--out", "m.tflite", "--width", "2"),
    "is no file of weights": ("cut.safetensors", "--out", "m.tflite", *("--model", "cnn")),
}


@pytest.mark.parametrize("said", MISTAKES)
def test_a_mistake_is_one_line_and_leaves_nothing(said, folder, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    content = (folder / "model.safetensors").read_bytes()
    (tmp_path / "w.safetensors").write_bytes(content)
    (tmp_path / "cut.safetensors").write_bytes(content[:100])
    before = sorted(tmp_path.iterdir())
    words = [str(folder) if word == "RUN" else word for word in MISTAKES[said]]
    if "cut.safetensors" in words:
        words += ["--input-shape", "1,8,8", "--classes", "10"]
    result = invoke("export", *words)
    assert result.exit_code == 2
    assert said in result.stderr
    assert len(result.stderr.strip().splitlines()) == 1
    assert sorted(tmp_path.iterdir()) == before


def test_a_run_without_its_model_is_refused(folder, tmp_path):
    copy = tmp_path / "run"
    shutil.copytree(folder, copy)
    (copy / "model.safetensors").unlink()
    result = invoke("export", str(copy), "--out", str(tmp_path / "m.tflite"))
    assert result.exit_code == 2
    assert "makes it again" in result.stderr


def test_weights_that_are_not_numbers_are_refused(folder, tmp_path):
    state = safetensors.numpy.load_file(folder / "model.safetensors")
    state["fc2.bias"][:] = np.nan
    (tmp_path / "w.safetensors").write_bytes(safetensors.numpy.save(state))
    known = ("--model", "cnn", "--input-shape", "1,8,8", "--classes", "10", "--width", "0.5")
    out = ("--out", str(tmp_path / "m.tflite"))
    result = invoke("export", str(tmp_path / "w.safetensors"), *out, *known)
    assert result.exit_code == 2
    assert "'fc2.bias' holds values that are not finite" in result.stderr
