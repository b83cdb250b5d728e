"""Tests of the global model, each in a thread of its own while the next round trains.

Rows come in order, each when its test is done. A checkpoint may be older than its round's test: it
then holds the row without it, and a run that goes on from there tests again, to the same bits.
"""

from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress

import torch

from fedsparse.runs.tables import Row
from fedsparse.training.local import Evaluated

Test = Callable[[], Evaluated]


class RowWriter:
    """At most one test under way; `write` is called with whole rows, by the caller's thread."""

    def __init__(self, write: Callable[[Row], None]) -> None:
        self.write = write
        self.untested: Row | None = None
        """The row that waits for its test."""
        self._found: Future[Evaluated] | None = None
        self._hand: ThreadPoolExecutor | None = None

    def start(self, row: Row, test: Test | None) -> None:
        """Write a row once its test is done, at once without one; earlier rows come first."""
        self.settle()
        if test is None:
            self.write(row)
            return
        if self._hand is None:
            self._hand = ThreadPoolExecutor(1, "test", torch.set_num_threads, (1,))
        self.untested, self._found = row, self._hand.submit(test)

    def poll(self) -> None:
        """Write the row that waits if its test is done."""
        if self._found is not None and self._found.done():
            self.settle()

    def settle(self) -> None:
        """Wait for the test under way and write its row; raises what the test raised."""
        row, found = self.untested, self._found
        self.untested, self._found = None, None
        if row is not None and found is not None:
            self.write(tested(row, found.result()))

    def __enter__(self) -> "RowWriter":
        return self

    def __exit__(self, error: type[BaseException] | None, *_: object) -> None:
        """Settle; when interrupted drop the row, which a run that goes on makes again."""
        try:
            if error is None:
                self.settle()
            elif issubclass(error, Exception):
                with suppress(Exception):  # the first error is the one to tell
                    self.settle()
        finally:
            if self._hand is not None:
                self._hand.shutdown(wait=False)


def tested(row: Row, found: Evaluated) -> Row:
    """Return a row with what a test found."""
    return {**row, "accuracy": found.accuracy, "loss": found.loss}
