"""Before anything is started: which runtime a file is for, and what is said of it."""

import json

import pytest

from edge_export.bench import runtimes
from edge_export.bench.worker import random_input
from fedsparse.errors import BenchError, UnknownNameError

MODEL = b"\x20\0\0\0TFL3" + bytes(100)


@pytest.fixture
def model(tmp_path):
    path = tmp_path / "a.tflite"
    path.write_bytes(MODEL)
    return path


def test_a_suffix_has_its_usual_runtime(tmp_path, model):
    other = tmp_path / "b.ONNX"
    other.write_bytes(bytes(100))
    assert runtimes.chosen([model, other], None) == {model: "litert", other: "onnxruntime"}
    assert runtimes.chosen([model], "tflite-runtime") == {model: "tflite-runtime"}


@pytest.mark.parametrize(
    ("name", "content", "said"),
    [
        ("missing.tflite", None, "cannot be read: No such file"),
        ("empty.tflite", b"", "is no .tflite model"),
        ("short.tflite", MODEL[:7], "is no .tflite model"),
        ("foreign.tflite", b"\x7fELF" + bytes(100), "is no .tflite model"),
        ("empty.onnx", b"", "is no .onnx model"),
        ("model.h5", MODEL, "is no .onnx or .tflite file"),
    ],
)
def test_what_is_no_model_is_told_at_once(tmp_path, name, content, said):
    path = tmp_path / name
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(BenchError, match=said):
        runtimes.chosen([path], None)


def test_a_folder_is_no_file(tmp_path):
    (tmp_path / "a.tflite").mkdir()
    with pytest.raises(BenchError, match="cannot be read: Is a directory"):
        runtimes.chosen([tmp_path / "a.tflite"], None)


def test_a_runtime_takes_its_own_files_alone(model):
    with pytest.raises(
        BenchError, match=r"onnxruntime runs no \.tflite files; use --runtime litert"
    ):
        runtimes.chosen([model], "onnxruntime")
    with pytest.raises(UnknownNameError, match="did you mean 'litert'"):
        runtimes.chosen([model], "litertt")


def test_what_export_wrote_beside_a_file_is_read(model):
    assert runtimes.sidecar(model) == {}
    beside = model.with_name("a.tflite.json")
    beside.write_text(json.dumps({"accuracy": 0.5, "layout": "sparse"}))
    assert runtimes.sidecar(model) == {"accuracy": 0.5, "layout": "sparse"}


@pytest.mark.parametrize("text", ["{", "[1]", '{"accuracy": "high"}', "\xff"])
def test_a_broken_sidecar_is_named(model, text):
    model.with_name("a.tflite.json").write_bytes(text.encode("latin-1"))
    with pytest.raises(BenchError, match=r"a\.tflite\.json"):
        runtimes.sidecar(model)


def test_random_inputs_have_the_type_and_repeat():
    floats = random_input([2, 3], "float16")
    assert floats.dtype == "float16"
    assert (floats == random_input([2, 3], "float16")).all()
    small = random_input([1000], "int8")
    assert small.dtype == "int8"
    assert small.min() < -100
    assert small.max() > 100
    assert random_input([1000], "uint8").max() > 200
    assert set(random_input([1000], "int64")) == {0, 1}  # may be places in a table
    assert set(random_input([1000], "bool")) == {False, True}
    with pytest.raises(TypeError, match="cannot be made up"):
        random_input([1], "S1")
