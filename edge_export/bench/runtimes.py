"""What runs a model file: names, the files each takes, and what to do where one is missing.

Files are looked at before anything is started, so that a wrong one is told at once.
"""

import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fedsparse.errors import BenchError, UnknownNameError, one_line

LITERT, TFLITE, ONNX = "litert", "tflite-runtime", "onnxruntime"
IDENTIFIER = b"TFL3"
"""Bytes 4 to 7 of every .tflite file."""
SIDECAR = ".json"


@dataclass(frozen=True)
class Runtime:
    """A runtime: the package that holds it, the suffix of its files, how to get it."""

    package: str
    suffix: str
    remedy: str


RUNTIMES = {
    LITERT: Runtime(
        "ai_edge_litert", ".tflite", "pip install numpy ai-edge-litert, for the same interpreter"
    ),
    TFLITE: Runtime(
        "tflite_runtime",
        ".tflite",
        "it needs numpy 1, so an environment of its own: `python3.11 -m venv lite && "
        "lite/bin/pip install tflite-runtime 'numpy<2'`, then --runtime-python lite/bin/python",
    ),
    ONNX: Runtime("onnxruntime", ".onnx", "pip install onnxruntime"),
}


def chosen(files: Iterable[Path], wanted: str | None) -> dict[Path, str]:
    """Return each file's runtime: the one that is `wanted`, or the usual one of its suffix.

    Raises UnknownNameError, and BenchError for a file that is missing or no such model.
    """
    if wanted is not None and wanted not in RUNTIMES:
        raise UnknownNameError("runtime", wanted, RUNTIMES)
    return {file: _runtime_of(file, wanted) for file in files}


def _runtime_of(file: Path, wanted: str | None) -> str:
    found = [name for name, runtime in RUNTIMES.items() if runtime.suffix == file.suffix.lower()]
    if not found:
        suffixes = " or ".join(sorted({runtime.suffix for runtime in RUNTIMES.values()}))
        raise BenchError(f"'{file}' is no {suffixes} file; `fedsparse export` writes them")
    if wanted is not None and wanted not in found:
        raise BenchError(f"{wanted} runs no {file.suffix} files; use --runtime {found[0]}")
    _look_at(file)
    return wanted or found[0]


def _look_at(file: Path) -> None:
    """Raise BenchError for a file that cannot be read or is plainly no model."""
    try:
        with file.open("rb") as content:
            head = content.read(8)
    except OSError as error:
        raise BenchError(f"'{file}' cannot be read: {error.strerror}") from None
    if len(head) < 8 or (file.suffix.lower() == ".tflite" and head[4:] != IDENTIFIER):
        raise BenchError(f"'{file}' is no {file.suffix} model; `fedsparse export` writes one")


def sidecar(file: Path) -> dict[str, Any]:
    """Return what export wrote beside a file about it, such as its accuracy; raises BenchError.

    A file without such a sidecar gives nothing.
    """
    path = file.with_name(file.name + SIDECAR)
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return {}
    except (OSError, ValueError) as error:
        raise BenchError(f"'{path}' cannot be read ({error}); export again or remove it") from None
    if not isinstance(content, dict):
        raise BenchError(f"'{path}' is no JSON object; export again or remove it")
    accuracy = content.get("accuracy")
    if accuracy is not None and not isinstance(accuracy, int | float):
        raise BenchError(f"'{path}' has accuracy {accuracy!r}, no number; export again")
    return content


def reply_of(line: str) -> dict[str, Any]:
    """Return a worker's reply; empty where a line is none, as an interpreter of another kind's is.

    Times are lists of whole numbers, other figures whole numbers; none is negative.
    """
    try:
        found = json.loads(line)
    except (ValueError, RecursionError):
        return {}
    texts = {"failed", "message", "version"}
    if not isinstance(found, dict) or not all(_is_figure(v, k in texts) for k, v in found.items()):
        return {}
    return found


def _is_figure(value: Any, text: bool) -> bool:
    if text:
        return isinstance(value, str)
    if isinstance(value, list):
        return bool(value) and all(type(each) is int and each >= 0 for each in value)
    return type(value) is int and value >= 0


def explain(file: Path, runtime: str, reply: Mapping[str, Any], where: str) -> BenchError:
    """Return the error for a worker's reply that something failed; `where` it ran."""
    if reply["failed"] == "import":
        return missing(runtime, where, one_line(reply.get("message")))
    return BenchError(f"{runtime} cannot run '{file}': {one_line(reply.get('message'))}")


def missing(runtime: str, where: str, reason: str) -> BenchError:
    """Return the error for a runtime that cannot be imported."""
    package = RUNTIMES[runtime].package
    return BenchError(
        f"{package} cannot be imported {where} ({reason[:120]}); {RUNTIMES[runtime].remedy}"
    )
