"""The picture: what it says, what it escapes, and where none can be written."""

import json
import re
import shutil

import pytest

from edge_export.bench import picture
from edge_export.bench.picture import Point
from fedsparse.errors import BenchError, MissingExtraError

pytest.importorskip("plotly", reason="pip install 'fedsparse[report]'")

POINTS = [
    Point("dense.tflite", 0.9, 4_000_000, 200e6, "instructions on cortex-a72"),
    Point("sparse.tflite", 0.89, 1_000_000, 50e6, "instructions on cortex-a72", sparse=True),
]


def figures(page):
    found = re.search(r'<script id="figures" type="application/json">(.*?)</script>', page, re.S)
    return json.loads(found[1])


def test_accuracy_is_drawn_against_cost_with_size_as_area():
    drawn = figures(picture.render(POINTS))
    assert list(drawn) == ["accuracy", "size"]
    dense, sparse = drawn["accuracy"]["data"]
    assert (dense["x"], dense["y"]) == ([200], [90])
    assert (sparse["x"], sparse["y"]) == ([50], [89])
    assert dense["marker"]["size"] == 2 * sparse["marker"]["size"]  # four times the area
    assert dense["marker"]["symbol"] == "circle-open"
    assert sparse["marker"]["symbol"] == "circle"
    title = drawn["accuracy"]["layout"]["xaxis"]["title"]["text"]
    assert title == "M instructions on cortex-a72, an inference"


def test_without_accuracy_size_is_drawn_alone():
    points = [Point("a", None, 1000, 0.2, "ms on this machine"), Point("b", None, 90000, 9.0, "ms")]
    drawn = figures(picture.render(points))
    assert list(drawn) == ["size"]
    assert drawn["size"]["data"][1]["y"] == [90]
    assert drawn["size"]["layout"]["xaxis"]["type"] == "log"
    assert drawn["size"]["layout"]["xaxis"]["title"]["text"].startswith(
        "Median of an inference (ms"
    )


def test_a_picture_is_complete_and_escapes_names(tmp_path):
    path = tmp_path / "costs.html"
    picture.write(path, [Point("<b>%{x}", 0.5, 10, 1.0, "ms on this machine")])
    page = path.read_text()
    assert "<b>%{x}" not in page
    assert "&lt;b&gt;" in page
    assert "default-src 'none'" in page  # it could load nothing
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize(
    ("name", "said"),
    [("a.htm", "did you mean '.html'"), ("a.svg", "suffix '.svg'"), ("no/a.html", "is missing")],
)
def test_where_no_picture_can_be_written_is_told_before(tmp_path, name, said):
    with pytest.raises(BenchError, match=said):
        picture.check(tmp_path / name)


def test_what_a_picture_needs_is_named(tmp_path, monkeypatch):
    monkeypatch.setenv("PATH", "")
    with pytest.raises(BenchError, match="apt-get install chromium"):
        picture.check(tmp_path / "a.png")
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(MissingExtraError, match=r"fedsparse\[report\]"):
        picture.check(tmp_path / "a.html")


@pytest.mark.skipif(
    not any(map(shutil.which, picture.BROWSERS)), reason="no browser: apt-get install chromium"
)
def test_a_png_is_what_a_browser_shows(tmp_path):
    path = tmp_path / "costs.png"
    picture.write(path, POINTS)
    content = path.read_bytes()
    assert content.startswith(b"\x89PNG")
    assert len(content) > 20_000  # an empty page is smaller
    assert list(tmp_path.iterdir()) == [path]
