"""The report in a real browser: phone and desk, light and dark, drawn and within its bounds.

One headless browser opens a page that holds each report in frames of both widths; each frame
measures itself, presses the theme button and posts what it found. One report begins dark, too.
"""

import json
import re
import shutil
import subprocess
from pathlib import Path

import pytest
from run_folders import make_run
from timed_runs import DEVICES, make_timed_run

from simulations.report import write_report

BROWSERS = ("chromium", "chromium-browser", "google-chrome", "chrome")
PAGES = ("several", "devices", "queue")
WIDTHS = (390, 1280)
DARK = "several"
FRAMES = [(page, width, "light") for page in PAGES for width in WIDTHS]
FRAMES += [(DARK, width, "dark") for width in WIDTHS]

PROBE = (Path(__file__).parent / "report_probe.js").read_text()

OUTER = """<!doctype html><body><pre id="found"></pre><script>
const found = {};
addEventListener("message", (event) => {
  found[event.data.frame] = event.data;
  document.getElementById("found").textContent = JSON.stringify(found);
});
</script>%s</body>"""


def browser():
    return next((path for name in BROWSERS if (path := shutil.which(name))), None)


def crowded():
    """Return devices with long names and limits that lie close to each other."""
    names = [f"a-device-of-a-long-name-{i}" for i in range(8)]
    limits = {name: 200_000 + 60_000 * i for i, name in enumerate(names)}
    methods = {f"{label}-{'long' * 8}": m for label, m in DEVICES["memory_by_method"].items()}
    profiles = dict.fromkeys(names, 10)
    return {**DEVICES, "profiles": profiles, "limits": limits, "memory_by_method": methods}


@pytest.fixture(scope="module")
def measured(tmp_path_factory):
    """What each frame found, by (page, width, theme)."""
    if browser() is None:
        pytest.skip(f"no browser on this machine (looked for {', '.join(BROWSERS)})")
    folder = tmp_path_factory.mktemp("browser")
    runs = {
        "several": [make_run(folder / name, clients=70) for name in ("a", "a-" + "long" * 20)],
        "devices": [make_timed_run(folder / "b", clients=90, asked=80, devices=crowded())],
        "queue": [make_timed_run(folder / "c", rounds=12, asynchronous=True)],
    }
    for page in PAGES:
        report = write_report([run.path for run in runs[page]], folder / f"{page}.html")
        report.write_text(report.read_text().replace("</body>", f"<script>{PROBE}</script></body>"))
    frames = "".join(
        f'<iframe name="{page}-{width}-{theme}" width="{width}" height="900" '
        f'src="{page}.html?theme={theme}"></iframe>'
        for page, width, theme in FRAMES
    )
    (folder / "outer.html").write_text(OUTER % frames)
    done = subprocess.run(
        [
            browser(),
            "--headless",
            "--no-sandbox",
            "--disable-gpu",
            "--disable-quic",
            "--no-first-run",
            "--disable-background-networking",
            "--disable-component-update",
            "--disable-sync",
            f"--user-data-dir={folder / 'profile'}",
            "--virtual-time-budget=20000",
            "--dump-dom",
            (folder / "outer.html").as_uri(),
        ],
        capture_output=True,
        text=True,
        timeout=300,
        check=True,
    )
    found = re.search(r'<pre id="found">(.*?)</pre>', done.stdout, re.DOTALL)[1]
    return {tuple(name.split("-")): value for name, value in json.loads(found).items()}


@pytest.mark.parametrize(("page", "width", "theme"), FRAMES)
def test_the_page_fits_is_drawn_and_can_be_read(measured, page, width, theme):
    frame = measured[page, str(width), theme]
    for state in (frame["before"], frame["after"]):
        assert state["inner"] == width
        assert state["scroll"] <= width
        assert state["drawn"] == state["plots"] >= 8
        assert state["labels"] > 50
        assert state["outside"] == []
        assert state["contrast"] >= 4.5


@pytest.mark.parametrize("width", WIDTHS)
@pytest.mark.parametrize("page", PAGES)
def test_the_button_changes_the_page_and_its_plots_at_once(measured, page, width):
    light = measured[page, str(width), "light"]
    assert sum(light["before"]["page"]) > 700
    assert sum(light["after"]["page"]) < 100
    assert light["before"]["curve"] != light["after"]["curve"]


@pytest.mark.parametrize("width", WIDTHS)
def test_a_page_that_begins_dark_is_the_one_that_was_made_dark(measured, width):
    light, dark = (measured[DARK, str(width), theme] for theme in ("light", "dark"))
    assert light["before"]["page"] == dark["after"]["page"]
    assert light["after"]["page"] == dark["before"]["page"]
    assert light["before"]["curve"] != dark["before"]["curve"] == light["after"]["curve"]
