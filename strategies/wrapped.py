"""A grid around another one: what a wrapper does not change goes to the grid behind."""

from collections.abc import Iterable
from typing import Any

from flwr.app import Message
from flwr.serverapp import Grid


class Wrapped(Grid):
    """Passes on to `inner` what a subclass does not do in a way of its own."""

    inner: Grid

    def set_run(self, *args: Any, **kwargs: Any) -> None:
        """Pass on to the grid behind."""
        self.inner.set_run(*args, **kwargs)

    @property
    def run(self) -> Any:
        """The run of the grid behind."""
        return self.inner.run

    def create_message(self, *args: Any, **kwargs: Any) -> Message:
        """Pass on to the grid behind."""
        return self.inner.create_message(*args, **kwargs)

    def push_messages(self, messages: Iterable[Message]) -> Iterable[str]:
        """Pass on to the grid behind."""
        return self.inner.push_messages(messages)

    def pull_messages(self, message_ids: Iterable[str]) -> Iterable[Message]:
        """Pass on to the grid behind."""
        return self.inner.pull_messages(message_ids)
