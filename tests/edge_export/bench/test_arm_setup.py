"""Setting up the aarch64 packages: the system stays as it is, and a try is whole or absent.

apt and pip stand in as scripts here, with a small package of our own; nothing is fetched.
"""

import fcntl
import hashlib
import json
import os
import shutil
import subprocess
from pathlib import Path

import pytest

from edge_export.bench import arm_root, arm_setup
from fedsparse.errors import BenchError
from tests.edge_export.bench import tiny_files

pytestmark = pytest.mark.skipif(shutil.which("dpkg-deb") is None, reason="no dpkg-deb: needs dpkg")


@pytest.fixture
def package(tmp_path):
    """A package in the form of Debian's, with a Python and things of no use."""
    tree = tmp_path / "tree"
    for name in ("usr/bin/python3.11", "usr/bin/other", "usr/lib/l.so", "usr/share/doc/x", "etc/y"):
        (tree / name).parent.mkdir(parents=True, exist_ok=True)
        (tree / name).write_text("x")
    (tree / "usr/bin/python3").symlink_to("python3.11")
    (tree / "DEBIAN").mkdir()
    (tree / "DEBIAN/control").write_text(
        "Package: libc6\nVersion: 2.36\nArchitecture: arm64\nMaintainer: a <a@b.c>\n"
        "Description: a stand-in\n"
    )
    made = tmp_path / "libc6_2.36-9_arm64.deb"
    subprocess.run(["dpkg-deb", "-b", str(tree), str(made)], check=True, capture_output=True)
    return made


@pytest.fixture
def place(tmp_path, package, monkeypatch):
    """Where a root is to be, on a machine whose apt has that package and no other."""
    folder = tmp_path / "bin"
    tiny_files.program(folder, "qemu-aarch64", 'echo "version 7.2"')
    system = tmp_path / "system.list"
    system.write_text("deb file:/system x main\n")
    monkeypatch.setattr(arm_setup, "_system_sources", lambda: [system])
    apt_has(tmp_path, f"cp {package} {tmp_path}/cache/.arm.fetched/cache/archives/")
    monkeypatch.setenv("PATH", f"{folder}:/usr/bin:/bin")
    monkeypatch.setattr(arm_setup, "_wheels", unpacked)
    monkeypatch.setattr(arm_setup, "_try", lambda *_: "1.0")
    return tmp_path / "cache" / "arm"


def unpacked(folder, *_):
    """Stand in for wheels that were fetched."""
    folder.mkdir(parents=True)
    return {f"{folder.name}.whl": "ab" * 32}


def apt_has(folder, answer, named="libc6_2.36-9_arm64.deb"):
    """Let apt-get note its words, name a package, and do as `answer` says when it is to fetch.

    As apt does, it names packages only when it looks for them where they are not.
    """
    uri = f"""echo "'http://nowhere/{named}' {named} 5 SHA256:0"; exit"""
    text = f'echo "$@" >> {folder}/asked\ncase "$*" in *--print-uris*/nothing) {uri};; esac\n'
    text += f'case "$*" in *install*) {answer};; esac'
    tiny_files.program(folder / "bin", "apt-get", text)


def left(place):
    return sorted(path.name for path in place.parent.iterdir())


def test_a_root_is_built_whole(place):
    seen = []
    made = arm_setup.set_up(place, progress=lambda *step: seen.append(step))
    assert (made.folder, made.python) == (place, "3.11")
    assert left(place) == ["arm"]
    base = place / "base"
    assert sorted(p.name for p in (base / "usr" / "bin").iterdir()) == ["python3", "python3.11"]
    assert sorted(p.name for p in base.iterdir()) == ["lib", "usr"]
    for name, core in arm_root.CORES.items():
        own = place / "cores" / name
        assert (own / "proc" / "cpuinfo").read_text() == arm_root.cpuinfo(core)
        assert (own / "usr" / "lib" / "l.so").samefile(base / "usr" / "lib" / "l.so")
        assert (own / "lib" / "l.so").exists()
    assert arm_root.record(place)["packages"] == {"litert": "1.0", "tflite-runtime": "1.0"}
    assert [done for _, done, _ in seen] == sorted(done for _, done, _ in seen)
    assert seen[-1][1] == seen[-1][2]


