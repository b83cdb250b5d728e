"""A C header holds the model's bytes, aligned, for C and C++, and says what its runtime needs."""

import shutil
import subprocess

import numpy as np
import pytest

from edge_export import c_header, network, verify
from edge_export.emit import emit
from edge_export.export import calibrated, export
from edge_export.source import Source
from edge_export.storage import INT8, STATIC, Storage
from fedsparse.errors import ExportError
from tests.edge_export.networks import ZOO, pruned, samples

STORAGES = (Storage(INT8, STATIC), Storage())
MICRO = "needs LiteRT for Microcontrollers: pip install 'fedsparse[micro]'"
COMPILERS = {
    "c11": ("gcc", "-std=c11", "-x", "c"),
    "c++17": ("g++", "-std=c++17", "-x", "c++"),
}
PROGRAM = """
#include <stdio.h>
#include <stdint.h>
#include "m.h"
#include "m.h"
int main(void) {
  static const int in[M_MODEL_INPUT_RANK] = M_MODEL_INPUT_SHAPE;
  if (sizeof m_model != M_MODEL_BYTES || (uintptr_t)m_model % 16) return 1;
  if (in[0] * in[1] * in[2] * in[3] != M_MODEL_INPUT_FLOATS) return 2;
  if (M_MODEL_OUTPUT_FLOATS != 10) return 2;
  return fwrite(m_model, 1, sizeof m_model, stdout) == sizeof m_model ? 0 : 3;
}
"""


def file_of(name, storage):
    model, x = pruned(name, ZOO[name]), samples(ZOO[name])
    found = network.of(model, ZOO[name])
    return model, x, emit(found, storage, ranges=calibrated(found, x)).content


@pytest.mark.parametrize("standard", COMPILERS)
def test_a_compiled_program_holds_the_files_bytes(standard, tmp_path):
    compiler, *flags = COMPILERS[standard]
    if shutil.which(compiler) is None:
        pytest.skip(f"needs {compiler}: apt-get install {compiler}")
    _, _, content = file_of("cnn", STORAGES[0])
    (tmp_path / "m.h").write_bytes(c_header.render(content, "m", "a test */ of it"))
    (tmp_path / "main.c").write_text(PROGRAM)
    line = [compiler, *flags, "-Wall", "-Werror", "-pedantic", "main.c", "-o", "main"]
    built = subprocess.run(line, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert built.returncode == 0, built.stderr
    ran = subprocess.run([tmp_path / "main"], capture_output=True, check=False)
    assert ran.returncode == 0
    assert ran.stdout == content


@pytest.mark.parametrize("stem", ["m", "9 lives", "class", "ünï", "my-Model", "", "*/"])
def test_its_name_is_an_identifier(stem):
    name = c_header.identifier(stem)
    assert name.isidentifier()
    assert name.isascii()
    assert name.endswith("model")
    header = c_header.render(file_of("linear", STORAGES[0])[2], stem, "a test")
    assert f"const unsigned char {name}[".encode() in header


def test_the_operators_to_register_are_named():
    header = c_header.render(file_of("cnn", STORAGES[0])[2], "m", "a test").decode()
    named = {line.split("resolver.")[1] for line in header.splitlines() if "resolver.Add" in line}
    assert {"AddConv2D();", "AddMaxPool2D();", "AddFullyConnected();", "AddQuantize();"} <= named
    assert f"M_MODEL_OPERATORS {len(named)}\n" in header


def source_of(name):
    model, x = pruned(name, ZOO[name]), samples(ZOO[name], 32)
    return Source(name, "here", model, ZOO[name], x, None, x, real=False)


def test_an_export_holds_the_model_that_was_verified(tmp_path):
    row = export(source_of("leaf-cnn"), tmp_path / "m.h", values="int8").row()
    content = c_header.content_of((tmp_path / "m.h").read_bytes())
    assert row["file_bytes"] == len(content) < 0.5 * row["dense_bytes"]
    assert row["storage"] == "int8 static"
    assert row["runtime"] == "LiteRT for Microcontrollers"
    assert row["relative_difference"] < row["tolerance_difference"]
    assert verify.run(content, samples(ZOO["leaf-cnn"])).shape == (8, 10)


@pytest.mark.parametrize(
    ("values", "layout"), [("f16", "auto"), ("int8-weights", "auto"), ("int8", "sparse")]
)
def test_what_the_runtime_has_no_kernels_for_is_refused(values, layout, tmp_path):
    with pytest.raises(ExportError, match=r"a \.h file has no"):
        export(source_of("linear"), tmp_path / "m.h", values=values, layout=layout)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.skipif(not c_header.installed(), reason=MICRO)
@pytest.mark.parametrize("storage", STORAGES, ids=lambda storage: storage.name)
@pytest.mark.parametrize("name", ZOO)
def test_its_own_runtime_computes_what_the_model_computes(name, storage):
    model, x, content = file_of(name, storage)
    limits = verify.tolerance_of(storage)
    verify.verify(content, model, x, None, limits, runtime=c_header.run)
    arena = c_header.arena(content)
    least = c_header.render(content, "m", "a test").decode().split("more than ")[1].split(" bytes")
    assert arena > int(least[0].replace(",", ""))


@pytest.mark.skipif(not c_header.installed(), reason=MICRO)
def test_its_own_runtime_has_no_kernel_for_sparse_weights():
    _, x, content = file_of("cnn", Storage(sparse=True))
    with pytest.raises(ExportError, match="LiteRT for Microcontrollers does not run the file"):
        c_header.run(content, np.asarray(x))
