"""The process that runs one model file: on this machine, or as a guest of an emulated processor.

It stands alone, since other interpreters run it, too: Python 3.9 or newer, numpy and one runtime.
Each reply is one line of JSON on what was standard output; whatever libraries print goes to
standard error.

    worker.py serve RUNTIME FILE THREADS CORES FOLDER   answers `run N` and `end` on its input
    worker.py count RUNTIME FILE 1 - FOLDER             runs it three times, with marks between
"""

from __future__ import annotations

import importlib
import json
import os
import sys
import time
from typing import Any

SEED = 0
NUMPY_OF_ONNX = {
    "tensor(float)": "float32",
    "tensor(float16)": "float16",
    "tensor(double)": "float64",
    "tensor(int8)": "int8",
    "tensor(uint8)": "uint8",
    "tensor(int32)": "int32",
    "tensor(int64)": "int64",
    "tensor(bool)": "bool",
}
MODULES = {
    "litert": "ai_edge_litert.interpreter",
    "tflite-runtime": "tflite_runtime.interpreter",
    "onnxruntime": "onnxruntime",
}
IMPORT, LOAD = "import", "load"
"""What can fail: the runtime is not there; the runtime refuses the file."""


class Lite:
    """A .tflite file in LiteRT's or TensorFlow Lite's interpreter, ready to run."""

    def __init__(self, module: Any, path: str, threads: int) -> None:
        self.interpreter = module.Interpreter(model_path=path, num_threads=threads)
        self.interpreter.allocate_tensors()

    def fill(self) -> None:
        """Set every input."""
        for wanted in self.interpreter.get_input_details():
            value = random_input(wanted["shape"], wanted["dtype"])
            self.interpreter.set_tensor(wanted["index"], value)

    def run(self) -> None:
        """Infer once."""
        self.interpreter.invoke()

    def outputs(self) -> list[Any]:
        """Return what the last inference gave, in the file's order."""
        details = self.interpreter.get_output_details()
        return [self.interpreter.get_tensor(found["index"]) for found in details]


class Onnx:
    """An .onnx file in onnxruntime, ready to run."""

    def __init__(self, module: Any, path: str, threads: int) -> None:
        options = module.SessionOptions()
        options.intra_op_num_threads, options.inter_op_num_threads = threads, 1
        options.log_severity_level = 4
        self.session = module.InferenceSession(path, options, providers=["CPUExecutionProvider"])
        self.feed: dict[str, Any] = {}
        self.found: list[Any] = []

    def fill(self) -> None:
        """Set every input; a size that the file leaves open is 1."""
        self.feed = {
            wanted.name: random_input(
                [n if isinstance(n, int) and n > 0 else 1 for n in wanted.shape],
                NUMPY_OF_ONNX[wanted.type],
            )
            for wanted in self.session.get_inputs()
        }

    def run(self) -> None:
        """Infer once."""
        self.found = self.session.run(None, self.feed)

    def outputs(self) -> list[Any]:
        """Return what the last inference gave, in the file's order."""
        return self.found


def random_input(shape: Any, dtype: Any) -> Any:
    """Return seeded random values: normal floats, bytes over their range, 0 or 1 otherwise.

    The generator is numpy's oldest, whose stream is the same in every version. Wider integers
    may be indices of something, so they stay small. Raises TypeError for text.
    """
    import numpy as np

    kind, generator = np.dtype(dtype), np.random.RandomState(SEED)
    size = [int(n) for n in shape]
    if kind.kind == "f":
        return generator.standard_normal(size).astype(kind)
    if kind.kind not in "iub":
        raise TypeError(f"an input of type {kind} cannot be made up")
    if kind in (np.dtype("int8"), np.dtype("uint8")):
        least = int(np.iinfo(kind).min)
        return generator.randint(least, least + 256, size).astype(kind)
    return generator.randint(0, 2, size).astype(kind)


