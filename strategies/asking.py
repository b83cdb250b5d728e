"""The messages of a round: one a client, with content that those who are asked alike share."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace

from flwr.app import ArrayRecord, ConfigRecord, Message, RecordDict

from fedsparse import messages
from fedsparse.config import Config
from fedsparse.messages import Plan
from fedsparse.sparsity import Mask
from strategies.seats import FULL, Seat


def asked(
    config: Config,
    plan: Plan,
    records: Mapping[int, ArrayRecord],
    *,
    seats: Mapping[int, Seat],
    budget_of: Callable[[int], float],
    node_of: Mapping[int, int],
    kind: str,
    clients: Sequence[int],
) -> list[Message]:
    """Return a message to each client with its model's record and its own plan.

    Clients with one record, one batch size and one budget are sent one object.
    """
    configs: dict[tuple[int, float], ConfigRecord] = {}
    contents: dict[tuple[int, int, float], RecordDict] = {}
    found = []
    for client in clients:
        size = seats.get(client, FULL).batch_size or plan.batch_size
        own = size, budget_of(client)
        if own not in configs:
            seated = replace(plan, batch_size=size, budget=own[1])
            configs[own] = messages.write_config(config, seated)
        alike = id(records[client]), *own
        if alike not in contents:
            contents[alike] = RecordDict(
                {messages.ARRAYS: records[client], messages.CONFIG: configs[own]}
            )
        found.append(Message(contents[alike], node_of[client], kind))
    return found


def by_mask(
    clients: Iterable[int], mask_of: Callable[[int], Mask | None]
) -> dict[Mask | None, list[int]]:
    """Return clients by the mask that a rule gives each."""
    groups: dict[Mask | None, list[int]] = {}
    for client in clients:
        groups.setdefault(mask_of(client), []).append(client)
    return groups