def test_apt_keeps_to_a_folder_of_ours(place, tmp_path, monkeypatch):
    settings = {}
    apt = arm_setup._apt

    def noted(path, *words):
        settings[words[0]] = path.read_text()
        return apt(path, *words)

    monkeypatch.setattr(arm_setup, "_apt", noted)
    arm_setup.set_up(place)
    fetched = tmp_path / "cache" / ".arm.fetched"
    for what in ("Dir::State", "Dir::State::status", "Dir::Cache", "Dir::Etc::sourceparts"):
        assert f'{what} "{fetched}/' in settings["install"]
    assert "#clear APT::Update::Post-Invoke;" in settings["update"]
    assert all(
        line.startswith(f"-q -c {fetched}/apt.conf ")
        for line in (tmp_path / "asked").read_text().splitlines()
    )


def test_a_root_that_is_there_is_left_alone(place, tmp_path):
    arm_setup.set_up(place)
    (tmp_path / "asked").unlink()
    arm_setup.set_up(place)
    assert not (tmp_path / "asked").exists()


def test_a_root_of_another_layout_is_built_anew(place):
    arm_setup.set_up(place)
    (place / "root.json").write_text('{"layout": 0, "python": "3.9", "packages": {}}')
    (place / "base" / "old").touch()
    arm_setup.set_up(place)
    assert not (place / "base" / "old").exists()
    assert arm_root.find(place).python == "3.11"


def test_a_try_that_fails_goes_on_from_what_was_fetched(place, tmp_path, monkeypatch):
    working = arm_setup._wheels

    def broken(*_):
        raise BenchError("pip cannot fetch litert for aarch64: no network")

    monkeypatch.setattr(arm_setup, "_wheels", broken)
    with pytest.raises(BenchError, match="no network"):
        arm_setup.set_up(place)
    assert left(place) == [".arm.fetched"]
    apt_has(tmp_path, "true")  # all is there already
    monkeypatch.setattr(arm_setup, "_wheels", working)
    arm_setup.set_up(place)
    assert left(place) == ["arm"]


@pytest.mark.parametrize(
    ("answer", "said"),
    [
        ('echo "E: Unable to locate package python3" >&2; exit 100', "gave no aarch64 packages"),
        ('echo "E: first\nE: second" >&2; exit 100', "apt-get install fails: E: first"),
    ],
)
def test_what_apt_cannot_do_is_told_and_leaves_nothing(place, tmp_path, answer, said):
    apt_has(tmp_path, answer)
    with pytest.raises(BenchError, match=said):
        arm_setup.set_up(place)
    assert left(place) == []


def test_packages_without_a_python_are_told(place, tmp_path, package):
    broken = f"echo x > {tmp_path}/cache/.arm.fetched/cache/archives/a.deb"
    apt_has(tmp_path, broken, "a.deb")
    with pytest.raises(BenchError, match=r"'a\.deb' cannot be unpacked"):
        arm_setup.set_up(place)


def test_sources_of_ones_own_replace_the_systems(place, tmp_path, monkeypatch):
    (tmp_path / "ports.list").write_text("deb file:/nowhere x main\n")
    copied = {}
    apt = arm_setup._apt
    monkeypatch.setattr(
        arm_setup,
        "_apt",
        lambda path, *words: (
            copied.update({p.name: p.read_text() for p in (path.parent / "sources").iterdir()}),
            apt(path, *words),
        )[1],
    )
    arm_setup.set_up(place, sources=tmp_path / "ports.list")
    assert copied == {"0.list": "deb file:/nowhere x main\n"}
    with pytest.raises(BenchError, match=r"--sources '.*' is no file"):
        arm_setup.set_up(place, sources=tmp_path / "missing.list")


def test_a_folder_of_something_else_is_not_touched(place):
    place.mkdir(parents=True)
    (place / "mine").touch()
    with pytest.raises(BenchError, match="holds something else"):
        arm_setup.set_up(place)
    assert (place / "mine").exists()


@pytest.mark.parametrize(
    ("record", "mine"),
    [
        ('{"name": "my project"}', "base/thesis"),
        ('{"layout": 0, "python": "3.9"}', "base/thesis"),
        ('{"layout": true, "python": "3.9", "packages": {}}', "base/thesis"),
        ('{"layout": 0, "python": "3.9", "packages": {}}', "thesis"),
        ('{"layout": 1, "python": "3.11", "packages": {}}', "thesis"),
    ],
)
def test_a_folder_with_a_record_of_its_own_is_not_touched(place, record, mine):
    (place / "base").mkdir(parents=True)
    (place / "root.json").write_text(record)
    (place / mine).write_text("years of work")
    with pytest.raises(BenchError, match="holds something else; choose another --root"):
        arm_setup.set_up(place)
    assert (place / mine).read_text() == "years of work"


