"""Fetches and builds the folder of aarch64 packages, without root and without changing the system.

apt reads the system's own sources and keys but keeps its lists, its status and what it fetches
in a folder of ours; dpkg unpacks; pip fetches wheels of another architecture. Both check what
they fetch against signed or hashed indices. The folder is built beside its place and renamed.
"""

import fcntl
import hashlib
import importlib.util
import json
import os
import re
import shutil
import sys
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from edge_export.bench import arm_root, plugin, runtimes
from edge_export.bench.arm_root import BASE, CORES, CORES_FOLDER, LAYOUT, PACKAGES, RECORD, Root
from edge_export.bench.ending import ending, run
from fedsparse.errors import BenchError, one_line

SYSTEM_PACKAGES = ("python3", "libstdc++6")
"""With what they depend on: all that an interpreter and a runtime load."""
KEPT = ("usr/lib", "usr/bin", "lib")
UNUSED_FILES = ("libLiteRtWebGpuAccelerator.so",)
WHEELS = {
    runtimes.LITERT: ("ai-edge-litert==2.3.0", "numpy==2.2.6"),
    runtimes.TFLITE: ("tflite-runtime==2.14.0", "numpy==1.26.4"),
}
NUMPY_OF_LATER = (13, "numpy==2.2.6", "numpy==2.3.5")
"""Minor version of the last Python 3 that the first numpy has wheels for, and what follows it."""
LAST_PYTHON = {runtimes.TFLITE: 11}
"""Minor version of the last Python 3 that a runtime has wheels for; no bound where it has none."""
OLDEST_GLIBC = 17
"""Minor version of the oldest C library that wheels for aarch64 are built for."""
APT_SETTINGS = """\
#clear APT::Architectures;
#clear APT::Update::Pre-Invoke;
#clear APT::Update::Post-Invoke;
#clear APT::Update::Post-Invoke-Success;
APT::Architecture "arm64";
APT::Architectures {{ "arm64"; }};
APT::Install-Recommends "false";
APT::Sandbox::User "root";
Acquire::Languages "none";
Dir::State "{folder}/state";
Dir::State::status "{folder}/state/status";
Dir::Cache "{folder}/cache";
Dir::Etc::sourcelist "{folder}/none";
Dir::Etc::sourceparts "{folder}/sources";
"""
PATIENCE_SECONDS, PATIENCE_TO_FETCH = 300.0, 1800.0
"""What unpacks or runs for longer, and what fetches for longer, is given up."""
NO_SUCH_PACKAGE = "Unable to locate package"
Progress = Callable[[str, int, int], None]
STEPS = 7


def set_up(
    folder: Path | None = None,
    *,
    sources: Path | None = None,
    progress: Progress = lambda *_: None,
) -> Root:
    """Build the root of aarch64 packages, unless it is there; return it.

    `sources` is a file of apt's with aarch64 packages, where the system's sources have none.
    What apt has fetched stays until the root is whole, so that another try goes on from there;
    pip has a cache of its own. Raises BenchError.
    """
    place = (folder or arm_root.default_folder()).absolute()
    qemu = _tools()
    if sources is not None and not sources.is_file():
        raise BenchError(f"--sources '{sources}' is no file")
    if os.path.lexists(place) and not _ours(place):
        raise BenchError(f"'{place}' holds something else; choose another --root")
    with _writing(place), _alone(place):
        found = arm_root.read(place)
        if found is not None:
            return found
        with (
            _fetching(place) as fetched,
            tempfile.TemporaryDirectory(prefix=f".{place.name}.tmp-", dir=place.parent) as part,
        ):
            root = _build(Path(part) / "root", fetched, qemu, sources, progress)
            if place.exists():
                place.rename(Path(part) / "old")  # goes with what is temporary, once it is aside
            root.folder.rename(place)
        return Root(place, root.python)


