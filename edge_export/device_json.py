"""device.json: what a device measured of exported files, read from a file and checked.

`edge_export/on_device/measure.py` writes it. Logs of benchmark_model and instruction counts of
`fedsparse bench` are brought into the same form, so that all else knows one form alone.
"""

import math
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, field_validator, model_validator

from edge_export.storage import DYNAMIC, STATIC
from fedsparse.devices.reading import checked, json_of, text_of
from fedsparse.errors import BenchError

FORMAT, VERSION = "fedsparse-device", 1
WHAT = "device.json"


def _finite(value: float) -> float:
    if not math.isfinite(value):
        raise ValueError("must be a finite number")
    return value


def _printable(value: str) -> str:
    if not value.isprintable():
        raise ValueError("must be text of one line, without control characters")
    return value


Positive = Annotated[float, AfterValidator(_finite), Field(gt=0, le=1e18)]
Seconds = Annotated[float, AfterValidator(_finite), Field(ge=1e-9, le=1e6)]
Count = Annotated[int, Field(gt=0, le=10**18)]
MOST_TEXT = 1000
Text = Annotated[str, Field(max_length=MOST_TEXT), AfterValidator(_printable)]
"""Whatever is shown or written of it stands on one line, and in any file."""
Name = Annotated[str, Field(min_length=1, max_length=MOST_TEXT), AfterValidator(_printable)]
Digest = Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]


class Read(BaseModel):
    """Base of what is read: values never change, keys that are not needed are passed over."""

    model_config = ConfigDict(extra="ignore", frozen=True, strict=True)


class Export(Read):
    """What `fedsparse export` wrote of a file beside it: its work, and how it is stored."""

    macs: Count
    kept_macs: Annotated[int, Field(ge=0)]
    layout: Literal["dense", "sparse"]
    values: Text
    storage: Text | None = None
    sha256: Digest | None = None

    @model_validator(mode="after")
    def _no_more_than_all(self) -> "Export":
        if self.kept_macs > self.macs:
            raise ValueError(f"kept_macs {self.kept_macs} is more than macs {self.macs}")
        return self

    @property
    def density(self) -> float:
        """The kept share of the arithmetic."""
        return self.kept_macs / self.macs

    @property
    def floating(self) -> bool:
        """Whether it is computed in f32, as training is, whatever its values are stored as."""
        if self.storage is None:
            return self.values != "int8" or self.layout == "sparse"
        return not self.storage.endswith((STATIC, DYNAMIC))


def unknown_work(export: dict[str, Any]) -> bool:
    """Whether export wrote of a file that it does not know its multiply-adds."""
    return "macs" in export and export["macs"] is None


class Times(Read):
    """Seconds of one inference."""

    p50: Seconds | None = None
    mean: Seconds | None = None

    @model_validator(mode="after")
    def _one_of_them(self) -> "Times":
        if self.p50 is None and self.mean is None:
            raise ValueError("p50 is missing; give the median of the measured seconds")
        return self

    @property
    def typical(self) -> tuple[str, float]:
        """The median, or the mean where an old log has nothing else."""
        return ("p50", self.p50) if self.p50 is not None else ("mean", self.mean or math.nan)


class Result(Read):
    """One file's figures: seconds, or instructions, of one inference."""

    file: Name
    path: Text | None = None
    sha256: Digest | None = None
    count: Count | None = None
    seconds: Times | None = None
    instructions: Positive | None = None
    export: Export | None = None

    @field_validator("export", mode="before")
    @classmethod
    def _known(cls, export: Any) -> Any:
        """Export knows no multiply-adds of a model that it did not read layer by layer."""
        return None if isinstance(export, dict) and unknown_work(export) else export

    @model_validator(mode="after")
    def _measured(self) -> "Result":
        if (self.seconds is None) == (self.instructions is None):
            raise ValueError(f"'{self.file}': give either seconds or instructions of an inference")
        return self


class Machine(Read):
    """The device."""

    memory_bytes: Positive | None = None
    memory_available_bytes: Positive | None = None


class Runtime(Read):
    """What ran the files."""

    name: Text
    version: Text = ""


class Conditions(Read):
    """What went on while it was measured; None where the system did not tell."""

    throttled: bool | None = None
    reasons: list[Text] = Field(default_factory=list, max_length=100)


class DeviceFile(Read):
    """A whole device.json."""

    format: str
    version: int
    name: Name
    made: Text = ""
    complete: bool = True
    machine: Machine = Machine()
    runtime: Runtime
    threads: Count = 1
    conditions: Conditions = Conditions()
    results: list[Result] = Field(min_length=1)

    @model_validator(mode="after")
    def _of_one_kind(self) -> "DeviceFile":
        if len({result.instructions is None for result in self.results}) > 1:
            raise ValueError("results hold both seconds and instructions; keep one kind")
        names = [result.file for result in self.results]
        twice = next((name for name in names if names.count(name) > 1), None)
        if twice is not None:
            raise ValueError(f"results hold '{twice}' twice; keep one")
        return self

    @property
    def counted(self) -> bool:
        """Whether instructions were counted, and no time measured."""
        return self.results[0].instructions is not None


def read(path: Path) -> DeviceFile:
    """Return what a device.json holds, or what `fedsparse bench --on arm --json` printed.

    Raises BenchError for what is neither, ConfigError, one line that names the key, for values
    that cannot be.
    """
    data = json_of(text_of(path, WHAT, BenchError), path, BenchError)
    if "format" not in data and "results" in data:
        data = _of_bench(data, path)
    return from_mapping(data, str(path))


def from_mapping(data: dict[str, Any], where: str) -> DeviceFile:
    """Return a device.json's content, checked; raises as `read` does."""
    if data.get("format") != FORMAT:
        raise BenchError(
            f"'{where}' is no device.json: its format is {data.get('format')!r}, not '{FORMAT}'; "
            "measure.py writes one"
        )
    if data.get("version") != VERSION or isinstance(data.get("version"), bool):
        raise BenchError(
            f"'{where}' is of version {data.get('version')!r} and only {VERSION} is read; "
            "measure again with the measure.py that is installed"
        )
    return checked(DeviceFile, data, where)


def _of_bench(data: dict[str, Any], path: Path) -> dict[str, Any]:
    """Return counts of `fedsparse bench --on arm --json` in device.json's form.

    Raises BenchError for times, and for counts of several cores or runtimes.
    """
    rows = data["results"] if isinstance(data["results"], list) else []
    rows = [{**data, **row} for row in rows if isinstance(row, dict)]
    if not rows or any("instructions" not in row for row in rows):
        raise BenchError(
            f"'{path}' holds no counts of instructions; `fedsparse bench --on arm --json` prints "
            "them, and measure.py writes seconds"
        )
    keys = ("core", "runtime", "runtime_version")
    kinds = {tuple(str(row.get(key, "unknown")) for key in keys) for row in rows}
    if len(kinds) > 1:
        raise BenchError(f"'{path}' holds counts of several cores or runtimes; give those of one")
    core, runtime, version = kinds.pop()
    return {
        "format": FORMAT,
        "version": VERSION,
        "name": core,
        "runtime": {"name": runtime, "version": version},
        "results": [_counted(row) for row in rows],
    }


def _counted(row: dict[str, Any]) -> dict[str, Any]:
    """Return a row of counts as a result: a path becomes a name and the place to look in."""
    keys = ("file", "sha256", "instructions", "export")
    kept: dict[str, Any] = {key: row[key] for key in keys if key in row}
    if isinstance(kept.get("file"), str):
        kept |= {"path": kept["file"], "file": Path(kept["file"]).name}
    return kept