def test_a_link_to_a_folder_is_not_replaced(place, tmp_path):
    place.parent.mkdir()
    (tmp_path / "elsewhere").mkdir()
    place.symlink_to(tmp_path / "elsewhere")
    with pytest.raises(BenchError, match="holds something else"):
        arm_setup.set_up(place)


def fetched_before(place, source):
    """Leave what a try that was cut off leaves: its sources, and another release's package."""
    folder = place.with_name(".arm.fetched")
    for name in ("sources", "cache/archives"):
        (folder / name).mkdir(parents=True)
    (folder / "sources" / "0.list").write_text(source)
    (folder / "cache" / "archives" / "libc6_2.19-1_arm64.deb").write_text("of another release")
    return folder


def test_packages_of_other_sources_are_not_used(place, tmp_path, monkeypatch):
    folder = fetched_before(place, "deb file:/other x main\n")
    (folder / "sources" / "1.list").write_text("deb file:/more x main\n")
    seen, apt = [], arm_setup._apt

    def noted(path, *words):
        seen.append(sorted(p.name for p in folder.rglob("*.list")))
        assert not list(folder.rglob("libc6_2.19-1_arm64.deb"))
        return apt(path, *words)

    monkeypatch.setattr(arm_setup, "_apt", noted)
    arm_setup.set_up(place)
    assert seen[0] == ["0.list"]


def test_packages_that_apt_does_not_name_are_not_unpacked(place):
    fetched_before(place, "deb file:/system x main\n")
    arm_setup.set_up(place)
    assert "libc6_2.36-9_arm64.deb" in arm_root.record(place)["sha256"]
    assert "libc6_2.19-1_arm64.deb" not in arm_root.record(place)["sha256"]


def test_a_root_keeps_the_digest_of_all_that_was_fetched(place, package):
    arm_setup.set_up(place)
    assert arm_root.record(place)["sha256"] == {
        package.name: hashlib.sha256(package.read_bytes()).hexdigest(),
        "litert.whl": "ab" * 32,
        "tflite-runtime.whl": "ab" * 32,
    }


def test_wheels_are_of_one_version_and_told_by_pip(tmp_path):
    assert all("==" in name for names in arm_setup.WHEELS.values() for name in names)
    info = {"url": "https://x/a/b.whl", "archive_info": {"hashes": {"sha256": "cd" * 32}}}
    report = tmp_path / "report"
    report.write_text(json.dumps({"install": [{"download_info": info}]}))
    assert arm_setup._reported(report) == {"b.whl": "cd" * 32}
    report.write_text("{}")
    with pytest.raises(BenchError, match="pip does not say what it fetched"):
        arm_setup._reported(report)


def test_a_tool_that_does_not_end_is_told(place, tmp_path, monkeypatch):
    monkeypatch.setattr(arm_setup, "PATIENCE_TO_FETCH", 0.2)
    apt_has(tmp_path, "exec sleep 60")
    with pytest.raises(BenchError, match="apt-get install does not end within 0 s"):
        arm_setup.set_up(place)
    assert left(place) == []


def test_two_do_not_build_at_once(place):
    place.parent.mkdir()
    lock = os.open(place.parent, os.O_RDONLY)
    fcntl.flock(lock, fcntl.LOCK_EX)
    with pytest.raises(BenchError, match="another process is building"):
        arm_setup.set_up(place)
    os.close(lock)


def test_what_a_killed_try_left_goes(place):
    (place.parent / ".arm.tmp-killed").mkdir(parents=True)
    arm_setup.set_up(place)
    assert left(place) == ["arm"]


def test_a_place_that_cannot_be_made_is_told(place):
    with pytest.raises(BenchError, match="'/proc/nowhere/arm' cannot be made"):
        arm_setup.set_up(Path("/proc/nowhere/arm"))


@pytest.mark.parametrize("tool", ["qemu-aarch64", "apt-get"])
def test_a_missing_tool_is_named(place, tmp_path, monkeypatch, tool):
    (tmp_path / "bin" / tool).unlink()
    monkeypatch.setenv("PATH", str(tmp_path / "bin"))
    with pytest.raises(BenchError, match=f"no {tool}"):
        arm_setup.set_up(place)
    assert not place.parent.exists()
