"""Compile the native kernels: one shared library, whose instruction set is chosen on loading.

Only the standard library is imported: the wheel's build hook loads this file by its path
before any dependency is installed. `python -m fedsparse.kernels.build` compiles in place.
"""

import argparse
import hashlib
import os
import shlex
import subprocess
import sys
import tempfile
from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

LIBRARY = "_kernels.so"
TIMEOUT = 600.0  # seconds of one compilation

# Contraction into fused multiply-adds is allowed, reordering of sums is not. What traps or
# sets errno keeps loops from becoming vectors.
FLAGS = (
    *("-O3", "-std=c++17", "-fPIC", "-Wall", "-Wextra", "-Wno-psabi", "-Wno-unknown-pragmas"),
    *("-fno-math-errno", "-fno-trapping-math", "-ffp-contract=fast"),
    *("-fno-semantic-interposition", "-fvisibility=hidden", "-fno-exceptions", "-fno-rtti"),
)
# Static, so that a wheel asks nothing of the machine that runs it; not every system has the
# archives.
LINKS: tuple[tuple[str, ...], ...] = (("-static-libstdc++", "-static-libgcc"), ())


@dataclass(frozen=True)
class InstructionSet:
    """What isa.cpp is compiled for: its name, floats of a vector, flags of the compiler."""

    name: str
    width: int
    flags: tuple[str, ...] = ()


BASELINE = InstructionSet("baseline", 4)
X86 = (
    BASELINE,
    InstructionSet("avx2", 8, ("-march=x86-64-v3", "-mpclmul")),
    InstructionSet("avx512", 16, ("-march=x86-64-v4", "-mprefer-vector-width=512", "-mpclmul")),
)


@dataclass(frozen=True)
class Compiler:
    """A C++ compiler that answered: its command, first line of its version, its target."""

    command: tuple[str, ...]
    version: str
    target: str

    def knows(self, flags: Iterable[str]) -> bool:
        """Say whether the flags are known, by preprocessing nothing with them."""
        return _answer([*self.command, *flags, "-E", "-x", "c++", os.devnull]) is not None


def build(
    folder: Path,
    *,
    library: Path | None = None,
    names: Sequence[str] = (),
    extra: Sequence[str] = (),
) -> Path | None:
    """Compile `folder`/src into `folder`/_kernels.so unless that is already done; return it.

    `library` is another place for the result, `names` are the instruction sets (default: all
    that the compiler knows), `extra` flags go to each compilation and to the link. None, after
    one line that says why, where there is no compiler or it fails: runs then use torch.
    """
    compiler = find_compiler()
    if compiler is None:
        _say("no C++ compiler: native training is left out, runs use torch")
        return None
    try:
        return compile_with(compiler, folder, library or folder / LIBRARY, names, extra)
    except (OSError, subprocess.SubprocessError) as error:
        _say(f"native training is left out, runs use torch: {_reason(error)}")
        return None


def compile_with(
    compiler: Compiler,
    folder: Path,
    made: Path,
    names: Sequence[str] = (),
    extra: Sequence[str] = (),
    *,
    program: bool = False,
) -> Path:
    """Compile `folder`/src with this compiler to `made`; `names` and `extra` as for `build`.

    A `program` is src/node_main.cpp with the kernels, instead of a library. Raises
    subprocess.SubprocessError where the compiler fails or takes too long, and OSError where
    the result cannot be written.
    """
    sets = _instruction_sets(compiler, names)
    stamp = _stamp(compiler, folder / "src", sets, extra)
    if made.is_file() and stamp.encode() in made.read_bytes():
        return made
    # Of inline functions of the C++ library the linker keeps the first definition that it
    # meets: the baseline's come before wider ones, so that none needs more than the baseline.
    having = [f"-DFS_HAVE_{each.name.upper()}" for each in sets]
    parts = {"dispatch": [f'-DFS_STAMP="{stamp}"', *having, "dispatch.cpp"]}
    for each in sets:
        named = [f"-DFS_ISA={each.name}", f"-DFS_WIDTH={each.width}"]
        parts[each.name] = [*named, *each.flags, "isa.cpp"]
    if program:
        parts["node_main"] = ["node_main.cpp"]
    with tempfile.TemporaryDirectory(prefix="fedsparse-") as scratch:
        objects = [f"{scratch}/{name}.o" for name in parts]
        commands = [
            [*compiler.command, *FLAGS, *extra, *part, "-c", "-o", each]
            for each, part in zip(objects, parts.values(), strict=True)
        ]
        with ThreadPoolExecutor(os.cpu_count() or 1) as pool:
            list(pool.map(lambda command: _run(command, folder / "src"), commands))
        written = f"{made}.{os.getpid()}"  # beside it, so that renaming is atomic
        shared = [] if program else ["-shared"]
        try:
            _link([*compiler.command, *shared, *extra, "-o", written, *objects])
            os.replace(written, made)
        finally:
            Path(written).unlink(missing_ok=True)
    return made


