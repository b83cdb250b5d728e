"""A picture of accuracy, size and cost: one page that works offline, or a PNG of it.

Made of what reports are made of. Sparse files are filled markers, dense ones are hollow.
"""

import importlib.util
import math
import os
import shutil
import subprocess
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fedsparse.errors import BenchError, MissingExtraError, did_you_mean
from fedsparse.runs.atomic import write_file

SUFFIXES = (".html", ".png")
BROWSERS = ("chromium", "chromium-browser", "google-chrome", "chrome")
PNG_SIZE = (1200, 860)
PATIENCE_SECONDS = 120
SPREAD = 10.0
"""Ratio of largest to smallest value from which on an axis is logarithmic."""
BUBBLE = 40
"""Diameter of the largest file's marker, in pixels; areas are as sizes."""
COUNTS = ((1e9, "G"), (1e6, "M"), (1e3, "k"), (1, ""))


@dataclass(frozen=True)
class Point:
    """A file in a picture. `unit` is the cost's, such as `ms on this machine`."""

    label: str
    accuracy: float | None
    nbytes: int
    cost: float
    unit: str
    sparse: bool = False


def check(path: Path) -> None:
    """Raise, before anything is measured, where no picture could be written to `path`.

    BenchError for a name or a folder that will not do or for a missing browser, and
    MissingExtraError without plotly.
    """
    if path.suffix.lower() not in SUFFIXES:
        hint = did_you_mean(path.suffix, SUFFIXES)
        raise BenchError(f"--picture '{path}' has suffix '{path.suffix}'{hint}")
    if path.is_dir():
        raise BenchError(f"--picture '{path}' is a folder; name a file in it")
    if not path.absolute().parent.is_dir():
        raise BenchError(f"--picture '{path}' cannot be written: its folder is missing")
    if not os.access(path.absolute().parent, os.W_OK):
        raise BenchError(f"--picture '{path}' cannot be written: its folder is read-only")
    if not all(map(importlib.util.find_spec, ("jinja2", "plotly"))):
        raise MissingExtraError("a picture", "report")
    if path.suffix.lower() == ".png":
        _browser()


def write(path: Path, points: Sequence[Point]) -> None:
    """Draw points into an .html or .png file, whole or not at all; raises as `check` does."""
    check(path)
    page = render(points).encode()
    content = page if path.suffix.lower() == ".html" else _photographed(page)
    try:
        write_file(path, content)
    except OSError as error:
        raise BenchError(
            f"--picture '{path}' cannot be written: {error.strerror or error}; choose another place"
        ) from None


def render(points: Sequence[Point]) -> str:
    """Return the picture as a page; raises MissingExtraError."""
    from simulations import pages, units
    from simulations.figures import Chart

    charts: list[Chart] = [_sizes(points)]
    if any(point.accuracy is not None for point in points):
        charts.insert(0, _accuracies(points))
    return pages.render(
        "bench.html.jinja",
        {chart.id: chart.figure for chart in charts},
        what="a picture",
        charts=charts,
        unit=points[0].unit,
        lines=[
            (
                point.label,
                "sparse" if point.sparse else "dense",
                units.percent(point.accuracy),
                units.in_units(point.nbytes),
                _number(point),
            )
            for point in points
        ],
    )


def _number(point: Point) -> str:
    from simulations import units

    size, name = _scale(point.cost) if _counted(point) else (1, "")
    return f"{units.digits(point.cost / size, 4)} {name}".rstrip()


def _counted(point: Point) -> bool:
    return point.unit.startswith("instructions")


def _scale(largest: float) -> tuple[float, str]:
    return next((size for size in COUNTS if largest >= size[0]), COUNTS[-1])


def _cost_axis(points: Sequence[Point]) -> tuple[float, str]:
    """Return what costs are divided by on an axis, and its title."""
    unit = points[0].unit
    if not _counted(points[0]):
        return 1, f"Median of an inference ({unit})"
    size, name = _scale(max(point.cost for point in points))
    return size, f"{name} {unit}, an inference".strip()


