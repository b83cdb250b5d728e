"""On emulated ARM: counts repeat, outputs are those of x86, and what is missing is named."""

import shutil
import subprocess
import tempfile

import numpy as np
import pytest

from edge_export.bench import arm, arm_root, local, plugin
from fedsparse.errors import BenchError, UnknownNameError
from tests.edge_export.bench import tiny_files
from tests.edge_export.emulated import emulated


@pytest.fixture
def temporary(tmp_path, monkeypatch):
    """Where temporary files go; none may stay."""
    folder = tmp_path / "temporary"
    folder.mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(folder))
    yield folder
    assert list(folder.iterdir()) == []


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    folder = tmp_path_factory.mktemp("files")
    return [tiny_files.dense(folder), tiny_files.sparse(folder)]


@pytest.fixture(scope="module")
def counted(files):
    return arm.instructions(files, core="cortex-a72")


@emulated
def test_a_sparse_file_takes_less_and_outputs_are_those_of_this_machine(
    files, counted, monkeypatch
):
    dense, sparse = counted
    assert 0 < sparse.instructions < dense.instructions
    assert 0 < dense.setup_instructions < sparse.setup_instructions
    assert sparse.file_bytes < dense.file_bytes
    monkeypatch.setattr(local, "ROUNDS", 1)
    for here, there in zip(local.measure(files), counted, strict=True):
        np.testing.assert_allclose(there.outputs[0], here.outputs[0], atol=1e-5)


@emulated
def test_counts_repeat(files, counted, temporary):
    [again] = arm.instructions(files[:1], core="cortex-a72")
    assert again.instructions == pytest.approx(counted[0].instructions, rel=1e-3)
    assert again.setup_instructions == pytest.approx(counted[0].setup_instructions, rel=0.02)


@emulated
def test_the_runtime_sees_the_core(files, counted):
    # The emulator gives these two the same instructions: only the kernel's word differs.
    [older] = arm.instructions(files[:1], core="cortex-a53")
    assert older.instructions > 1.002 * counted[0].instructions


@emulated
def test_a_file_that_crashes_the_runtime_is_told_in_one_line(tmp_path, temporary):
    with pytest.raises(BenchError, match="under emulation: it crashed with SIG"):
        arm.instructions([tiny_files.crashing(tmp_path)])


def test_an_inference_is_half_of_what_two_more_take(tmp_path):
    # The interpreter's own marks, then: before and after loading (500 instructions), before and
    # after the first inference (130), after two more (160 together).
    (tmp_path / "counts").write_text("7\n1000\n1500\n2000\n2130\n2290\n")
    assert arm._costs(tmp_path / "counts") == (80, 500 + 130 - 80)


def test_the_kernel_tells_which_core_it_is():
    told = {core: arm_root.cpuinfo(arm_root.CORES[core]) for core in arm.CORES}
    assert set(told) == {"cortex-a53", "cortex-a72", "cortex-a76"}
    assert "CPU part\t: 0xd03" in told["cortex-a53"]
    assert "asimddp" in told["cortex-a76"]  # the dot product
    assert "asimddp" not in told["cortex-a72"]


def test_what_is_not_known_is_named(files):
    with pytest.raises(UnknownNameError, match="did you mean 'cortex-a76'"):
        arm.instructions(files, core="cortex-a67")
    with pytest.raises(UnknownNameError, match="unknown runtime 'lite'"):
        arm.instructions(files, runtime="lite")
    with pytest.raises(BenchError, match="onnxruntime is not counted on ARM"):
        arm.instructions(files, runtime="onnxruntime")


def test_onnx_files_are_not_counted(tmp_path):
    path = tmp_path / "a.onnx"
    path.write_bytes(bytes(10))
    with pytest.raises(BenchError, match=r"is not counted on ARM, \.tflite files are"):
        arm.instructions([path])


def test_a_missing_emulator_names_its_package(files, monkeypatch):
    monkeypatch.setenv("PATH", "")
    with pytest.raises(BenchError, match="apt-get install qemu-user"):
        arm.instructions(files)


def stand_in(folder, monkeypatch, text, version="qemu-aarch64 version 7.2.0"):
    """Put an emulator on the PATH that does no more than a shell script."""
    script = f'[ "$1" = --version ] && echo "{version}" && exit\n{text}'
    tiny_files.program(folder / "bin", "qemu-aarch64", script)
    monkeypatch.setenv("PATH", f"{folder / 'bin'}:/usr/bin:/bin")
    monkeypatch.setenv("XDG_CACHE_HOME", str(folder / "cache"))


def test_a_missing_root_names_the_command(files, tmp_path, monkeypatch):
    stand_in(tmp_path, monkeypatch, "")
    with pytest.raises(BenchError, match="`fedsparse bench --setup-arm` fetches them"):
        arm.instructions(files)
    with pytest.raises(BenchError, match=rf"`fedsparse bench --setup-arm --root {tmp_path}`"):
        arm.instructions(files, root=tmp_path)


