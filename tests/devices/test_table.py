"""`fedsparse list devices`: the figures as a table, and all of them as JSON."""

import json
import subprocess
import sys

from fedsparse.devices import mixture, profile
from fedsparse.devices.profile import from_mapping
from tests.command_line import invoke


def test_the_table_shows_the_figures_of_every_profile():
    shown = invoke("list", "devices").stdout.splitlines()
    rows = {line.split("  ")[0]: line for line in shown if line}
    assert set(rows) >= {*profile.names(), *mixture.names()}
    low = rows["phone-low"]
    for figure in ("9.2 GFLOP/s", "0.2", "500 MB", "750 kB/s / 1.62 MB/s", "35 ms", "2 W / 1.5 W"):
        assert figure in low
    assert low.endswith("25%, most at 2 h")
    assert "none" in rows["microcontroller"]
    assert rows["ideal"].endswith("always")
    assert "40% phone-low, 40% phone-middle, 20% phone-high; " in rows["phones"]


def test_the_json_holds_every_figure_and_can_be_read_back():
    text = invoke("list", "devices", "--json").stdout
    found = json.loads(text, parse_constant=lambda name: 1 / 0)
    assert set(found["fleets"]) == set(mixture.names())
    assert set(found["profiles"]) == set(profile.names())
    for name, figures in found["profiles"].items():
        assert from_mapping(figures, name) == profile.shipped(name)


def test_a_list_of_all_kinds_reads_profiles_without_pydantic():
    script = """
import sys
from click.testing import CliRunner
from fedsparse.listing import list_
assert "phone-low" in CliRunner().invoke(list_, []).output
print("pydantic" in sys.modules)
"""
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True)
    assert done.stdout == "False\n", done.stderr