def find_compiler() -> Compiler | None:
    """Return the compiler of $CXX, else the first of c++, g++, clang++ that answers.

    A $CC that does not answer, such as /bin/false, says that there is to be none. An empty
    variable is one that is not set.
    """
    chosen, c_compiler = (os.environ.get(name, "").strip() for name in ("CXX", "CC"))
    if not chosen and c_compiler and ask(c_compiler) is None:
        return None
    candidates = [chosen] if chosen else ["c++", "g++", "clang++"]
    return next((found for each in candidates if (found := ask(each)) is not None), None)


def ask(command: str) -> Compiler | None:
    """Return the compiler that a command starts, or None if it does not answer as one."""
    words = tuple(shlex.split(command))
    version, target = _answer([*words, "--version"]), _answer([*words, "-dumpmachine"])
    if not version or not target:
        return None
    return Compiler(words, version.splitlines()[0], target.strip())


def _instruction_sets(compiler: Compiler, names: Sequence[str]) -> list[InstructionSet]:
    known = X86 if compiler.target.startswith(("x86_64", "amd64")) else (BASELINE,)
    wanted = [each for each in known if not names or each.name in names]
    found = [each for each in wanted if compiler.knows(each.flags)]
    for each in wanted:
        if each not in found:
            _say(f"{compiler.version} does not know {' '.join(each.flags)}: without {each.name}")
    return found


def _stamp(
    compiler: Compiler, source: Path, sets: Sequence[InstructionSet], extra: Sequence[str]
) -> str:
    """Return what tells builds apart: a hash of the sources and one of how they are compiled."""
    how = hashlib.sha256(repr((compiler, FLAGS, LINKS, sets, tuple(extra))).encode())
    return f"fedsparse-{source_hash(source)}-{how.hexdigest()[:16]}"


def source_hash(source: Path) -> str:
    """Return 16 hexadecimal digits that change with any file in the folder of the sources."""
    content = hashlib.sha256()
    for path in sorted(source.iterdir()):
        if path.suffix in (".h", ".cpp"):
            content.update(f"{path.name}\n".encode() + path.read_bytes())
    return content.hexdigest()[:16]


def _link(command: list[str]) -> None:
    for flags in LINKS[:-1]:
        try:
            return _run([*command, *flags])
        except subprocess.CalledProcessError:
            continue
    return _run([*command, *LINKS[-1]])


def _run(command: list[str], folder: Path | None = None) -> None:
    subprocess.run(command, cwd=folder, check=True, capture_output=True, text=True, timeout=TIMEOUT)


def _answer(command: list[str]) -> str | None:
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=30)
    except (OSError, subprocess.SubprocessError):
        return None
    return done.stdout if done.returncode == 0 else None


def _reason(error: Exception) -> str:
    if isinstance(error, subprocess.CalledProcessError):
        lines = (error.stderr or "").splitlines() or [str(error)]
        return next((line for line in lines if "error" in line), lines[0])
    return str(error)


def _say(line: str) -> None:
    print(f"fedsparse: {line}", file=sys.stderr, flush=True)


def main() -> int:
    """Compile in place for a developer: 1 and the compiler's whole message where it fails."""
    options = argparse.ArgumentParser(description="Compile the native kernels.")
    options.add_argument("--folder", type=Path, default=Path(__file__).resolve().parent)
    options.add_argument("--out", type=Path, help="the library (default: FOLDER/_kernels.so)")
    options.add_argument("--isa", action="append", default=[], help="only this instruction set")
    options.add_argument("--flags", default="", help="further flags of the compiler and linker")
    chosen = options.parse_args()
    compiler = find_compiler()
    if compiler is None:
        _say("no C++ compiler: native training is left out, runs use torch")
        return 0
    library = chosen.out or chosen.folder / LIBRARY
    extra = shlex.split(chosen.flags)
    try:
        compile_with(compiler, chosen.folder, library.absolute(), chosen.isa, extra)
    except subprocess.CalledProcessError as error:
        print(error.stderr, file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
