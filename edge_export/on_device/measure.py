#!/usr/bin/env python3
"""Measure .tflite files on the device that this runs on, and write what was seen to device.json.

It stands alone: copy it to a Raspberry Pi, or into Termux on a phone. It needs Python 3.9, numpy,
and ai-edge-litert or tflite-runtime. `fedsparse devices import` makes a device profile of its file.
"""

from __future__ import annotations

import argparse
import hashlib
import importlib
import importlib.metadata
import json
import os
import platform
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

FORMAT, VERSION = "fedsparse-device", 1
"""What device.json says of itself; a change that readers must know of raises the version."""
RUNTIMES = {
    "ai-edge-litert": "ai_edge_litert.interpreter",
    "tflite-runtime": "tflite_runtime.interpreter",
}
ROUNDS = 20
"""Rounds between files: in each, every file is run for a part of its seconds."""
WARM_UP = 0.5
"""Seconds for which each file is run before anything counts."""
QUANTILES = {"p5": 0.05, "p25": 0.25, "p50": 0.5, "p75": 0.75, "p90": 0.9, "p95": 0.95, "p99": 0.99}
MISTAKE, INTERRUPTED = 2, 130
PROBE = "--probe"
PROBE_SECONDS = 600
SLOWED = 0.9
"""Below this fraction of its highest clock a busy core counts as slowed down."""

PARTS = """
41: b76 ARM1176, c07 Cortex-A7, c08 Cortex-A8, c09 Cortex-A9, c0f Cortex-A15, d03 Cortex-A53,
    d04 Cortex-A35, d05 Cortex-A55, d07 Cortex-A57, d08 Cortex-A72, d09 Cortex-A73, d0a Cortex-A75,
    d0b Cortex-A76, d0c Neoverse-N1, d0d Cortex-A77, d40 Neoverse-V1, d41 Cortex-A78,
    d44 Cortex-X1, d46 Cortex-A510, d47 Cortex-A710, d48 Cortex-X2, d49 Neoverse-N2,
    d4d Cortex-A715, d4e Cortex-X3, d4f Neoverse-V2, d80 Cortex-A520, d81 Cortex-A720,
    d82 Cortex-X4
51: 001 Oryon, 800 Kryo 2xx Gold, 801 Kryo 2xx Silver, 802 Kryo 3xx Gold, 803 Kryo 3xx Silver,
    804 Kryo 4xx Gold, 805 Kryo 4xx Silver
"""
"""Names of cores by implementer (Arm, Qualcomm) and part, in hexadecimal, as Linux has them."""
POWER_FLAGS = ("voltage too low", "clock capped", "throttled", "soft temperature limit")
"""Bits of `vcgencmd get_throttled`; 16 bits higher: the same since the board started."""


class Mistake(Exception):
    """What is asked cannot be done; the message is one line."""


def text_of(path: Path) -> str:
    """Return a file's text without its ends, "" where it cannot be read."""
    try:
        return path.read_text(encoding="utf-8", errors="replace").strip("\0 \n\t")
    except OSError:
        return ""


def said(*command: str) -> str:
    """Return what a command prints, "" where there is none or it fails."""
    try:
        done = subprocess.run(
            command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, timeout=10, check=True
        )
    except (OSError, subprocess.SubprocessError):
        return ""
    return done.stdout.decode("utf-8", "replace").strip()


def core_name(implementer: int, part: int) -> str:
    """Return the name of an ARM core, or its numbers if it is not known here."""
    makers = dict(re.findall(r"^(\w+): ([^:]*)$", PARTS, re.MULTILINE))
    names = re.findall(r"(\w{3}) ([^,\n]+)", makers.get(f"{implementer:02x}", ""))
    known: dict[str, str] = dict(names)
    return known.get(f"{part:03x}", f"implementer {implementer:#x} part {part:#x}")


def cores_of(cpuinfo: str) -> list[dict[str, Any]]:
    """Return the kinds of cores in the text of /proc/cpuinfo, each with its count."""
    counts: dict[str, int] = {}
    for block in re.split(r"\n\s*\n", cpuinfo):
        keys = dict(re.findall(r"^([^:\n]+?)\s*:\s*(.*)$", block, re.MULTILINE))
        name = keys.get("model name", "")
        if "CPU part" in keys and "CPU implementer" in keys:
            name = core_name(int(keys["CPU implementer"], 16), int(keys["CPU part"], 16))
        if "processor" in keys and name:
            counts[name] = counts.get(name, 0) + 1
    return [{"name": name, "count": count} for name, count in counts.items()]


