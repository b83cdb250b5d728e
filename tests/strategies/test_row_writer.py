"""Tests of the model run beside the next round, and their rows come in order, whole."""

import threading

import pytest

from fedsparse.training.local import Evaluated
from strategies.row_writer import RowWriter


def test_a_row_is_written_when_its_test_is_done_and_nobody_waits_for_it():
    rows, may_end = [], threading.Event()
    writer = RowWriter(rows.append)

    def test() -> Evaluated:
        assert may_end.wait(60)
        return Evaluated(0.5, 0.9, 10)

    writer.start({"round": 1, "accuracy": None, "loss": None}, test)
    writer.poll()
    assert rows == []
    assert writer.untested == {"round": 1, "accuracy": None, "loss": None}
    may_end.set()
    writer.close()
    assert rows == [{"round": 1, "accuracy": 0.9, "loss": 0.5}]
    assert writer.untested is None


def test_rows_come_in_order_the_untested_among_them():
    rows = []
    writer = RowWriter(rows.append)
    for number in range(6):
        test = (lambda n=number: Evaluated(0.0, n, 1)) if number % 2 else None
        writer.start({"round": number, "accuracy": None}, test)
    writer.close()
    assert [(row["round"], row["accuracy"]) for row in rows] == [
        (number, number if number % 2 else None) for number in range(6)
    ]


def test_what_a_test_raises_is_raised_where_its_row_is_due_and_leaves_no_row():
    rows = []
    writer = RowWriter(rows.append)

    def test() -> Evaluated:
        raise MemoryError("no room for the test set")

    writer.start({"round": 1}, test)
    with pytest.raises(MemoryError, match="no room"):
        writer.start({"round": 2}, None)
    writer.close()
    assert rows == []