def _ours(place: Path) -> bool:
    """Return whether a folder is empty, or a root of any layout that holds nothing else."""
    if not place.is_dir() or place.is_symlink():
        return False
    names = {path.name for path in place.iterdir()}
    said = arm_root.record(place)
    layout, kinds = said.get("layout"), (said.get("python"), said.get("packages"))
    recorded = type(layout) is int and isinstance(kinds[0], str) and isinstance(kinds[1], dict)
    return not names or (recorded and names <= {RECORD, BASE, CORES_FOLDER, PACKAGES})


def _tools() -> Path:
    """Return the emulator, after a look at all else that setting up needs; raises BenchError."""
    qemu = plugin.emulator()
    for tool in ("apt-get", "dpkg"):
        if shutil.which(tool) is None:
            raise BenchError(
                f"no {tool}: the aarch64 packages are fetched by apt, on Debian or Ubuntu"
            )
    if importlib.util.find_spec("pip") is None:
        raise BenchError(
            f"'{sys.executable}' has no pip; `{sys.executable} -m ensurepip` gives it one"
        )
    return qemu


@contextmanager
def _alone(place: Path) -> Iterator[None]:
    """Hold the only right to build at a place, and clear what killed builds left."""
    place.parent.mkdir(parents=True, exist_ok=True)
    lock = os.open(place.parent, os.O_RDONLY)
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        for left in place.parent.glob(f".{place.name}.tmp-*"):
            shutil.rmtree(left, ignore_errors=True)
        yield
    except BlockingIOError:
        raise BenchError(f"another process is building in '{place.parent}'; wait for it") from None
    finally:
        os.close(lock)


@contextmanager
def _writing(place: Path) -> Iterator[None]:
    """Turn an OSError into a BenchError that names the folder and the remedy."""
    try:
        yield
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or str(error)
        raise BenchError(f"'{place}' cannot be made ({reason}); choose another --root") from None


@contextmanager
def _fetching(place: Path) -> Iterator[Path]:
    """Give a folder for what is fetched; it stays only where another try can go on from it."""
    folder = place.with_name(f".{place.name}.fetched")
    try:
        yield folder
    finally:
        if place.exists() or not any((folder / "cache" / "archives").glob("*.deb")):
            shutil.rmtree(folder, ignore_errors=True)


def _build(root: Path, fetched: Path, qemu: Path, sources: Path | None, progress: Progress) -> Root:
    base = root / BASE
    progress("aarch64 package lists", 0, STEPS)
    settings = _apt_settings(fetched, sources)
    _apt(settings, "update")
    progress("aarch64 packages", 1, STEPS)
    install = ("install", "--download-only", "-y", *SYSTEM_PACKAGES)
    # It names what is not there yet, so it looks where nothing is.
    nothing = ("-o", f"Dir::Cache::archives={fetched / 'nothing'}")
    wanted = _named(_apt(settings, *install, "--print-uris", *nothing))
    _apt(settings, *install)
    progress("unpack", 2, STEPS)
    debs = [fetched / "cache" / "archives" / name for name in wanted]
    _unpack(debs, base)
    made = Root(root, _python_of(base))
    wheels: dict[str, str] = {}
    for number, runtime in enumerate(WHEELS):
        progress(f"{runtime} for aarch64", 3 + number, STEPS)
        if int(made.python.partition(".")[2]) <= LAST_PYTHON.get(runtime, 999):
            glibc = _glibc_of(debs)
            wheels |= _wheels(root / PACKAGES / runtime, runtime, made.python, glibc)
    _cores(root)
    progress("try it", STEPS - 2, STEPS)
    installed = {runtime: _try(made, qemu, runtime) for runtime in _there(root)}
    record = {
        "layout": LAYOUT,
        "python": made.python,
        "packages": installed,
        "sha256": {deb.name: _digest(deb) for deb in debs} | wheels,
    }
    (root / RECORD).write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")
    progress("try it", STEPS, STEPS)
    return made