def memory_of(meminfo: str, key: str) -> int | None:
    """Return an entry of the text of /proc/meminfo in bytes."""
    found = re.search(rf"^{key}:\s*(\d+) kB", meminfo, re.MULTILINE)
    return 1024 * int(found[1]) if found else None


def machine(root: Path = Path("/")) -> dict[str, Any]:
    """Return what the system says of this machine; nothing that names its owner or network."""
    meminfo = text_of(root / "proc/meminfo")
    model = text_of(root / "proc/device-tree/model") or said("getprop", "ro.product.model")
    return {
        "model": model or None,
        "architecture": platform.machine(),
        "system": f"{platform.system()} {platform.release()}",
        "cpus": os.cpu_count() or 1,
        "cores": cores_of(text_of(root / "proc/cpuinfo")),
        "memory_bytes": memory_of(meminfo, "MemTotal"),
        "memory_available_bytes": memory_of(meminfo, "MemAvailable"),
    }


def temperature(root: Path = Path("/")) -> float | None:
    """Return the degrees Celsius of the hottest thermal zone, None where none can be read."""
    found = []
    for path in root.glob("sys/class/thermal/thermal_zone*/temp"):
        try:
            value = int(text_of(path))
        except ValueError:
            continue
        degrees = value / 1000 if abs(value) >= 1000 else float(value)
        if 0 < degrees < 150:
            found.append(degrees)
    return max(found, default=None)


def clock_fraction(root: Path = Path("/")) -> float | None:
    """Return the clock of the core that is nearest to its highest, as a fraction of that.

    While one core is busy this is 1; below it the system holds every core back.
    """
    found = []
    for folder in root.glob("sys/devices/system/cpu/cpu[0-9]*/cpufreq"):
        try:
            now = int(text_of(folder / "scaling_cur_freq"))
            most = int(text_of(folder / "cpuinfo_max_freq"))
        except ValueError:
            continue
        if most > 0:
            found.append(min(1.0, now / most))
    return max(found, default=None)


def power_flags(said_of_it: str) -> int | None:
    """Return the bits in what `vcgencmd get_throttled` says, such as throttled=0x50005."""
    found = re.fullmatch(r"throttled=(0x[0-9a-fA-F]+)", said_of_it.strip())
    return int(found[1], 16) if found else None


