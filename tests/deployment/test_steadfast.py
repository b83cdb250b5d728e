"""What a node says when the SuperLink refuses it, by the date of the answer and its own clock."""

import pytest

from simulations.deployment.steadfast import refusal

NOON = "Fri, 01 May 2026 12:00:00 GMT"
AT_NOON = 1777636800.0


@pytest.mark.parametrize(
    ("ahead", "said"),
    [
        (7200.0, "7200 s ahead of"),
        (6.0, "6 s ahead of"),
        (-400.0, "400 s behind"),
        (-300.0, "does not know this node's key"),
        (4.0, "does not know this node's key"),
    ],
)
def test_a_refused_node_says_whether_its_clock_or_its_key_is_wrong(ahead, said):
    assert said in refusal(NOON, AT_NOON + ahead)


@pytest.mark.parametrize("date", [None, "", "yesterday"])
def test_an_answer_without_a_date_blames_the_key(date):
    assert "register it" in refusal(date, AT_NOON)