def _apt_settings(fetched: Path, sources: Path | None) -> Path:
    """Write apt's settings and a copy of its sources into a folder; return the settings.

    What was fetched from other sources goes: its packages are of another release.
    """
    files = [sources] if sources else _system_sources()
    wanted = {f"{n}{file.suffix}": file.read_bytes() for n, file in enumerate(files)}
    if wanted != _contents(fetched / "sources"):
        shutil.rmtree(fetched, ignore_errors=True)
    for name in ("state/lists/partial", "cache/archives/partial", "nothing/partial", "sources"):
        (fetched / name).mkdir(parents=True, exist_ok=True)
    (fetched / "state" / "status").touch()
    for name, content in wanted.items():
        (fetched / "sources" / name).write_bytes(content)
    path = fetched / "apt.conf"
    path.write_text(APT_SETTINGS.format(folder=fetched), encoding="utf-8")
    return path


def _contents(folder: Path) -> dict[str, bytes]:
    """Return each file of a folder by its name; none where there is no folder."""
    return {path.name: path.read_bytes() for path in folder.glob("*") if path.is_file()}


def _system_sources() -> list[Path]:
    """Return the distribution's own files of sources, all files where none is known as its own.

    Others' archives rarely have aarch64 packages, and never the ones that are wanted here.
    """
    etc, name = Path("/etc/apt"), _distribution()
    parts = etc / "sources.list.d"
    own = [etc / "sources.list", parts / f"{name}.sources", parts / f"{name}.list"]
    found = [path for path in own if path.is_file() and path.stat().st_size]
    return found or sorted([*parts.glob("*.sources"), *parts.glob("*.list")])


def _distribution() -> str:
    try:
        text = Path("/etc/os-release").read_text(encoding="utf-8")
    except OSError:
        return ""
    found = re.search(r"^ID=\"?([a-z]+)", text, re.MULTILINE)
    return found[1] if found else ""


def _apt(settings: Path, *words: str) -> str:
    """Return what apt-get prints; raises BenchError."""
    command = ["apt-get", "-q", "-c", str(settings), *words]
    done = run(command, PATIENCE_TO_FETCH, f"apt-get {words[0]}")
    if done.returncode == 0:
        return done.stdout
    if NO_SUCH_PACKAGE in done.stderr:
        raise BenchError(
            "apt's sources gave no aarch64 packages; without a network, try again with one, else "
            "name a file of sources that has them with --sources (Ubuntu keeps them in its ports)"
        )
    errors = [line for line in done.stderr.splitlines() if line.startswith("E: ")]
    raise BenchError(f"apt-get {words[0]} fails: {one_line((errors or [done.stderr])[0])}")


def _named(uris: str) -> list[str]:
    """Return the packages that apt prints to be wanted: 'URI' FILE SIZE HASH, one on each line."""
    found = re.findall(r"^'[^']*' ([^/\s]+\.deb) \d", uris, re.MULTILINE)
    if not found:
        raise BenchError("apt names no aarch64 packages to fetch; try other --sources")
    return sorted(found)


