"""What clients keep between messages, as the grid holds it: equal bytes are one object.

Most clients of a run keep the same mask, and each one's comes back from its worker as bytes
of its own. Held once, it also travels once in a batch, and is hashed once in a checkpoint.
"""

from collections.abc import Callable, Iterator, Mapping
from typing import Any

State = dict[str, Any]
"""One client's state in the form of `plain_state`: nested dicts of bytes, lists and values."""


class SharedBytes:
    """Byte strings that several hold; each is let go with the last who holds it."""

    def __init__(self) -> None:
        self._held: dict[bytes, tuple[bytes, int]] = {}

    def __len__(self) -> int:
        return len(self._held)

    def hold(self, content: bytes) -> bytes:
        """Return the one object that stands for these bytes, and count one more holder."""
        first, holders = self._held.get(content, (content, 0))
        self._held[first] = first, holders + 1
        return first

    def release(self, content: bytes) -> None:
        """Count one holder less."""
        first, holders = self._held.pop(content)
        if holders > 1:
            self._held[first] = first, holders - 1


class ClientStates:
    """The state of every client that has one."""

    def __init__(self) -> None:
        self._of: dict[int, State] = {}
        self.shared = SharedBytes()

    def get(self, client: int) -> State | None:
        """Return a client's state; None when it has none."""
        return self._of.get(client)

    def keep(self, client: int, state: State) -> None:
        """Replace a client's state; an empty one isn't held."""
        before = self._of.pop(client, {})
        if state:
            self._of[client] = _replaced(state, self.shared.hold)
        for content in _bytes_of(before):
            self.shared.release(content)

    def all(self) -> dict[int, State]:
        """Return the state of every client that has one, in the order of clients."""
        return dict(sorted(self._of.items()))

    def load(self, states: Mapping[int, State]) -> None:
        """Replace every client's state."""
        for client in self._of.keys() - states.keys():
            self.keep(client, {})
        for client, state in states.items():
            self.keep(client, state)


def _replaced(node: Any, by: Callable[[bytes], bytes]) -> Any:
    """Return a copy of nested dicts, their bytes replaced."""
    if isinstance(node, dict):
        return {key: _replaced(value, by) for key, value in node.items()}
    return by(node) if isinstance(node, bytes) else node


def _bytes_of(node: Any) -> Iterator[bytes]:
    """Yield the bytes of nested dicts."""
    if isinstance(node, dict):
        for value in node.values():
            yield from _bytes_of(value)
    elif isinstance(node, bytes):
        yield node
