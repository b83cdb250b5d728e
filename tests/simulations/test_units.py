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
    assert units.in_units(2500, units.JOULES) == "2.50 kJ"
    assert units.in_units(0.02, units.JOULES) == "0.02 J"
    assert units.in_units(None) == units.percent(None) == units.duration(None) == "–"


@pytest.mark.parametrize(
    ("value", "text"),
    [(1, "100 %"), (0.942, "94.2 %"), (0.01, "1.00 %"), (0.00123, "0.123 %"), (0, "0 %")],
)
def test_percent(value, text):
    assert units.percent(value) == text


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (0, "0 s"),
        (0.421, "0.421 s"),
        (59.99, "60.0 s"),
        (200, "3 min 20 s"),
        (3900, "1 h 05 min"),
        (71 * 3600, "71 h 00 min"),
        (72 * 3600, "3 d 00 h"),
        (103.6 * 3600, "4 d 08 h"),
    ],
)
def test_duration(value, text):
    assert units.duration(value) == text


@pytest.mark.parametrize(
    ("longest", "unit"),
    [(0, "s"), (119, "s"), (120, "min"), (7199, "min"), (7200, "h"), (72 * 3600, "days")],
)
def test_an_axis_of_time_has_the_unit_that_fits(longest, unit):
    assert units.clock(longest)[1] == unit
