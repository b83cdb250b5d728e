"""The page of a comparison in a real browser: phone and desk, light and dark."""

import json
import re
import subprocess

import pytest
from test_comparison import finish, plan_of
from test_report_in_browser import OUTER, PROBE, WIDTHS, browser

from simulations import comparison
from simulations.comparison_page import write_page

THEMES = ("light", "dark")
CURVES = PROBE.replace("#accuracy", "#curve-bytes")


@pytest.fixture(scope="module")
def measured(tmp_path_factory):
    """What each frame found, by (width, theme)."""
    if browser() is None:
        pytest.skip("no browser on this machine")
    folder = tmp_path_factory.mktemp("browser")
    told = {"simulated_seconds": 4000.0, "energy_joules": 3e4}
    plan = plan_of("fedavg", "static", "fedtiny", densities=(0.05, 0.2), seeds=(0, 1))
    for place, point in enumerate(plan.points):
        level = 0.3 + 0.05 * place
        finish(folder, point, (0.1, level), bytes_up=10 ** (3 + place // 2), **told)
    rows = comparison.point_rows(folder, plan.points)
    page = write_page(folder, plan, rows, comparison.table_of(plan, rows))
    page.write_text(page.read_text().replace("</body>", f"<script>{CURVES}</script></body>"))
    frames = "".join(
        f'<iframe name="{width}-{theme}" width="{width}" height="900" '
        f'src="{page.name}?theme={theme}"></iframe>'
        for width in WIDTHS
        for theme in THEMES
    )
    (folder / "outer.html").write_text(OUTER % frames)
    quiet = ("quic", "background-networking", "component-update", "sync", "gpu")
    done = subprocess.run(
        [
            browser(),
            "--headless",
            "--no-sandbox",
            "--no-first-run",
            *(f"--disable-{what}" for what in quiet),
            f"--user-data-dir={folder / 'profile'}",
            "--virtual-time-budget=20000",
            "--dump-dom",
            (folder / "outer.html").as_uri(),
        ],
        capture_output=True,
        text=True,
        timeout=120,
        check=True,
    )
    found = re.search(r'<pre id="found">(.*?)</pre>', done.stdout, re.DOTALL)[1]
    return {tuple(name.split("-")): value for name, value in json.loads(found).items()}


@pytest.mark.parametrize("theme", THEMES)
@pytest.mark.parametrize("width", WIDTHS)
def test_the_page_fits_is_drawn_and_can_be_read(measured, width, theme):
    frame = measured[str(width), theme]
    for state in (frame["before"], frame["after"]):
        assert state["inner"] == width
        assert state["scroll"] <= width
        assert state["drawn"] == state["plots"] == 6
        assert state["outside"] == []
        assert state["contrast"] >= 4.5


@pytest.mark.parametrize("width", WIDTHS)
def test_the_button_changes_the_page(measured, width):
    light, dark = measured[str(width), "light"], measured[str(width), "dark"]
    assert light["before"]["page"] == dark["after"]["page"]
    assert light["after"]["page"] == dark["before"]["page"]
    assert sum(light["before"]["page"]) > 700 > 100 > sum(dark["before"]["page"])