def throttling(clocks: list[float], before: int | None, after: int | None) -> dict[str, Any]:
    """Return whether the device was slowed down, None where the system does not tell.

    `clocks` are fractions of the highest clock, one a round; `before` and `after` are bits of
    vcgencmd. A flag counts if it is set now, or was set since the measurement began.
    """
    reasons = []
    if before is not None and after is not None:
        for bit, name in enumerate(POWER_FLAGS):
            if (after | (after & ~before) >> 16) & (1 << bit):
                reasons.append(name)
    median = sorted(clocks)[len(clocks) // 2] if clocks else None
    if median is not None and median < SLOWED:
        reasons.append(f"clock at {median:.0%} of its highest")
    return {
        "throttled": bool(reasons) if clocks or after is not None else None,
        "reasons": reasons,
        "clock_fraction_median": median,
        "clock_fraction_min": min(clocks, default=None),
        "power_flags": after,
    }


def find_runtime() -> tuple[str, str, Any]:
    """Return the name, version and interpreter class of the runtime that is installed."""
    broken = ""
    for name, module in RUNTIMES.items():
        try:
            found = importlib.import_module(module)
            return name, importlib.metadata.version(name), found.Interpreter
        except ModuleNotFoundError as error:
            if error.name is None or error.name.split(".")[0] != module.split(".")[0]:
                broken = f"{name} cannot be imported: {error}"
        except Exception as error:  # tflite-runtime beside numpy 2 raises a SystemError
            broken = f"{name} cannot be imported: {one_line(error)}"
    raise Mistake(broken or "no runtime is installed: python3 -m pip install ai-edge-litert")


def one_line(error: BaseException | str) -> str:
    """Return the first line of a reason, bounded."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return lines[0][:200] if lines else type(error).__name__


def load(interpreter: Any, path: Path, threads: int) -> Any:
    """Return a file's interpreter, ready to run on random numbers."""
    import numpy as np

    made = interpreter(model_path=str(path), num_threads=threads)
    made.allocate_tensors()
    draws = np.random.RandomState(0)
    for given in made.get_input_details():
        kind, shape = np.dtype(given["dtype"]), tuple(int(n) for n in given["shape"])
        value = draws.uniform(0, 1, shape)
        if kind.kind in "iu":  # wide integers may be places in a table, of which 0 is always there
            value *= 128 if kind.itemsize == 1 else 0
        made.set_tensor(given["index"], value.astype(kind))
    return made


def peak_memory() -> int | None:
    """Return the most memory that this process held, in bytes."""
    found = re.search(r"^VmHWM:\s*(\d+) kB", text_of(Path("/proc/self/status")), re.MULTILINE)
    return 1024 * int(found[1]) if found else None


def probe(path: Path, threads: int) -> dict[str, Any]:
    """Load a file and run it once, in this process alone: its cold start and its memory."""
    _, _, interpreter = find_runtime()
    importlib.import_module("numpy")
    before, begun = peak_memory(), time.perf_counter()
    made = load(interpreter, path, threads)
    ready = time.perf_counter()
    made.invoke()
    done, after = time.perf_counter(), peak_memory()
    return {
        "setup_seconds": ready - begun,
        "first_seconds": done - ready,
        "peak_memory_bytes": after,
        "added_memory_bytes": None if before is None or after is None else after - before,
    }


def probed(path: Path, threads: int) -> dict[str, Any]:
    """Return what `probe` says from a process of its own; a runtime that dies is told of."""
    command = [sys.executable, os.path.abspath(__file__), PROBE, str(path), str(threads)]
    try:
        done = subprocess.run(command, capture_output=True, timeout=PROBE_SECONDS)
    except subprocess.TimeoutExpired:
        raise Mistake(f"'{path}': one inference takes over {PROBE_SECONDS} s here") from None
    if done.returncode < 0:
        raise Mistake(f"'{path}': the runtime ended with signal {-done.returncode}")
    try:
        found: dict[str, Any] = json.loads(done.stdout)
    except ValueError:
        raise Mistake(f"'{path}': {one_line(done.stderr.decode('utf-8', 'replace'))}") from None
    if "refused" in found:
        raise Mistake(f"'{path}' is not run by this runtime: {found['refused']}")
    return found


def described(path: Path) -> dict[str, Any]:
    """Return a file's name, digest and size, and what export wrote of it in FILE.json."""
    content = path.read_bytes()
    if content[4:8] != b"TFL3":
        raise Mistake(f"'{path}' is no .tflite file; give one that `fedsparse export` wrote")
    digest = hashlib.sha256(content).hexdigest()
    try:
        beside = json.loads(text_of(Path(f"{path}.json")) or "null")
    except ValueError:
        beside = None
    if not isinstance(beside, dict) or beside.get("sha256") != digest:
        beside = None  # none, or one of another file
    return {"file": path.name, "sha256": digest, "bytes": len(content), "export": beside}


def run_for(infer: Callable[[], None], seconds: float, times: list[float]) -> None:
    """Run a file for so long, once at least, and add the seconds of each inference."""
    clock = time.perf_counter
    end = clock() + seconds
    while True:
        begun = clock()
        infer()
        done = clock()
        times.append(done - begun)
        if done >= end:
            return


def rounds(
    infers: list[Callable[[], None]],
    seconds: float,
    times: list[list[float]],
    after_round: Callable[[int], None],
) -> None:
    """Run the files in turns, so that what changes with time falls on all of them alike.

    Each round starts with another file. `times` fill up while it goes on.
    """
    for number in range(ROUNDS):
        for step in range(len(infers)):
            place = (number + step) % len(infers)
            run_for(infers[place], seconds / ROUNDS, times[place])
        after_round(number + 1)


def summary(times: list[float]) -> dict[str, float]:
    """Return percentiles (nearest rank, as measured), mean and spread of seconds."""
    ordered = sorted(times)
    last, mean = len(ordered) - 1, sum(ordered) / len(ordered)
    found = {name: ordered[round(share * last)] for name, share in QUANTILES.items()}
    variance = sum((value - mean) ** 2 for value in ordered) / len(ordered)
    return {"min": ordered[0], **found, "max": ordered[-1], "mean": mean, "std": variance**0.5}


def measure(paths: list[Path], threads: int, seconds: float, name: str | None) -> dict[str, Any]:
    """Return the content of device.json. Interrupted, it holds what was measured until then."""
    runtime, version, interpreter = find_runtime()
    about = machine()
    results: list[dict[str, Any]] = [described(path) for path in paths]
    clocks: list[float] = []
    times: list[list[float]] = [[] for _ in paths]
    complete = True
    warm, flags = temperature(), power_flags(said("vcgencmd", "get_throttled"))

    def look(number: int) -> None:
        print(f"round {number} of {ROUNDS}", file=sys.stderr)
        fraction = clock_fraction()
        if fraction is not None:
            clocks.append(fraction)

    try:
        for place, path in enumerate(paths):
            print(f"{path.name}: cold start", file=sys.stderr)
            results[place].update(probed(path, threads))
        infers = [load(interpreter, path, threads).invoke for path in paths]
        print(f"{len(paths)} files, {seconds:g} s each, in turns", file=sys.stderr)
        for infer in infers:
            run_for(infer, min(WARM_UP, seconds), [])
        rounds(infers, seconds, times, look)
    except KeyboardInterrupt:
        complete = False
    kept = [
        {**results[place], "count": len(found), "seconds": summary(found)}
        for place, found in enumerate(times)
        if found
    ]
    after = power_flags(said("vcgencmd", "get_throttled"))
    return {
        "format": FORMAT,
        "version": VERSION,
        "name": name or about["model"] or about["architecture"],
        "made": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
        "complete": complete,
        "machine": about,
        "runtime": {"name": runtime, "version": version, "python": platform.python_version()},
        "threads": threads,
        "seconds_per_file": seconds,
        "conditions": {
            "celsius_before": warm,
            "celsius_after": temperature(),
            **throttling(clocks, flags, after),
        },
        "peak_memory_bytes": peak_memory(),
        "results": kept,
    }


def write(path: Path, content: dict[str, Any]) -> None:
    """Write device.json so that the file is whole or as it was."""
    temporary = path.with_name(f".{path.name}.tmp-{os.getpid()}")
    try:
        with open(temporary, "w", encoding="utf-8") as file:
            json.dump(content, file, indent=1, allow_nan=False)
            file.write("\n")
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except BaseException:
        if temporary.exists():
            temporary.unlink()
        raise


def checked(options: argparse.Namespace) -> None:
    """Refuse what cannot be measured or written before minutes are spent on it."""
    if not 0 < options.seconds <= 3600:
        raise Mistake(f"--seconds {options.seconds:g}: must be above 0 and at most 3600")
    if not 1 <= options.threads <= 1024:
        raise Mistake(f"--threads {options.threads}: must be 1 to 1024")
    for path in options.files:
        if not path.is_file():
            raise Mistake(f"no file '{path}'; give the path of a .tflite file")
    names = [path.name for path in options.files]
    twice = next((name for name in names if names.count(name) > 1), None)
    if twice:
        raise Mistake(f"two files are called '{twice}'; give each a name of its own")
    folder = options.out.resolve().parent
    if options.out.is_dir() or not folder.is_dir() or not os.access(folder, os.W_OK):
        raise Mistake(f"'{options.out}' cannot be written; choose another --out")


def parsed(arguments: list[str]) -> argparse.Namespace:
    """Return the options of a command line."""
    parser = argparse.ArgumentParser(
        description=(__doc__ or "").splitlines()[0],
        epilog="Then, where fedsparse is: fedsparse devices import device.json",
    )
    parser.add_argument("files", nargs="+", type=Path, metavar="FILE.tflite")
    parser.add_argument("--out", type=Path, default=Path("device.json"), help="where to write")
    parser.add_argument("--threads", type=int, default=1, metavar="N", help="1 if unset")
    parser.add_argument("--seconds", type=float, default=10.0, metavar="S", help="a file; 10")
    parser.add_argument("--name", metavar="NAME", help="of the device; its model if unset")
    return parser.parse_args(arguments)


def main(arguments: list[str]) -> int:
    """Measure as the command line says; return the exit code."""
    if arguments[:1] == [PROBE]:
        try:
            print(json.dumps(probe(Path(arguments[1]), int(arguments[2]))))
        except Exception as error:  # runtimes raise many kinds for a file that they cannot take
            print(json.dumps({"refused": one_line(error)}))
        return 0
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # as Ctrl-C: keep what is there
    try:
        options = parsed(arguments)
        checked(options)
        found = measure(options.files, options.threads, options.seconds, options.name)
        if not found["results"]:
            print("measure.py: interrupted before anything was measured", file=sys.stderr)
            return INTERRUPTED
        write(options.out, found)
    except KeyboardInterrupt:
        print("measure.py: interrupted; nothing is written", file=sys.stderr)
        return INTERRUPTED
    except (Mistake, OSError, ImportError, MemoryError) as error:
        print(f"measure.py: error: {one_line(error)}", file=sys.stderr)
        return MISTAKE
    for result in found["results"]:
        times = result["seconds"]
        print(f"{result['file']}: p50 {1e3 * times['p50']:.3f} ms, p95 {1e3 * times['p95']:.3f} ms")
    if found["conditions"]["throttled"]:
        reasons = ", ".join(found["conditions"]["reasons"])
        print(f"slowed down while measuring: {reasons}; cool it and repeat", file=sys.stderr)
    print(f"written: {options.out}")
    return 0 if found["complete"] else INTERRUPTED


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
