"""Building the kernels: once, as a whole, and never a reason to fail an installation."""

import ctypes
import os
import shutil
from pathlib import Path

import pytest

from fedsparse.kernels import build as building
from fedsparse.kernels import library as loading
from fedsparse.kernels.build import BASELINE, X86, build, find_compiler
from fedsparse.kernels.library import ABI

SOURCES = Path(building.__file__).parent / "src"
STUB = """
#include "api.h"
#define FS_PASTE(left, right) left##right
#define FS_TABLE(isa) FS_PASTE(fs_api_, isa)
extern "C" {
extern const FsApi FS_TABLE(FS_ISA);
constexpr FsApi FS_TABLE(FS_ISA) = {FS_WIDTH};
}
"""

needs_compiler = pytest.mark.skipif(find_compiler() is None, reason="no C++ compiler is here")


@pytest.fixture
def folder(tmp_path):
    """Sources of a library that only says how wide its vectors are."""
    source = tmp_path / "src"
    source.mkdir()
    for name in ("api.h", "dispatch.cpp"):
        shutil.copy(SOURCES / name, source)
    (source / "isa.cpp").write_text(STUB)
    return tmp_path


def load(library):
    loaded = ctypes.CDLL(str(library))
    loaded.fs_api.restype = ctypes.POINTER(ctypes.c_int32)
    loaded.fs_isa.restype = loaded.fs_version.restype = ctypes.c_char_p
    return loaded


def widths(library, names):
    tables = {name: library.fs_api(name.encode()) for name in names}
    return {name: table[0] if table else None for name, table in tables.items()}


def refusing_compiler(folder, refusal):
    """Return a compiler that refuses commands with `refusal` in them."""
    script = folder / "compiler"
    real = " ".join(find_compiler().command)
    script.write_text(f'#!/bin/sh\ncase "$*" in *{refusal}*) exit 1;; esac\nexec {real} "$@"\n')
    script.chmod(0o755)
    return str(script)


@needs_compiler
def test_an_instruction_set_is_chosen_on_loading(folder, monkeypatch):
    library = load(build(folder))
    assert library.fs_abi() == ABI
    for name, width in widths(library, [each.name for each in X86]).items():
        expected = next(each.width for each in X86 if each.name == name)
        assert width in ((expected,) if name == "baseline" else (expected, None))
    assert widths(library, ["off", "sse17"]) == {"off": None, "sse17": None}
    monkeypatch.setenv("FEDSPARSE_KERNELS", "baseline")
    assert (library.fs_isa(), library.fs_api(None)[0]) == (b"baseline", BASELINE.width)
    monkeypatch.setenv("FEDSPARSE_KERNELS", "off")
    assert (library.fs_isa(), bool(library.fs_api(None))) == (b"off", False)


@needs_compiler
def test_only_what_changed_is_compiled_again(folder):
    def made():
        library = build(folder)
        return library.stat().st_mtime_ns, load(library).fs_version()

    first = made()
    assert made() == first
    (folder / "src" / "isa.cpp").write_text(STUB + "// changed\n")
    assert made()[0] > first[0]
    assert building.source_hash(folder / "src").encode() in (folder / "_kernels.so").read_bytes()
    assert {path.name for path in folder.iterdir()} == {"_kernels.so", "src"}


@needs_compiler
def test_a_library_of_other_sources_is_not_loaded(folder, monkeypatch):
    build(folder)
    monkeypatch.setattr(loading, "__file__", str(folder / "library.py"))
    monkeypatch.setattr(loading, "_candidates", lambda: iter([folder / "_kernels.so"]))
    assert loading._library.__wrapped__().fs_abi() == ABI
    (folder / "src" / "isa.cpp").write_text(STUB + "// changed\n")
    with pytest.raises(loading.Unavailable, match="other sources; run python -m") as caught:
        loading._library.__wrapped__()
    assert caught.value.remedy == "python -m fedsparse.kernels.build"
    shutil.rmtree(folder / "src")
    assert loading._library.__wrapped__().fs_abi() == ABI


@pytest.mark.parametrize(("switch", "named"), [("off", "switched off"), ("mmx", "no form 'mmx'")])
def test_a_switch_that_leaves_no_kernels_is_the_remedy(switch, named, monkeypatch):
    class Nothing:
        def fs_api(self, wanted):
            return None

    monkeypatch.setattr(loading, "_library", Nothing)
    monkeypatch.setenv("FEDSPARSE_KERNELS", switch)
    with pytest.raises(loading.Unavailable, match=named) as caught:
        loading.load.__wrapped__()
    assert caught.value.remedy == "unset FEDSPARSE_KERNELS"


@needs_compiler
def test_an_empty_variable_is_one_that_is_not_set(monkeypatch):
    monkeypatch.delenv("CXX", raising=False)
    monkeypatch.delenv("CC", raising=False)
    usual = find_compiler()
    monkeypatch.setenv("CXX", "")
    monkeypatch.setenv("CC", " ")
    assert find_compiler() == usual


@pytest.mark.parametrize("variable", ["CC", "CXX"])
def test_without_a_compiler_one_line_says_so(folder, variable, monkeypatch, capsys):
    monkeypatch.delenv("CXX", raising=False)
    monkeypatch.setenv(variable, "/bin/false")
    assert build(folder) is None
    [line] = capsys.readouterr().err.splitlines()
    assert line == "fedsparse: no C++ compiler: native training is left out, runs use torch"


@needs_compiler
def test_sources_that_fail_leave_the_last_library(folder, capsys):
    before = build(folder).read_bytes()
    (folder / "src" / "isa.cpp").write_text("#error does not compile\n")
    assert build(folder) is None
    [line] = capsys.readouterr().err.splitlines()
    assert line.startswith("fedsparse: native training is left out, runs use torch: isa.cpp:1")
    assert (folder / "_kernels.so").read_bytes() == before


@needs_compiler
@pytest.mark.skipif(os.uname().machine != "x86_64", reason="elsewhere one set is compiled")
def test_a_compiler_that_does_not_know_an_instruction_set_leaves_it_out(
    folder, monkeypatch, capsys
):
    monkeypatch.setenv("CXX", refusing_compiler(folder, "x86-64-v4"))
    library = load(build(folder))
    assert widths(library, ["baseline", "avx512"]) == {"baseline": 4, "avx512": None}
    assert capsys.readouterr().err.endswith(": without avx512\n")


@needs_compiler
def test_a_compiler_without_static_archives_links_to_the_shared_ones(folder, monkeypatch):
    monkeypatch.setenv("CXX", refusing_compiler(folder, "static-libstdc"))
    assert widths(load(build(folder)), ["baseline"]) == {"baseline": 4}


@needs_compiler
def test_a_folder_that_cannot_be_written_is_told(folder, capsys):
    target = folder / "nowhere" / "_kernels.so"
    assert build(folder, library=target) is None
    assert "native training is left out" in capsys.readouterr().err
