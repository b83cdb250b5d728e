"""The figures of faults on record are what the page shows, and name no place of a machine."""

import json
from pathlib import Path

import pytest

from benchmarks.deploy_faults import RESULTS, table, without_places
from strategies.reasons import plain

PAGE = Path(__file__).parents[2] / "docs" / "deploy-faults.md"


def test_the_page_holds_the_table_of_the_figures_on_record():
    assert table(json.loads(RESULTS.read_text())["scenarios"]) in PAGE.read_text()


def test_reasons_on_record_are_plain_and_name_no_place_of_a_machine():
    for found in json.loads(RESULTS.read_text())["scenarios"].values():
        for said in (*found["lost"].values(), *found["ends"]):
            assert without_places(plain(said)) == said


@pytest.mark.parametrize(
    ("said", "shown"),
    [
        (
            "no space: '/tmp/a-1/x/run' -> '/var/b c/p.toml'",
            "no space: '.../run' -> '.../b c/p.toml'",
        ),
        ("at /tmp/x/run: full", "at .../run: full"),
        ("https://127.0.0.1:80/x/y, f32/f16/int8", "https://127.0.0.1:80/x/y, f32/f16/int8"),
    ],
)
def test_of_a_path_its_name_alone_is_written_down(said, shown):
    assert without_places(said) == shown
