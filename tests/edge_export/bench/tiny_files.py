"""Small model files for the bench's tests, whole and damaged; scripts that stand in."""

from pathlib import Path

import numpy as np
import pytest

from edge_export.storage import Storage
from tests.edge_export.on_device.exported_files import written

pytest.importorskip("ai_edge_litert", reason="pip install 'fedsparse[export]'")


def dense(folder: Path, **options: bool) -> Path:
    """A file of a small network whose 1x1 weights are 90 % zero, stored densely."""
    return written(folder / "dense.tflite", Storage(), 0.9, **options)


def sparse(folder: Path, **options: bool) -> Path:
    """The same network, stored sparsely."""
    return written(folder / "sparse.tflite", Storage(sparse=True), 0.9, **options)


def crashing(folder: Path) -> Path:
    """A valid file whose sparse tensors have columns that are not there: the runtime aborts."""
    import flatbuffers
    from ai_edge_litert import schema_py_generated as schema

    model = schema.ModelT.InitFromPackedBuf(sparse(folder).read_bytes(), 0)
    for tensor in model.subgraphs[0].tensors:
        if tensor.sparsity is not None:
            columns = tensor.sparsity.dimMetadata[-1].arrayIndices
            columns.values = np.full(len(columns.values), 255, np.uint8)
    builder = flatbuffers.Builder(0)
    builder.Finish(model.Pack(builder), b"TFL3")
    path = folder / "crashing.tflite"
    path.write_bytes(bytes(builder.Output()))
    return path


def onnx_file(folder: Path, kind: str = "FLOAT") -> Path:
    """A file that returns its input of an open number of rows; skips without onnx."""
    onnx = pytest.importorskip("onnx")
    pytest.importorskip("onnxruntime")
    element = getattr(onnx.TensorProto, kind)
    ends = [onnx.helper.make_tensor_value_info(name, element, ["rows", 4]) for name in "xy"]
    node = onnx.helper.make_node("Identity", ["x"], ["y"])
    graph = onnx.helper.make_graph([node], "same", ends[:1], ends[1:])
    made = onnx.helper.make_model(graph, opset_imports=[onnx.helper.make_opsetid("", 17)])
    made.ir_version = 9
    path = folder / "same.onnx"
    path.write_bytes(made.SerializeToString())
    return path


def program(folder: Path, name: str, text: str) -> Path:
    """Write a shell script that stands in for a program."""
    folder.mkdir(exist_ok=True)
    path = folder / name
    path.write_text(f"#!/bin/sh\n{text}\n")
    path.chmod(0o755)
    return path
