"""What a worker keeps of its clients' states, so that they need not be sent again.

The server's side holds every state; a worker's copy only saves sending it. It is known by
its digest, so an old copy is never taken for the new one. Small states are not worth it.
"""

from collections import OrderedDict
from collections.abc import Iterator
from hashlib import blake2b
from typing import Any

State = dict[str, Any]

LEAST_BYTES = 1000
"""Arrays in a state, in bytes, from which its digest is sent in its place."""

CACHE_BYTES = 64 * 2**20
"""Arrays in the states that one worker keeps, in bytes."""

_DIGEST_BYTES = 16


def size(state: State) -> int:
    """Return the bytes of a state's arrays."""
    return sum(map(len, _leaves(state)))


def digest(state: State, seen: dict[int, bytes] | None = None) -> bytes:
    """Return what stands for a state: other bits, another digest.

    `seen` keeps the digests of byte strings by identity; it must not outlive them.
    """
    seen = {} if seen is None else seen

    def short(node: Any) -> Any:
        if isinstance(node, dict):
            return {key: short(value) for key, value in node.items()}
        if not isinstance(node, bytes):
            return node
        if id(node) not in seen:
            seen[id(node)] = blake2b(node, digest_size=_DIGEST_BYTES).digest()
        return seen[id(node)]

    return blake2b(repr(short(state)).encode(), digest_size=_DIGEST_BYTES).digest()


def _leaves(node: Any) -> Iterator[bytes]:
    if isinstance(node, dict):
        for value in node.values():
            yield from _leaves(value)
    elif isinstance(node, bytes):
        yield node


class StateCache:
    """The states of the clients seen last, up to `most_bytes` of arrays; 0 keeps none."""

    def __init__(self, most_bytes: int = CACHE_BYTES) -> None:
        self.most_bytes = most_bytes
        self.bytes = 0
        self._kept: OrderedDict[int, tuple[bytes, int, State]] = OrderedDict()

    def keep(self, client: int, state: State) -> bytes | None:
        """Keep a client's state in its earlier one's place; None when it was not kept."""
        _, before, _ = self._kept.pop(client, (b"", 0, {}))
        self.bytes -= before
        taken = size(state)
        if not LEAST_BYTES <= taken <= self.most_bytes:
            return None
        name = digest(state)
        self._kept[client] = name, taken, state
        self.bytes += taken
        while self.bytes > self.most_bytes:
            _, (_, oldest, _) = self._kept.popitem(last=False)
            self.bytes -= oldest
        return name

    def get(self, client: int, name: bytes) -> State | None:
        """Return the client's state of this digest; None when another is kept, or none."""
        kept, _, state = self._kept.get(client, (b"", 0, {}))
        if kept != name:
            return None
        self._kept.move_to_end(client)
        return state