def root_in(folder):
    (folder / "base" / "usr" / "bin").mkdir(parents=True)
    (folder / "base" / "usr" / "bin" / "python3.11").touch()
    (folder / "packages" / "litert").mkdir(parents=True)
    (folder / "root.json").write_text('{"layout": 1, "python": "3.11"}')
    return folder


@pytest.mark.skipif(shutil.which("gcc") is None, reason="no gcc: apt-get install gcc")
def test_an_emulator_without_plugins_is_named(files, tmp_path, temporary, monkeypatch):
    stand_in(tmp_path, monkeypatch, "echo \"qemu: unknown option 'plugin'\" >&2; exit 1")
    with pytest.raises(BenchError, match=r"takes no plugin \(qemu: unknown option 'plugin'\)"):
        arm.instructions(files, root=root_in(tmp_path / "root"))


@pytest.mark.skipif(shutil.which("gcc") is None, reason="no gcc: apt-get install gcc")
def test_the_guest_always_gets_the_same_words(files, tmp_path, temporary, monkeypatch):
    said = '{"version": "1"}'
    text = f"""echo "$@" >> {tmp_path}/said; env >> {tmp_path}/said
printf '0 10 10 30 50' > counts; echo '{said}'"""
    stand_in(tmp_path, monkeypatch, text)
    monkeypatch.setenv("ANYTHING", "else")
    root = root_in(tmp_path / "root")
    first, second = arm.instructions(files, root=root)
    assert (first.instructions, first.setup_instructions) == (10, 20)
    assert second.instructions == 10
    words = (tmp_path / "said").read_text()
    assert "worker.py count litert model.tflite 1 - ." in words
    assert "ANYTHING" not in words
    half = len(words) // 2
    differ = {"PWD", "OLDPWD", "SHLVL", "_"}  # the shell's own
    kept = [
        [line for line in part.splitlines() if line.partition("=")[0] not in differ]
        for part in (words[:half], words[half:])
    ]
    assert kept[0] == kept[1]


@pytest.mark.skipif(shutil.which("gcc") is None, reason="no gcc: apt-get install gcc")
@pytest.mark.parametrize("said", ["{hello}", "[{}\n}", '{"other": 1}'])
def test_a_guest_that_answers_something_else_is_told(files, tmp_path, temporary, monkeypatch, said):
    stand_in(tmp_path, monkeypatch, f"printf '0 10 10 30 50' > counts; echo '{said}'")
    with pytest.raises(BenchError, match="under emulation: it ended with exit status 0"):
        arm.instructions(files, root=root_in(tmp_path / "root"))


@pytest.mark.skipif(shutil.which("gcc") is None, reason="no gcc: apt-get install gcc")
def test_an_emulator_that_writes_no_counts_is_told(files, tmp_path, temporary, monkeypatch):
    stand_in(tmp_path, monkeypatch, """printf 'x' > counts; echo '{"version": "1"}'""")
    with pytest.raises(BenchError, match="wrote no counts"):
        arm.instructions(files, root=root_in(tmp_path / "root"))


def test_an_emulator_or_a_compiler_that_does_not_end_is_told(tmp_path, monkeypatch):
    slow = tiny_files.program(tmp_path, "qemu", "exec sleep 60")
    stand_in(tmp_path, monkeypatch, "")
    ours = plugin.emulator()
    plugin.interface_of(ours)
    monkeypatch.setattr(plugin, "PATIENCE_SECONDS", 0.2)
    with pytest.raises(BenchError, match="--version' does not end within"):
        plugin.interface_of(slow)
    tiny_files.program(tmp_path / "bin", "gcc", "exec sleep 60")
    with pytest.raises(BenchError, match="bin/gcc' does not end within"):
        plugin.compiled(ours)


def test_a_runtime_that_the_root_lacks_is_named(files, tmp_path, monkeypatch):
    stand_in(tmp_path, monkeypatch, "")
    with pytest.raises(BenchError, match=r"has no tflite_runtime, .* Python 3\.11"):
        arm.instructions(files, root=root_in(tmp_path / "root"), runtime="tflite-runtime")


@pytest.mark.skipif(shutil.which("gcc") is None, reason="no gcc: apt-get install gcc")
@pytest.mark.parametrize("interface", [1, 2])
def test_the_plugin_compiles_for_both_interfaces_without_a_warning(tmp_path, interface):
    command = ["gcc", *plugin.FLAGS, "-Werror", f"-DPLUGIN_API={interface}"]
    subprocess.run([*command, "-o", str(tmp_path / "a.so"), str(plugin.SOURCE)], check=True)


@pytest.mark.parametrize(
    ("version", "interface"),
    [("qemu-aarch64 version 7.2.22 (Debian 1:7.2)", 1), ("qemu-aarch64 version 10.0.2", 2)],
)
def test_the_interface_follows_the_emulator(tmp_path, version, interface):
    qemu = tiny_files.program(tmp_path, "qemu", f"echo '{version}'")
    assert plugin.interface_of(qemu) == interface
