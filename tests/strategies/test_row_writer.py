"""Tests of the model run beside the next round, and their rows come in order, whole."""

import threading

import pytest

from fedsparse.training.local import Evaluated
from strategies.row_writer import RowWriter

ROW = {"round": 1, "accuracy": None, "loss": None}


def test_a_row_is_written_when_its_test_is_done_and_nobody_waits_for_it():
    rows, may_end = [], threading.Event()

    def test() -> Evaluated:
        assert may_end.wait(60)
        return Evaluated(0.5, 0.9, 10)

    with RowWriter(rows.append) as writer:
        writer.start(ROW, test)
        writer.poll()
        assert rows == []
        assert writer.untested == ROW
        may_end.set()
    assert rows == [{"round": 1, "accuracy": 0.9, "loss": 0.5}]
    assert writer.untested is None


def test_rows_come_in_order_the_untested_among_them():
    rows = []
    with RowWriter(rows.append) as writer:
        for number in range(6):
            test = (lambda n=number: Evaluated(0.0, n, 1)) if number % 2 else None
            writer.start({"round": number, "accuracy": None}, test)
    assert [(row["round"], row["accuracy"]) for row in rows] == [
        (number, number if number % 2 else None) for number in range(6)
    ]


def test_what_a_test_raises_is_raised_where_its_row_is_due_and_leaves_no_row():
    rows = []

    def test() -> Evaluated:
        raise MemoryError("no room for the test set")

    with pytest.raises(MemoryError, match="no room"), RowWriter(rows.append) as writer:
        writer.start(ROW, test)
    assert rows == []


def test_an_interrupt_does_not_wait_for_the_test_nor_is_it_hidden_by_its_error():
    rows, may_end = [], threading.Event()

    def test() -> Evaluated:
        assert may_end.wait(60)
        raise MemoryError("no room for the test set")

    def interrupted() -> None:
        with RowWriter(rows.append) as writer:
            writer.start(ROW, test)
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        interrupted()
    may_end.set()
    assert rows == []