def _digest(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def _unpack(debs: list[Path], base: Path) -> None:
    """Unpack packages and keep programs and libraries alone; raises BenchError."""
    base.mkdir(parents=True)
    for deb in debs:
        done = run(["dpkg", "-x", str(deb), str(base)], PATIENCE_SECONDS, "dpkg")
        if done.returncode != 0:
            raise BenchError(f"'{deb.name}' cannot be unpacked: {one_line(done.stderr)}")
    if not (base / "lib").exists():
        (base / "lib").symlink_to("usr/lib")
    for path in [*base.iterdir(), *(base / "usr").iterdir()]:
        if path.name != "usr" and str(path.relative_to(base)) not in KEPT:
            shutil.rmtree(path)
    for path in (base / "usr" / "bin").iterdir():
        if not re.fullmatch(r"python3(\.\d+)?", path.name):
            path.unlink()


def _python_of(base: Path) -> str:
    """Return the version of an unpacked Python, such as `3.11`; raises BenchError."""
    for path in (base / "usr" / "bin").iterdir():
        found = re.fullmatch(r"python(3\.\d+)", path.name)
        if found and not path.is_symlink():
            return found[1]
    raise BenchError(
        "the aarch64 packages hold no Python; is --sources one of Debian's or Ubuntu's?"
    )


def _glibc_of(debs: list[Path]) -> int:
    """Return the minor version of the C library 2 among packages."""
    found = [re.match(r"libc6_2\.(\d+)", deb.name) for deb in debs]
    return max((int(match[1]) for match in found if match), default=OLDEST_GLIBC)


def _wheels(folder: Path, runtime: str, python: str, glibc: int) -> dict[str, str]:
    """Fetch and unpack a runtime's wheels for aarch64; return their digests; raises BenchError."""
    built_for = [f"manylinux_2_{n}_aarch64" for n in range(OLDEST_GLIBC, glibc + 1)]
    platforms = [f"--platform={name}" for name in ["manylinux2014_aarch64", *built_for]]
    report = folder.with_name(f"{runtime}.report")
    report.parent.mkdir(parents=True, exist_ok=True)
    command = [sys.executable, "-m", "pip", "--disable-pip-version-check", "--no-input", "install"]
    command += ["--quiet", "--only-binary=:all:", "--no-deps", "--no-compile"]
    command += ["--implementation=cp", f"--python-version={python}", *platforms]
    last, first, later = NUMPY_OF_LATER
    newer = int(python.partition(".")[2]) > last
    wanted = [later if newer and name == first else name for name in WHEELS[runtime]]
    command += [f"--report={report}", f"--target={folder}", *wanted]
    done = run(command, PATIENCE_TO_FETCH, f"pip, which fetches {runtime},")
    if done.returncode != 0:
        raise BenchError(f"pip cannot fetch {runtime} for aarch64: {one_line(done.stderr)}")
    found = _reported(report)
    report.unlink()
    for unused in [*folder.rglob("tests"), folder / "bin"]:
        shutil.rmtree(unused, ignore_errors=True)
    for name in UNUSED_FILES:
        for path in folder.rglob(name):
            path.unlink()
    return found


def _reported(report: Path) -> dict[str, str]:
    """Return wheels with their SHA-256 as pip's report of an installation says them."""
    try:
        rows = json.loads(report.read_text(encoding="utf-8"))["install"]
        infos = [row["download_info"] for row in rows]
        return {
            info["url"].rpartition("/")[2]: info["archive_info"]["hashes"]["sha256"]
            for info in infos
        }
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise BenchError(f"pip does not say what it fetched ({error!r}); update pip") from None


def _cores(root: Path) -> None:
    """Write what a kernel on each core says of itself, beside links to the system."""
    for name, core in CORES.items():
        own = root / CORES_FOLDER / name
        (own / "proc").mkdir(parents=True)
        (own / "proc" / "cpuinfo").write_text(arm_root.cpuinfo(core), encoding="ascii")
        system = own / "sys" / "devices" / "system" / "cpu"
        system.mkdir(parents=True)
        for what in ("possible", "present", "online"):
            (system / what).write_text("0\n", encoding="ascii")
        for linked in ("usr", "lib"):
            (own / linked).symlink_to(Path("..") / ".." / BASE / linked)


def _there(root: Path) -> list[str]:
    return [runtime for runtime in WHEELS if (root / PACKAGES / runtime).is_dir()]


def _try(root: Root, qemu: Path, runtime: str) -> str:
    """Import a runtime under the emulator, which leaves its bytecode; return its version."""
    packages = root.packages(runtime)
    package = runtimes.RUNTIMES[runtime].package
    program = f"import numpy.random, json, {package}.interpreter; print({package}.__version__)"
    environment = {**root.environment(packages)}
    del environment["PYTHONDONTWRITEBYTECODE"]
    command = [*root.command(qemu, next(iter(CORES))), "-c", program]
    done = run(command, PATIENCE_SECONDS, f"{runtime} under '{qemu}'", environment)
    if done.returncode != 0:
        raise BenchError(
            f"{runtime} does not run under '{qemu}': {ending(done.returncode, done.stderr)}"
        )
    return done.stdout.strip()
