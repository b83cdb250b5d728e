"""Which mask each client is known to hold, and so how little of a model it must be sent.

A client keeps the mask of the last model that it trained. Once its reply has shown that it
has it, the next model's payload brings only the changed positions (FedTiny, section
"progressive pruning"), or none. Whoever did not reply is sent the whole mask again.
"""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any
from weakref import WeakKeyDictionary

from flwr.app import ArrayRecord

from fedsparse import wire
from fedsparse.sparsity import Mask, State

_ENCODED: WeakKeyDictionary[Mask, bytes] = WeakKeyDictionary()


def encoded(mask: Mask) -> bytes:
    """Return a mask as checkpoints hold it: encoded once, however many rounds it stays."""
    found = _ENCODED.get(mask)
    if found is None:
        found = _ENCODED[mask] = wire.encode_mask(mask)
    return found


class HeldMasks:
    """The mask of each client that holds one."""

    def __init__(self) -> None:
        self._of: dict[int, Mask] = {}

    def records(
        self, state: State, mask: Mask | None, clients: Sequence[int], values: str
    ) -> dict[int, ArrayRecord]:
        """Return the shortest payload of a model for each client; equal ones are one record."""
        by_base: dict[Mask | None, ArrayRecord] = {}
        for base in (self._of.get(client) for client in clients):
            if base not in by_base:
                payload = wire.encode(state, mask=mask, mode="auto", base=base, values=values)
                by_base[base] = wire.pack(payload)
        return {client: by_base[self._of.get(client)] for client in clients}

    def replied(self, mask: Mask | None, asked: Iterable[int], good: Iterable[int]) -> None:
        """Note who of those asked under a mask has shown to hold it."""
        for client in asked:
            self._of.pop(client, None)
        if mask is not None:
            self._of.update(dict.fromkeys(good, mask))

    def forget(self, clients: Iterable[int] | None = None) -> None:
        """Take it that these clients, or all, hold no mask."""
        for client in list(self._of) if clients is None else clients:
            self._of.pop(client, None)

    def state_dict(self) -> dict[str, Any]:
        """Return each distinct mask once, and who holds it."""
        place = {mask: i for i, mask in enumerate(dict.fromkeys(self._of.values()))}
        return {
            "masks": [encoded(mask) for mask in place],
            "clients": {str(client): place[mask] for client, mask in self._of.items()},
        }

    def load_state_dict(
        self, saved: Mapping[str, Any], shapes: Mapping[str, tuple[int, ...]]
    ) -> None:
        """Continue from what `state_dict` returned."""
        masks = [wire.decode_mask(content, shapes) for content in saved["masks"]]
        self._of = {int(client): masks[i] for client, i in saved["clients"].items()}
