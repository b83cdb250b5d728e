"""What LiteRT's benchmark_model prints, in the form of device.json.

`on_device/adb_benchmark.sh` writes lines that begin with `fedsparse:` between runs, with names,
digests and the phone's figures; a log without them is read as well. A file that was run several
times has the median of its runs' medians.
"""

import re
from pathlib import Path
from statistics import median
from typing import Any

from edge_export.device_json import FORMAT, VERSION
from fedsparse.devices.reading import text_of
from fedsparse.errors import BenchError

NUMBER = r"(\d{1,18}(?:\.\d+)?(?:e[+-]?\d{1,3})?)"
OWN = re.compile(r"^fedsparse: (\w+) ?(.*)$")
GRAPH = re.compile(r"\bGraph: \[([^\]]+)\]")
THREADS = re.compile(r"\bNum threads: \[(\d{1,9})\]|#threads used for CPU inference: \[(\d{1,9})\]")
COUNT = re.compile(r"\bcount=(\d{1,18}) ")
MEAN, MEDIAN = re.compile(rf"\bavg={NUMBER}"), re.compile(rf"\bmedian={NUMBER}")
END = re.compile(rf"Inference timings in us: Init: {NUMBER}, First inference: {NUMBER},")
MEMORY = re.compile(r"^Mem(Total|Available):\s*(\d{1,18}) kB")
LONGEST = 4096
"""Characters of a line that are looked at; benchmark_model's own are far shorter."""
STATUS = re.compile(r"Thermal Status: (\d{1,9})")


def read(path: Path) -> dict[str, Any]:
    """Return a log as the content of a device.json, not checked yet.

    Raises BenchError for a log without a finished run.
    """
    log = _Log()
    for line in text_of(path, "log", BenchError).splitlines():
        log.take(line[:LONGEST].strip())
    if not log.runs:
        raise BenchError(
            f"'{path}' holds no finished run of benchmark_model; it ends a run with a line "
            "'Inference timings in us: ..'"
        )
    return log.content()


class _Log:
    def __init__(self) -> None:
        self.own: dict[str, str] = {}
        self.memory: dict[str, int] = {}
        self.threads = 1
        self.file = ""
        self.last: tuple[str, str, str | None] | None = None
        self.complete = True
        self.runs: dict[str, list[dict[str, Any]]] = {}

    def take(self, line: str) -> None:
        """Take a line in: what begins a run, what a run says, what ends it."""
        if found := OWN.match(line):
            self.own[found[1]] = found[2].strip()
            if found[1] == "file":
                self._begin(found[2].strip())
        elif found := GRAPH.search(line):
            if "log" not in self.own:
                self._begin(re.split(r"[/\\]", found[1])[-1])
        elif found := THREADS.search(line):
            self.threads = int(found[1] or found[2])
        elif found := MEMORY.match(line):
            self.memory[found[1]] = 1024 * int(found[2])
        elif ran := _run(line):
            self.last = ran
        elif (end := END.search(line)) and self.last and self.file:
            self._end(end, self.last)

    def _begin(self, file: str) -> None:
        self.complete &= not self.file or self.file in self.runs
        self.file, self.last = file, None

    def _end(self, end: re.Match[str], run: tuple[str, str, str | None]) -> None:
        count, mean, middle = run
        self.runs.setdefault(self.file, []).append(
            {
                "count": int(count),
                "mean": float(mean) / 1e6,
                "p50": float(middle) / 1e6 if middle else None,
                "setup_seconds": float(end[1]) / 1e6,
                "first_seconds": float(end[2]) / 1e6,
                "sha256": self.own.get("sha256"),
            }
        )
        self.last = None

    def content(self) -> dict[str, Any]:
        """Return all of it in device.json's form."""
        said = " ".join(self.own.get(key, "") for key in ("before", "after"))
        levels = [int(level) for level in STATUS.findall(said)]
        hottest = max(levels, default=0)
        return {
            "format": FORMAT,
            "version": VERSION,
            "name": self.own.get("name") or "android",
            "complete": self.complete and self.file in self.runs,
            "machine": {
                "memory_bytes": self.memory.get("Total"),
                "memory_available_bytes": self.memory.get("Available"),
            },
            "runtime": {"name": "benchmark_model"},
            "threads": self.threads,
            "conditions": {
                "throttled": hottest > 0 if levels else None,
                "reasons": [f"thermal status {hottest}"] if hottest else [],
            },
            "results": [_result(file, runs) for file, runs in self.runs.items()],
        }


def _run(line: str) -> tuple[str, str, str | None] | None:
    """Return a run's count, mean and median, as the line says them; no median in old logs."""
    count = COUNT.search(line)
    mean = MEAN.search(line, count.end()) if count else None
    if count is None or mean is None:
        return None
    middle = MEDIAN.search(line, mean.end())
    return count[1], mean[1], middle[1] if middle else None


def _result(file: str, runs: list[dict[str, Any]]) -> dict[str, Any]:
    medians = [run["p50"] for run in runs if run["p50"] is not None]
    return {
        "file": file,
        "sha256": runs[-1]["sha256"],
        "count": sum(run["count"] for run in runs),
        "setup_seconds": median(run["setup_seconds"] for run in runs),
        "first_seconds": median(run["first_seconds"] for run in runs),
        "seconds": {
            "p50": median(medians) if medians else None,
            "mean": median(run["mean"] for run in runs),
        },
    }