def status(key: str) -> int:
    """Return an entry of this process's status in bytes, 0 where the system has none."""
    try:
        with open("/proc/self/status", encoding="ascii", errors="replace") as file:
            lines = [line.split() for line in file if line.startswith(key + ":")]
    except OSError:
        return 0
    return 1024 * int(lines[0][1]) if lines else 0


def forget_peak() -> None:
    """Let the system's record of peak memory begin anew from what is held now."""
    try:
        with open("/proc/self/clear_refs", "w", encoding="ascii") as file:
            file.write("5")
    except OSError:
        pass


def mark() -> None:
    """Note the instructions so far: the emulator's plugin waits for this very call."""
    os.getppid()


def refused(what: str, error: BaseException) -> dict[str, Any]:
    """Return the reply that says what failed."""
    return {"failed": what, "message": f"{type(error).__name__}: {error}"}


def serve(module: Any, start: dict[str, Any], say: Any) -> None:
    """Load the file, then infer as often as each line of the input asks for."""
    forget_peak()
    before, begun = status("VmRSS"), time.perf_counter_ns()
    model = start["make"](module, start["path"], start["threads"])
    cold = time.perf_counter_ns() - begun
    model.fill()
    begun = time.perf_counter_ns()
    model.run()
    cold += time.perf_counter_ns() - begun
    say({"import_ns": start["import_ns"], "cold_ns": cold, "version": start["version"]})
    for line in sys.stdin:
        word, _, number = line.strip().partition(" ")
        if word == "end":
            break
        taken = []
        for _ in range(int(number)):
            begun = time.perf_counter_ns()
            model.run()
            taken.append(time.perf_counter_ns() - begun)
        say({"ns": taken})
    peak = max(0, status("VmHWM") - before)
    save(model, start["folder"])
    say({"peak_memory_bytes": peak})


def count(module: Any, start: dict[str, Any], say: Any) -> None:
    """Load the file and infer three times, with marks around loading, the first, the other two."""
    mark()
    model = start["make"](module, start["path"], start["threads"])
    mark()
    model.fill()
    mark()
    model.run()
    mark()
    for _ in range(2):
        model.run()
    mark()
    save(model, start["folder"])
    say({"version": start["version"]})


def save(model: Any, folder: str) -> None:
    """Write the last outputs as output-0.npy, output-1.npy, .. into a folder."""
    import numpy as np

    for number, value in enumerate(model.outputs()):
        np.save(os.path.join(folder, f"output-{number}.npy"), value, allow_pickle=False)


def main() -> int:
    """Run one file as the command line says."""
    del sys.path[0]  # this file's folder, whose modules have nothing to do with what is imported
    mode, runtime, path, threads, cores, folder = sys.argv[1:]
    answers = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)

    def say(reply: dict[str, Any]) -> None:
        answers.write(json.dumps(reply) + "\n")
        answers.flush()

    if cores != "-":
        os.sched_setaffinity(0, {int(core) for core in cores.split(",")})
    begun = time.perf_counter_ns()
    try:
        importlib.import_module("numpy")
        module = importlib.import_module(MODULES[runtime])
    except Exception as error:  # a broken installation fails in many ways
        say(refused(IMPORT, error))
        return 0
    start = {
        "make": Onnx if runtime == "onnxruntime" else Lite,
        "path": path,
        "threads": int(threads),
        "folder": folder,
        "import_ns": time.perf_counter_ns() - begun,
        "version": version(module),
    }
    try:
        (serve if mode == "serve" else count)(module, start, say)
    except Exception as error:  # runtimes raise many kinds for a file that they cannot take
        say(refused(LOAD, error))
    return 0


def version(module: Any) -> str:
    """Return a runtime's version as its package says."""
    package = sys.modules[module.__name__.partition(".")[0]]
    return str(getattr(package, "__version__", "unknown"))


if __name__ == "__main__":
    sys.exit(main())