def _accuracies(points: Sequence[Point]) -> Any:
    """Return the chart of accuracy against cost; a marker's area is its file's size."""
    known = [point for point in points if point.accuracy is not None]
    largest = max(point.nbytes for point in known)
    size, title = _cost_axis(points)
    traces = [
        _marker(
            points,
            point,
            point.cost / size,
            100 * (point.accuracy or 0.0),
            max(8.0, BUBBLE * math.sqrt(point.nbytes / largest)),
        )
        for point in known
    ]
    layout = {
        "xaxis": _axis(title, [p.cost for p in known]),
        "yaxis": {"title": {"text": "Accuracy (%)"}},
    }
    caption = (
        "Up and to the left is better. A marker's area is the size of its file; filled is sparse."
    )
    return _chart("accuracy", "Accuracy against cost, and size", caption, traces, layout, points)


def _sizes(points: Sequence[Point]) -> Any:
    """Return the chart of size against cost."""
    from simulations import units

    size, title = _cost_axis(points)
    nbytes, unit = units.scale(max(point.nbytes for point in points))
    traces = [_marker(points, p, p.cost / size, p.nbytes / nbytes, 12.0) for p in points]
    layout = {
        "xaxis": _axis(title, [p.cost for p in points]),
        "yaxis": _axis(f"File ({unit})", [p.nbytes for p in points]),
    }
    caption = "Down and to the left is better. Filled markers are sparse files, hollow ones dense."
    return _chart("size", "Size against cost", caption, traces, layout, points)


def _axis(title: str, values: Sequence[float]) -> dict[str, Any]:
    wide = min(values) > 0 and max(values) / min(values) >= SPREAD
    kind = {"type": "log", "dtick": "D2"} if wide else {"rangemode": "tozero"}
    return {
        "title": {"text": title + (", logarithmic" if wide else "")},
        "tickformat": "~g",
        **kind,
    }


def _marker(
    points: Sequence[Point], point: Point, x: float, y: float, size: float
) -> dict[str, Any]:
    from simulations.figures import as_text, colour_of, in_template

    colour = colour_of(points.index(point))
    name = in_template(as_text(point.label))
    return {
        "type": "scatter",
        "mode": "markers",
        "x": [x],
        "y": [y],
        "marker": {
            "color": colour,
            "size": size,
            "opacity": 1,
            "symbol": "circle" if point.sparse else "circle-open",
            "line": {"width": 2, "color": colour},
        },
        "cliponaxis": False,
        "hovertemplate": f"{name}: %{{y:.3~g}} at %{{x:.3~g}}<extra></extra>",
    }


def _chart(
    identifier: str,
    title: str,
    caption: str,
    traces: list[dict[str, Any]],
    layout: dict[str, Any],
    points: Sequence[Point],
) -> Any:
    from simulations.figures import Chart, Key, series_of

    legend = [
        Key(series_of(i), "solid" if point.sparse else "dot", point.label)
        for i, point in enumerate(points)
    ]
    return Chart(identifier, title, caption, {"data": traces, "layout": layout}, legend, height=380)


def _browser() -> str:
    found = next((path for name in BROWSERS if (path := shutil.which(name))), None)
    if found is None:
        raise BenchError(
            "a .png is drawn by a browser: `apt-get install chromium`, or --picture FILE.html"
        )
    return found


def _photographed(page: bytes) -> bytes:
    """Return a PNG of a page as a headless browser shows it; raises BenchError."""
    with tempfile.TemporaryDirectory(prefix="fedsparse-bench-") as folder:
        source, drawn = Path(folder) / "page.html", Path(folder) / "page.png"
        source.write_bytes(page)
        command = [_browser(), "--headless", "--no-sandbox", "--disable-gpu", "--hide-scrollbars"]
        command += ["--no-first-run", "--disable-background-networking", "--disable-quic"]
        command += [f"--user-data-dir={folder}/profile", "--virtual-time-budget=5000"]
        command += [f"--window-size={PNG_SIZE[0]},{PNG_SIZE[1]}", f"--screenshot={drawn}"]
        try:
            subprocess.run(
                [*command, f"{source.as_uri()}?theme=light"],
                capture_output=True,
                timeout=PATIENCE_SECONDS,
            )
        except subprocess.TimeoutExpired:
            raise BenchError("the browser drew no picture; use --picture FILE.html") from None
        if not drawn.exists():
            raise BenchError("the browser drew no picture; use --picture FILE.html")
        return drawn.read_bytes()
