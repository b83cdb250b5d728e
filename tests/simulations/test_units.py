"""Quantities read as people write them."""

import pytest

from simulations import units


@pytest.mark.parametrize(
    ("value", "text"),
    [(0, "0 B"), (999, "999 B"), (1000, "1.00 kB"), (1234567, "1.23 MB"), (2e15, "2000 TB")],
)
def test_bytes(value, text):
    assert units.in_units(value) == text


def test_flops_and_nothing():
    assert units.in_units(3.2e9, units.FLOPS) == "3.20 GFLOP"
    assert units.in_units(None) == units.percent(None) == units.duration(None) == "–"


@pytest.mark.parametrize(
    ("value", "text"),
    [(1, "100 %"), (0.942, "94.2 %"), (0.01, "1.00 %"), (0.00123, "0.123 %"), (0, "0 %")],
)
def test_percent(value, text):
    assert units.percent(value) == text


@pytest.mark.parametrize(
    ("value", "text"),
    [(0, "0 s"), (0.421, "0.421 s"), (59.99, "60.0 s"), (200, "3 min 20 s"), (3900, "1 h 05 min")],
)
def test_duration(value, text):
    assert units.duration(value) == text
