"""Sets of numbers as text: what a configuration names clients, classes and samples with."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fedsparse.config import resolve
from fedsparse.errors import ConfigError
from fedsparse.number_set import parse, text_of


@given(st.sets(st.integers(0, 300)))
def test_text_gives_the_numbers_back(numbers):
    text = text_of(numbers)
    assert parse(text) == tuple(sorted(numbers)) if numbers else text == ""


def test_runs_are_ranges_and_order_does_not_matter():
    assert text_of([9, 3, 7, 8, 3, 1]) == "1,3,7-9"
    assert text_of([4, 5]) == "4,5"
    assert parse(" 7 - 9, 3,8") == (3, 7, 8, 9)


@pytest.mark.parametrize("text", ["", "a", "3,,4", "-3", "3-", "1.5", "9-3", "0-999999999999999"])
def test_other_text_is_refused(text):
    with pytest.raises(ValueError, match=r"no number|backwards|out of range"):
        parse(text)


@pytest.mark.parametrize("value", [3, "3", [3], " 3 ", "3,3"])
def test_a_configuration_takes_numbers_lists_and_text(value):
    assert resolve({"forget": {"clients": value}}).forget.clients == "3"


@pytest.mark.parametrize("value", ["x", True, 1.5, -1, [True], "5-2", ""])
def test_a_configuration_refuses_the_rest_in_one_line(value):
    with pytest.raises(ConfigError, match=r"forget\.clients"):
        resolve({"forget": {"clients": value}})
