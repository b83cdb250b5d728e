"""What a run tells whoever watches it."""

from typing import Any, Protocol


class Progress(Protocol):
    """A watcher of a run; every method returns at once."""

    def start(self, total_rounds: int, first_round: int) -> None:
        """The run begins after `first_round` of `total_rounds`."""

    def clients(self, done: int, total: int) -> None:
        """In the round under way, `done` of `total` clients have replied."""

    def round_done(self, row: dict[str, Any]) -> None:
        """A round has ended with these figures."""

    def note(self, text: str) -> None:
        """Something worth a line happened."""

    def stop(self) -> None:
        """The run has ended, one way or another."""


class Silent:
    """A watcher that says nothing."""

    def start(self, total_rounds: int, first_round: int) -> None:
        """Say nothing."""

    def clients(self, done: int, total: int) -> None:
        """Say nothing."""

    def round_done(self, row: dict[str, Any]) -> None:
        """Say nothing."""

    def note(self, text: str) -> None:
        """Say nothing."""

    def stop(self) -> None:
        """Say nothing."""
